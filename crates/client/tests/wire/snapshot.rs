use crate::server::{Server, json};
use anyhow::Result;
use axum::response::Response;
use instavm::{Error, SnapshotBuild, SnapshotType};
use serde_json::{Value, json as value};

const BUILDING: &str = r#"{"id":"sn_1","snapshot_id":"sn_1","name":"n","status":"building","type":"user",
    "snapshot_type":"user","is_public":false,"step":"pull","log":"pulling\n","oci_image":"debian:12",
    "config":{"env":{},"entrypoint":[],"command":[]},"created_at":"x","updated_at":"x"}"#;
const LIST: &str = r#"[{"id":"sn_1","snapshot_id":"sn_1","name":"n","status":"failed","type":"system",
    "snapshot_type":"system","is_public":true,"last_error":"no such image",
    "config":{"env":{},"entrypoint":[],"command":[]},"created_at":"x","updated_at":"x"}]"#;

#[tokio::test]
async fn a_snapshot_is_built_as_asked() -> Result<()> {
    let server = Server::start([json(202, BUILDING), json(202, BUILDING)]).await?;
    let client = server.builder().build().await?;
    let begun = client
        .snapshots()
        .create(SnapshotBuild::of("debian:12"))
        .await?;
    assert_eq!(
        (begun.status.as_str(), begun.step.as_deref()),
        ("building", Some("pull"))
    );
    let everything = SnapshotBuild::of("r.example.com/a@sha256:b")
        .name("n")
        .cpu_count(2)
        .memory_mb(512)
        .snapshot_type(SnapshotType::System)
        .apt("git curl")
        .pip("numpy")
        .npm("x")
        .git_clone("https://example.com/r")
        .git_branch("main")
        .disk_size_gb(3)
        .run("make secret-value")
        .env("A", "b");
    assert!(!format!("{everything:?}").contains("secret-value"));
    client.snapshots().create(everything).await?;
    assert_eq!(
        server.lines()[0],
        r#"POST /v1/snapshots {"oci_image":"debian:12"}"#
    );
    let seen = server.seen();
    assert!(seen[0].headers.contains_key("idempotency-key"));
    let expected = value!({
        "oci_image": "r.example.com/a@sha256:b", "name": "n", "vcpu_count": 2, "memory_mb": 512, "type": "system",
        "build_args": {
            "extra_apt_packages": "git curl", "extra_pip_packages": "numpy", "extra_npm_packages": "x",
            "git_clone_url": "https://example.com/r", "git_clone_branch": "main", "disk_size_gb": 3,
            "post_build_cmd": "make secret-value", "envs": {"A": "b"},
        },
    });
    assert_eq!(serde_json::from_slice::<Value>(&seen[1].body)?, expected);
    Ok(())
}

fn answers() -> [Response; 5] {
    [
        json(200, LIST),
        json(200, "[]"),
        json(200, BUILDING),
        json(200, r#"{"status":"deleted","id":"sn_1"}"#),
        json(409, r#"{"detail":"in use"}"#),
    ]
}

const SENT: [&str; 5] = [
    "GET /v1/snapshots",
    "GET /v1/snapshots?type=user",
    "GET /v1/snapshots/sn%2F1",
    "DELETE /v1/snapshots/sn_1",
    "DELETE /v1/snapshots/sn_1",
];

#[tokio::test]
async fn snapshots_are_managed() -> Result<()> {
    let server = Server::start(answers()).await?;
    let client = server.builder().build().await?;
    let snapshots = client.snapshots();
    let failed = &snapshots.list(None).await?[0];
    assert_eq!(failed.last_error.as_deref(), Some("no such image"));
    let own = snapshots.list(Some(SnapshotType::User)).await?;
    assert!(own.is_empty());
    let log = snapshots.get("sn/1").await?.log;
    assert_eq!(log.as_deref(), Some("pulling\n"));
    assert_eq!(snapshots.delete("sn_1").await?.status, "deleted");
    let used = snapshots.delete("sn_1").await.unwrap_err();
    assert!(matches!(used, Error::Api { .. }), "{used:?}");
    assert_eq!(server.lines(), SENT);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_managed_without_async() -> Result<()> {
    let server = Server::start(answers()).await?;
    let client = server.builder().build_blocking()?;
    let snapshots = client.snapshots();
    assert_eq!(snapshots.list(None)?.len(), 1);
    assert!(snapshots.list(Some(SnapshotType::User))?.is_empty());
    assert_eq!(snapshots.get("sn/1")?.status, "building");
    snapshots.delete("sn_1")?;
    assert_eq!(snapshots.delete("sn_1").unwrap_err().status(), Some(409));
    assert_eq!(server.lines(), SENT);
    Ok(())
}
