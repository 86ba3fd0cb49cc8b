use crate::server::{Server, json};
use anyhow::Result;
use axum::response::Response;
use instavm::{Access, EgressPolicy, Error, NewClone, NewVm, UpdateVm};
use serde_json::{Value, json as value};
use std::time::Duration;

const VM: &str = r#"{"vm_id":"vm_1","id":"vm_1","session_id":"s1","status":"active","status_reason":null,
    "created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z","memory_mb":512,"vcpu_count":1,
    "vm_lifetime_seconds":300,"image_variant":"standard","vault_ids":[],"snapshot_on_terminate":false,"metadata":{},
    "more":1}"#;
const SNAPSHOT: &str = r#"{"id":"sn_1","snapshot_id":"sn_1","name":"n","status":"ready","type":"user",
    "snapshot_type":"user","is_public":false,"pause_ms":1.5,"config":{"env":{},"entrypoint":[],"command":[]},
    "created_at":"x","updated_at":"x"}"#;
const MOUNT: &str = r#"{"volume_id":"vol_1","name":"data","vm_id":"vm_1","mount_path":"/data","mode":"rw",
    "checkpoint_id":null,"status":"mounted"}"#;

fn good(body: &str) -> Response {
    json(200, Box::leak(body.to_owned().into_boxed_str()))
}

