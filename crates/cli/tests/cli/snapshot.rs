//! `snapshot`.

use crate::environment::Server;
use anyhow::Result;
use insta::assert_snapshot;

const SNAPSHOT: &str =
    r#"{"id":"sn_1","snapshot_id":"sn_1","name":"é","status":"building","type":"user","n":1.0}"#;
const LIST: &str = r#"[{"id":"sn_1","name":"é","status":"building","type":"user"},{"id":"sn_22","name":"","status":"ready"}]"#;

#[tokio::test]
async fn snapshots_are_listed() -> Result<()> {
    let server = Server::start(&[(200, LIST), (200, LIST), (200, "[]")]).await?;
    let environment = server.environment()?;
    let people = environment.run(&["snapshot", "ls"]).await?;
    assert_snapshot!(people.good(), @r"
    Snapshots (2)

      ID     Name  Status    Type
      -----  ----  --------  ----
      sn_1   é     building  user
      sn_22  -     ready     -   
    ");
    let json = environment
        .run(&["snapshot", "list", "--type", "system", "-j"])
        .await?;
    assert_eq!(
        json.json()["snapshots"],
        serde_json::from_str::<serde_json::Value>(LIST)?
    );
    assert_eq!(
        environment.run(&["snapshot", "ls"]).await?.good(),
        "No snapshots.\n"
    );
    let path = "GET /v1/snapshots";
    assert_eq!(
        server.seen(),
        [
            format!("{path} key=key-1"),
            format!("{path}?type=system key=key-1"),
            format!("{path} key=key-1"),
        ]
    );
    Ok(())
}

#[tokio::test]
async fn snapshots_are_made_of_vms_and_images() -> Result<()> {
    let server = Server::start(&[
        (200, SNAPSHOT),
        (200, r#"{"id":"old"}"#),
        (200, SNAPSHOT),
        (200, SNAPSHOT),
    ])
    .await?;
    let environment = server.environment()?;
    let made = environment.run(&["snapshot", "create", "vm_1"]).await?;
    assert_snapshot!(made.all(), @r"
    status 0
    --- stdout
    Snapshot: sn_1
    Status: building
    --- stderr
    Creating snapshot...
    ");
    let named = ["snapshot", "create", "vm_1", "--name", "n"];
    assert_eq!(
        environment.run(&named).await?.stdout,
        "Snapshot: old\nStatus: -\n"
    );
    let built = environment.run(&["snapshot", "build", "debian:12"]).await?;
    assert_snapshot!(built.all(), @r"
    status 0
    --- stdout
    Snapshot: sn_1
    Name: é
    Status: building
    --- stderr
    Building snapshot...
    ");
    let everything = "snapshot build debian:12 --name n --vcpu 2 --memory 512 --disk-size 3 --env A=b=c --env B= \
        --git-clone https://example.com/r --git-branch main --run make --apt git --pip numpy --npm x --type system -j";
    let words: Vec<&str> = everything.split_whitespace().collect();
    assert_eq!(environment.run(&words).await?.json()["name"], "é");
    let seen = server.seen();
    assert_eq!(
        seen[..3],
        [
            "POST /v1/vms/vm_1/snapshot?wait=true key=key-1 {}",
            "POST /v1/vms/vm_1/snapshot?wait=true key=key-1 {\"name\":\"n\"}",
            "POST /v1/snapshots key=key-1 {\"oci_image\":\"debian:12\",\"type\":\"user\"}",
        ]
    );
    let body = seen[3].trim_start_matches("POST /v1/snapshots key=key-1 ");
    let expected = serde_json::json!({
        "oci_image": "debian:12", "name": "n", "vcpu_count": 2, "memory_mb": 512, "type": "system",
        "build_args": {
            "extra_apt_packages": "git", "extra_pip_packages": "numpy", "extra_npm_packages": "x",
            "git_clone_url": "https://example.com/r", "git_clone_branch": "main", "disk_size_gb": 3,
            "post_build_cmd": "make", "envs": {"A": "b=c", "B": ""},
        },
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(body)?, expected);
    Ok(())
}

#[tokio::test]
async fn variables_that_are_none_are_not_sent() -> Result<()> {
    let server = Server::start(&[]).await?;
    let environment = server.environment()?;
    for (pair, expected) in [
        ("A", "--env is KEY=VALUE, not 'A'"),
        (" =b", "--env is KEY=VALUE, and ' =b' has no key"),
    ] {
        let refused = environment
            .run(&["snapshot", "build", "x", "--env", pair])
            .await?;
        assert_eq!(
            (refused.status, refused.stderr),
            (Some(1), format!("Error: {expected}\n"))
        );
    }
    assert!(server.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn what_may_pass_is_tried_again() -> Result<()> {
    let server = Server::start(&[(503, "busy"), (200, SNAPSHOT), (409, "{}")]).await?;
    let environment = server.environment()?;
    let made = environment.run(&["snapshot", "create", "vm_1"]).await?;
    assert_snapshot!(made.all(), @r"
    status 0
    --- stdout
    Snapshot: sn_1
    Status: building
    --- stderr
    Creating snapshot...
    Creating snapshot (retry 2/3)...
    ");
    let refused = environment.run(&["snapshot", "build", "x"]).await?;
    assert_snapshot!(refused.all(), @r"
    status 1
    --- stderr
    Building snapshot...
      ↳ 409 Client Error: Conflict
    Error: HTTP 409
    ");
    assert_eq!(server.seen().len(), 3);
    Ok(())
}

#[tokio::test]
async fn a_snapshot_is_shown_watched_and_deleted() -> Result<()> {
    let server = Server::start(&[
        (200, SNAPSHOT),
        (200, SNAPSHOT),
        (200, r#"{"id":"sn_1","status":"ready"}"#),
        (404, r#"{"detail":"no such snapshot"}"#),
        (200, r#"{"status":"deleted","id":"sn_1"}"#),
        (204, ""),
    ])
    .await?;
    let environment = server.environment()?;
    let shown = environment.run(&["snapshot", "get", "sn_1"]).await?;
    assert_snapshot!(shown.good(), @r"
    Snapshot: sn_1
    Name: é
    Status: building
    Type: user
    ");
    let watched = environment
        .run(&["snapshot", "get", "sn_1", "--watch=1"])
        .await?;
    assert_snapshot!(watched.all(), @r"
    status 1
    --- stdout
    Snapshot: sn_1
    Name: é
    Status: building
    Type: user
    Snapshot: sn_1
    Name: -
    Status: ready
    Type: -
    --- stderr
    Error: HTTP 404: no such snapshot
    ");
    let deleted = environment.run(&["snapshot", "rm", "sn_1"]).await?;
    assert_snapshot!(deleted.all(), @r"
    status 0
    --- stdout
    Deleted snapshot sn_1
    --- stderr
    Deleting snapshot...
    ");
    assert_eq!(
        environment
            .run(&["snapshot", "delete", "a/b", "-j"])
            .await?
            .good(),
        "{\"snapshot_id\": \"a/b\", \"success\": true}\n"
    );
    assert_eq!(
        server.seen()[4..],
        [
            "DELETE /v1/snapshots/sn_1 key=key-1",
            "DELETE /v1/snapshots/a%2Fb key=key-1"
        ]
    );
    Ok(())
}
