//! `create`, `rm`, `clone` and `vm`.

use crate::environment::Server;
use anyhow::Result;
use insta::assert_snapshot;

const VM: &str = r#"{"vm_id":"vm_1","session_id":"s-1","status":"active","memory_mb":512.0}"#;

#[tokio::test]
async fn a_vm_is_created() -> Result<()> {
    let server = Server::start(&[(200, VM), (200, VM), (202, r#"{"status":null}"#)]).await?;
    let environment = server.environment()?.with("INSTAVM_SSH_HOST", "gate");
    let made = environment.run(&["create"]).await?;
    assert_snapshot!(made.all(), @r"
    status 0
    --- stdout
    VM: vm_1
    Session: s-1
    Status: active
    SSH: ssh vm_1@gate
    --- stderr
    Creating VM...
    ");
    let volumes = ["--volume", "v:/data", "--volume", "w:/old:ro:ck_1"];
    let all = ["new", "--memory", "512", "--type", "computer-use", "-j"];
    let json = environment.run(&[&all[..], &volumes].concat()).await?;
    assert_eq!(
        json.good(),
        "{\"vm_id\": \"vm_1\", \"session_id\": \"s-1\", \"status\": \"active\", \"memory_mb\": 512.0}\n"
    );
    let blank = environment.run(&["create", "--snapshot", "sn"]).await?;
    assert_eq!(blank.stdout, "VM: -\nSession: -\nStatus: -\n");
    let path = "POST /v1/vms?wait=true key=key-1";
    let mounts = r#"[{"checkpoint_id":null,"mode":"rw","mount_path":"/data","volume_id":"v"},{"checkpoint_id":"ck_1","mode":"ro","mount_path":"/old","volume_id":"w"}]"#;
    assert_eq!(
        server.seen(),
        [
            format!("{path} {{}}"),
            format!(
                "{path} {{\"image_variant\":\"computer-use\",\"memory_mb\":512,\"volumes\":{mounts}}}"
            ),
            format!("{path} {{\"snapshot_id\":\"sn\"}}"),
        ]
    );
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_mounted_is_not_asked_for() -> Result<()> {
    let server = Server::start(&[]).await?;
    let environment = server.environment()?;
    for (spec, expected) in [
        (
            "v",
            "--volume is VOLUME_ID:MOUNT_PATH[:rw|ro[:CHECKPOINT_ID]], not 'v'",
        ),
        ("v:/m:wx", "the mode of a mount is rw or ro, not 'wx'"),
        (
            "v:/m:rw:c",
            "a checkpoint can only be mounted with the mode ro",
        ),
    ] {
        let refused = environment.run(&["create", "--volume", spec]).await?;
        assert_eq!(refused.status, Some(1));
        assert_eq!(
            (refused.stdout.as_str(), refused.stderr),
            ("", format!("Error: {expected}\n"))
        );
    }
    assert!(server.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn vms_are_removed_one_after_the_other() -> Result<()> {
    let gone = r#"{"status":"terminated","vm_id":"vm_1"}"#;
    let server = Server::start(&[
        (200, gone),
        (204, ""),
        (200, gone),
        (204, ""),
        (204, ""),
        (404, r#"{"detail":"no such VM"}"#),
    ])
    .await?;
    let environment = server.environment()?;
    let removed = environment.run(&["rm", "vm_1", "b/c"]).await?;
    assert_snapshot!(removed.all(), @r"
    status 0
    --- stdout
    vm_1: terminated
    b/c: ok
    --- stderr
    Deleting VM vm_1...
    Deleting VM b/c...
    ");
    let json = environment.run(&["delete", "vm_1", "-j", "b"]).await?;
    assert_snapshot!(json.good(), @r#"{"results": [{"vm_id": "vm_1", "status": "terminated"}, {"vm_id": "b", "success": true}]}"#);
    let failed = environment.run(&["rm", "a", "b", "c"]).await?;
    assert_snapshot!(failed.all(), @r"
    status 1
    --- stderr
    Deleting VM a...
    Deleting VM b...
      ↳ 404 Client Error: Not Found
    Error: HTTP 404: no such VM
    ");
    assert_eq!(
        server.seen()[..2],
        [
            "DELETE /v1/vms/vm_1 key=key-1",
            "DELETE /v1/vms/b%2Fc key=key-1"
        ]
    );
    assert_eq!(server.seen().len(), 6, "the third is not asked for");
    Ok(())
}

#[tokio::test]
async fn failures_say_more_below_their_step() -> Result<()> {
    let server = Server::start(&[
        (401, "{}"),
        (429, r#"{"detail":"full"}"#),
        (504, "late"),
        (504, "late"),
        (200, "[]"),
    ])
    .await?;
    let environment = server.environment()?;
    assert_snapshot!(environment.run(&["clone", "a"]).await?.all(), @r"
    status 1
    --- stderr
    Cloning VM...
      ↳ invalid API key or expired session
    Error: invalid API key or expired session
    The API key is missing, has expired or was revoked from the dashboard.
    Run `instavm login` again to get a new one.
    ");
    assert_snapshot!(environment.run(&["create"]).await?.all(), @r"
    status 1
    --- stderr
    Creating VM...
      ↳ full
    Error: full
    ");
    let late = "504 Gateway Timeout: the server, or a proxy before it, was not answered in time\nReason: Gateway Timeout\nDetails: late\n";
    let people = environment.run(&["create"]).await?;
    assert_eq!(
        people.stderr,
        format!("Creating VM...\n  ↳ {late}Error: {late}")
    );
    let json = environment.run(&["create", "-j"]).await?;
    assert_eq!(json.stderr, format!("Error: {late}"));
    assert_snapshot!(environment.run(&["create", "-j"]).await?.all(), @r"
    status 1
    --- stderr
    Error: the answer is not understood: it is no JSON object
    ");
    Ok(())
}

#[tokio::test]
async fn a_vm_is_cloned_and_changed() -> Result<()> {
    let server = Server::start(&[(200, VM), (200, VM), (200, "{}"), (204, "")]).await?;
    let environment = server.environment()?;
    let cloned = environment.run(&["clone", "vm_0", "--name", "n"]).await?;
    assert_snapshot!(cloned.all(), @r"
    status 0
    --- stdout
    VM: vm_1
    Session: s-1
    Status: active
    SSH: ssh vm_1@127.0.0.1
    --- stderr
    Cloning VM...
    ");
    let everything = [
        "vm",
        "update",
        "vm_1",
        "--memory-mb",
        "1024",
        "--snapshot-on-terminate",
        "--snapshot-name",
        "the end",
    ];
    let changed = environment.run(&everything).await?;
    assert_snapshot!(changed.all(), @r"
    status 0
    --- stdout
    Updated VM vm_1: memory_mb=1024, snapshot_on_terminate=true, snapshot_name=the end
    Status: active
    --- stderr
    Updating VM...
    ");
    let kept = ["vms", "update", "vm_1", "--no-snapshot-on-terminate", "-j"];
    assert_eq!(
        environment.run(&kept).await?.good(),
        "{\"status\": \"ok\"}\n"
    );
    let silent = environment
        .run(&["vm", "update", "a", "--memory-mb", "2"])
        .await?;
    assert_eq!(silent.stdout, "Updated VM a: memory_mb=2\nStatus: ok\n");
    let nothing = environment.run(&["vm", "update", "vm_1"]).await?;
    assert_eq!(nothing.status, Some(1));
    for flag in [
        "--memory-mb",
        "--snapshot-on-terminate",
        "--no-snapshot-on-terminate",
        "--snapshot-name",
    ] {
        assert!(nothing.stderr.contains(flag), "{nothing:?}");
    }
    assert_eq!(
        server.seen(),
        [
            "POST /v1/vms/vm_0/clone?wait=true key=key-1 {\"snapshot_name\":\"n\"}",
            "PATCH /v1/vms/vm_1 key=key-1 {\"memory_mb\":1024,\"snapshot_name\":\"the end\",\"snapshot_on_terminate\":true}",
            "PATCH /v1/vms/vm_1 key=key-1 {\"snapshot_on_terminate\":false}",
            "PATCH /v1/vms/a key=key-1 {\"memory_mb\":2}",
        ]
    );
    Ok(())
}