#[tokio::test]
async fn a_vm_is_made_as_asked() -> Result<()> {
    let many = VM.replacen('{', &format!(r#"{{"vms":[{VM},{VM}],"#), 1);
    let server = Server::start([good(VM), good(&many)]).await?;
    let client = server.builder().build().await?;
    let made = client.vms().create(NewVm::default()).await?;
    assert_eq!((made.vm.memory_mb, made.vms.is_none()), (512, true));

    let everything = NewVm::default()
        .from_snapshot("sn_1")
        .session("s1")
        .lifetime(Duration::from_secs(60))
        .memory_mb(256)
        .cpu_count(2)
        .image_variant("standard")
        .env("A", "secret-value")
        .metadata("team", 7)
        .volume("vol_1", "/rw", Access::ReadWrite)
        .volume("vol_1", "/ro", Access::ReadOnly)
        .volume("vol_1", "/old", Access::Checkpoint("ck_1".to_owned()))
        .volume_named("data", "/new", Access::LatestCheckpoint)
        .volume_made("cache", "/cache", 3)
        .egress_policy(EgressPolicy {
            allow_public_repos: Some(true),
            allow_http: None,
            allow_https: None,
            allowed_domains: Some(vec!["example.com".to_owned()]),
            allowed_cidrs: None,
        })
        .vault("vlt_1")
        .snapshot_on_terminate("end")
        .count(2)
        .at_once();
    assert!(!format!("{everything:?}").contains("secret-value"));
    let made = client.vms().create(everything).await?;
    assert_eq!(made.vms.map(|vms| vms.len()), Some(2));

    let seen = server.seen();
    assert_eq!(server.lines()[0], "POST /v1/vms?wait=true {}");
    assert_eq!(seen[1].uri, "/v1/vms?wait=false");
    let expected = value!({
        "snapshot_id": "sn_1", "session_id": "s1", "vm_lifetime_seconds": 60, "memory_mb": 256, "vcpu_count": 2,
        "image_variant": "standard", "env": {"A": "secret-value"}, "metadata": {"team": 7}, "vault_ids": ["vlt_1"],
        "snapshot_on_terminate": true, "snapshot_name": "end", "count": 2,
        "egress_policy": {
            "allow_public_repos": true, "allow_http": null, "allow_https": null,
            "allowed_domains": ["example.com"], "allowed_cidrs": null,
        },
        "volumes": [
            {"volume_id": "vol_1", "mount_path": "/rw", "mode": "rw"},
            {"volume_id": "vol_1", "mount_path": "/ro", "mode": "ro"},
            {"volume_id": "vol_1", "mount_path": "/old", "mode": "ro", "checkpoint_id": "ck_1"},
            {"name": "data", "mount_path": "/new", "mode": "ro", "checkpoint_id": "latest"},
            {"name": "cache", "mount_path": "/cache", "mode": "rw", "create_if_missing": true, "size_gb": 3},
        ],
    });
    assert_eq!(serde_json::from_slice::<Value>(&seen[1].body)?, expected);
    assert_ne!(
        seen[0].headers["idempotency-key"],
        seen[1].headers["idempotency-key"]
    );
    Ok(())
}

/// What the methods below send, asynchronous or not.
const SENT: [&str; 11] = [
    "GET /v1/vms",
    "GET /v1/vms/",
    "GET /v1/vms/vm%2F1",
    r#"PATCH /v1/vms/vm_1 {"memory_mb":1024,"snapshot_on_terminate":true}"#,
    "POST /v1/vms/vm_1/clone?wait=true {}",
    r#"POST /v1/vms/vm_1/clone?wait=false {"count":3,"snapshot_name":"n"}"#,
    "POST /v1/vms/vm_1/snapshot?wait=true {}",
    r#"POST /v1/vms/vm_1/volumes?wait=true {"checkpoint_id":"latest","mode":"ro","mount_path":"/data","volume_id":"vol_1"}"#,
    "GET /v1/vms/vm_1/volumes",
    "DELETE /v1/vms/vm_1/volumes/vol%2F1?mount_path=%2Fdata&wait=true",
    "DELETE /v1/vms/vm_1",
];

fn answers() -> [Response; 12] {
    let ended = r#"{"status":"terminated","vm_id":"vm_1","session_id":"s1"}"#;
    let unmounted =
        r#"{"status":"unmounted","vm_id":"vm_1","volume_id":"vol_1","mount_path":"/data"}"#;
    [
        good(&format!("[{VM}]")),
        good("[]"),
        good(VM),
        good(VM),
        good(VM),
        good(VM),
        good(SNAPSHOT),
        good(MOUNT),
        good(&format!("[{MOUNT}]")),
        good(unmounted),
        good(ended),
        json(409, r#"{"detail":"in use"}"#),
    ]
}

fn change() -> UpdateVm {
    UpdateVm {
        memory_mb: Some(1024),
        snapshot_on_terminate: Some(true),
        ..UpdateVm::default()
    }
}

fn refused(error: &Error) -> bool {
    matches!(error, Error::Api { .. }) && error.detail() == Some("in use")
}

#[tokio::test]
async fn vms_are_managed() -> Result<()> {
    let server = Server::start(answers()).await?;
    let client = server.builder().build().await?;
    let vms = client.vms();
    assert_eq!(vms.list().await?[0].vm_id, "vm_1");
    assert!(vms.list_all_records().await?.is_empty());
    assert_eq!(vms.get("vm/1").await?.session_id, "s1");
    assert_eq!(vms.update("vm_1", &change()).await?.status, "active");
    vms.clone("vm_1", NewClone::default()).await?;
    let three = NewClone::default().snapshot_name("n").count(3).at_once();
    vms.clone("vm_1", three).await?;
    assert_eq!(vms.snapshot("vm_1", None).await?.pause_ms, Some(1.5));
    let access = Access::LatestCheckpoint;
    let mount = vms.mount_volume("vm_1", "vol_1", "/data", access).await?;
    assert_eq!(mount.status, "mounted");
    assert_eq!(vms.list_volumes("vm_1").await?.len(), 1);
    let unmounted = vms.unmount_volume("vm_1", "vol/1", "/data").await?;
    assert_eq!(unmounted.status, "unmounted");
    assert_eq!(vms.delete("vm_1").await?.status, "terminated");
    assert!(refused(&vms.delete("vm_1").await.unwrap_err()));
    assert!(vms.delete("..").await.is_err());
    assert_eq!(server.lines()[..11], SENT);
    assert_eq!(server.seen().len(), 12);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_are_managed_without_async() -> Result<()> {
    let server = Server::start(answers()).await?;
    let client = server.builder().build_blocking()?;
    let vms = client.vms();
    assert_eq!(vms.list()?.len(), 1);
    assert!(vms.list_all_records()?.is_empty());
    vms.get("vm/1")?;
    vms.update("vm_1", &change())?;
    vms.clone("vm_1", NewClone::default())?;
    vms.clone(
        "vm_1",
        NewClone::default().snapshot_name("n").count(3).at_once(),
    )?;
    vms.snapshot("vm_1", None)?;
    vms.mount_volume("vm_1", "vol_1", "/data", Access::LatestCheckpoint)?;
    assert_eq!(vms.list_volumes("vm_1")?.len(), 1);
    vms.unmount_volume("vm_1", "vol/1", "/data")?;
    vms.delete("vm_1")?;
    assert!(refused(&vms.delete("vm_1").unwrap_err()));
    assert_eq!(server.lines()[..11], SENT);
    Ok(())
}

#[tokio::test]
async fn a_repeated_creation_says_that_it_is_one() -> Result<()> {
    let server = Server::start([]).await?;
    let client = server
        .builder()
        .timeout(Duration::from_millis(50))
        .max_retries(1)
        .build()
        .await?;
    assert!(client.vms().create(NewVm::default()).await.is_err());
    let [first, second] = &server.seen()[..] else {
        panic!("two requests")
    };
    let key = &first.headers["idempotency-key"];
    assert_eq!((key.len(), key), (32, &second.headers["idempotency-key"]));
    Ok(())
}
