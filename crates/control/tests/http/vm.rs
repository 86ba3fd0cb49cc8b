use crate::{eventually, execute, patch, quick, session_of, text, vm_of, vm_with, volume_of};
use anyhow::Result;
use axum::http::Method;
use instavm_control::Settings;
use instavm_node_api::Ending;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::json;
use std::time::Duration;

on_each_database!(
    a_vm_is_made_with_its_session_listed_and_ended,
    without_waiting_the_answer_comes_at_once,
    a_vm_that_takes_too_long_is_a_504_and_goes_on,
    what_is_not_enforced_is_not_accepted,
    a_vm_that_lives_is_changed,
    several_vms_are_made_or_none,
    a_session_keeps_its_living_vm_and_gets_a_new_one_after_its_end,
    the_end_of_a_vm_is_on_record,
    records_are_the_newest_and_kept_for_a_time,
);

async fn a_vm_is_made_with_its_session_listed_and_ended(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        ssh_gateway: Some("ssh.example.com".to_owned()),
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let body = json!({"memory_mb": 256, "metadata": {"a": 1}, "env": {"A": "x"}, "some_unknown_key": {"b": 1},
                      "snapshot_on_terminate": false, "volumes": [], "vault_ids": [], "image_variant": "standard",
                      "egress_policy": {"allow_public_repos": true, "allow_http": true, "allow_https": true,
                                        "allowed_domains": [], "allowed_cidrs": []}});
    let answer = client.post("/v1/vms?wait=true", &body).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let vm = answer.json();
    let id = text(&vm["vm_id"]);
    assert!(id.starts_with("vm_") && id.len() == 23);
    assert_eq!(vm["id"], vm["vm_id"]);
    assert_eq!(vm["status"], "active");
    assert_eq!(vm["isolation"], "namespaces");
    assert_eq!(vm["vm_lifetime_seconds"], 3_600);
    assert_eq!(vm["ssh_host"], format!("{id}@ssh.example.com"));
    let session = text(&vm["session_id"]);
    assert_eq!(
        execute(&client, &session, "env A").await?.json()["stdout"],
        "x\n"
    );

    assert_eq!(client.get(&format!("/v1/vms/{id}")).await?.json(), vm);
    assert_eq!(client.get("/v1/vms").await?.json(), json!([vm]));
    assert_eq!(client.get("/v1/vms/").await?.json(), json!([vm]));
    for _ in 0..2 {
        let answer = client.delete(&format!("/v1/vms/{id}")).await?;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.json(),
            json!({"status": "terminated", "vm_id": id, "session_id": session})
        );
    }
    assert!(platform.node.vm_ids().is_empty());
    assert_eq!(client.get("/v1/vms").await?.json(), json!([]));
    let all = client.get("/v1/vms/").await?.json();
    assert_eq!(all[0]["status"], "terminated");
    assert_eq!(all[0]["status_reason"], "killed");
    assert!(all[0]["terminated_at"].is_string());
    assert_eq!(execute(&client, &session, "echo").await?.status, 404);
    assert_eq!(client.get("/v1/vms/vm_none").await?.status, 404);
    assert_eq!(client.delete("/v1/vms/vm_none").await?.status, 404);
    Ok(())
}

async fn without_waiting_the_answer_comes_at_once(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    platform.node.hold_creations(Some("making"));
    let vm = client.post("/v1/vms?wait=false", &json!({})).await?.json();
    assert_eq!(vm["status"], "creating");
    let listed = client.get("/v1/vms").await?.json();
    assert_eq!(listed[0]["status"], "creating");
    platform.node.open_gate("making");
    let path = format!("/v1/vms/{}", text(&vm["vm_id"]));
    eventually(&client, &path, |vm| vm["status"] == "active").await?;
    let wrong = client
        .call(Method::POST, "/v1/vms?wait=maybe", "application/json", "{}")
        .await?;
    assert_eq!(wrong.status, 422);
    Ok(())
}

async fn a_vm_that_takes_too_long_is_a_504_and_goes_on(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        provision_wait: Duration::from_millis(20),
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    platform.node.hold_creations(Some("making"));
    let answer = client.post("/v1/vms", &json!({})).await?;
    assert_eq!(answer.status, 504);
    assert!(answer.detail().contains("provisioning timed out"));
    platform.node.open_gate("making");
    eventually(&client, "/v1/vms", |vms| vms[0]["status"] == "active").await?;
    Ok(())
}

async fn what_is_not_enforced_is_not_accepted(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let cases = [
        ("volumes", json!([{"volume_id": "v", "mount_path": "data"}])),
        ("volumes", json!([{"mount_path": "/data"}])),
        (
            "volumes",
            json!([{"volume_id": "v", "mount_path": "/data", "mode": "wo"}]),
        ),
        (
            "volumes",
            json!([{"volume_id": "v", "mount_path": "/data", "checkpoint_id": "latest"}]),
        ),
        (
            "volumes",
            json!([{"volume_id": "v", "mount_path": "/data"}, {"volume_id": "v", "mount_path": "/data"}]),
        ),
        (
            "volumes",
            json!([{"volume_id": "v", "mount_path": "/data"}, {"volume_id": "w", "mount_path": "/data/x"}]),
        ),
        (
            "volumes",
            json!(vec![json!({"volume_id": "v", "mount_path": "/data"}); 17]),
        ),
        ("count", json!(0)),
        ("count", json!(101)),
        ("snapshot_name", json!("x".repeat(257))),
        ("vault_ids", json!(["vlt_1"])),
        ("share", json!({"port": 80})),
        ("custom_domain", json!({"domain": "x"})),
        ("image_variant", json!("computer-use")),
        ("memory_mb", json!(64)),
        ("vcpu_count", json!("2")),
        ("vm_lifetime_seconds", json!(5)),
        ("env", json!({"": "x"})),
        ("metadata", json!("x")),
    ];
    for (field, value) in cases {
        let answer = client.post("/v1/vms", &json!({field: value})).await?;
        assert_eq!(answer.status, 422, "{field}: {answer:?}");
        assert!(answer.detail().starts_with(field), "{}", answer.detail());
    }
    assert_eq!(
        client
            .post("/v1/vms", &json!({"session_id": "none"}))
            .await?
            .status,
        404
    );
    assert_eq!(platform.node.creations(), 0);
    Ok(())
}

async fn a_session_keeps_its_living_vm_and_gets_a_new_one_after_its_end(
    kind: DatabaseKind,
) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let session = session_of(&client, &platform.key).await?;
    let first = vm_of(&client, &session).await?;
    let body = json!({"session_id": session, "env": {"A": "new"}});
    assert_eq!(
        client.post("/v1/vms", &body).await?.json()["vm_id"],
        json!(first)
    );

    client
        .post("/kill", &json!({"session_id": session}))
        .await?;
    let answer = client.post("/v1/vms", &body).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let second = answer.json();
    assert_eq!(second["session_id"], json!(session));
    assert_ne!(second["vm_id"], json!(first));
    assert_eq!(
        execute(&client, &session, "env A").await?.json()["stdout"],
        "new\n"
    );
    // The first VM's record cannot end the second VM.
    assert_eq!(
        client.delete(&format!("/v1/vms/{first}")).await?.status,
        200
    );
    assert_eq!(execute(&client, &session, "echo x").await?.status, 200);
    Ok(())
}

async fn the_end_of_a_vm_is_on_record(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    for (ending, word) in [(Ending::Expired, "expired"), (Ending::Crashed, "crashed")] {
        let vm = client.post("/v1/vms", &json!({})).await?.json();
        let id = text(&vm["vm_id"]);
        platform.node.end(&id, ending);
        let path = format!("/v1/vms/{id}");
        let ended = eventually(&client, &path, |vm| vm["status"] == "terminated").await?;
        assert_eq!(ended["status_reason"], word);
    }
    Ok(())
}

async fn records_are_the_newest_and_kept_for_a_time(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        record_retention: Duration::ZERO,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let mut vms = Vec::new();
    for _ in 0..3 {
        vms.push(client.post("/v1/vms", &json!({})).await?.json());
    }
    let newest = client.get("/v1/vms/?limit=2").await?.json();
    let ids = |list: &[&serde_json::Value]| -> Vec<String> {
        list.iter().map(|vm| text(&vm["vm_id"])).collect()
    };
    assert_eq!(ids(&[&newest[0], &newest[1]]), ids(&[&vms[2], &vms[1]]));
    assert!(newest[2].is_null());
    for limit in ["0", "10001", "-1"] {
        let answer = client.get(&format!("/v1/vms/?limit={limit}")).await?;
        assert_eq!(answer.status, 422, "{limit}");
    }

    for vm in &vms[..2] {
        let path = format!("/v1/vms/{}", text(&vm["vm_id"]));
        assert_eq!(client.delete(&path).await?.status, 200);
    }
    // Old records are looked for at each start, among other times.
    let platform = platform.restart().await?;
    let client = platform.client();
    let left = eventually(&client, "/v1/vms/", |list| list[1].is_null()).await?;
    assert_eq!(left[0]["vm_id"], vms[2]["vm_id"]);
    let gone = format!("/v1/sessions/session/{}", text(&vms[0]["session_id"]));
    let answer = eventually(&client, &gone, |answer| answer["detail"].is_string()).await?;
    assert!(text(&answer["detail"]).contains("session not found"));
    let session = text(&vms[2]["session_id"]);
    assert_eq!(execute(&client, &session, "echo x").await?.status, 200);
    Ok(())
}

async fn a_vm_that_lives_is_changed(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::with(kind, quick()).await?;
    let client = platform.client();
    let id = text(&vm_with(&client, &json!({"memory_mb": 512})).await?["vm_id"]);
    let path = format!("/v1/vms/{id}");
    let changed = patch(&client, &path, &json!({"memory_mb": 1_024, "x": 1})).await?;
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(changed.json()["memory_mb"], 1_024);
    for (wrong, status) in [
        (json!({"memory_mb": 127}), 422),
        (json!({"memory_mb": 1_025}), 422),
        (json!({"memory_mb": 1 << 20}), 422),
        (json!({"memory_mb": 130}), 409),
        (json!({"snapshot_name": "a\u{7}"}), 422),
    ] {
        let answer = patch(&client, &path, &wrong).await?;
        assert_eq!(answer.status, status, "{wrong}: {answer:?}");
    }
    let keep = json!({"snapshot_on_terminate": true, "snapshot_name": "kept"});
    let changed = patch(&client, &path, &keep).await?.json();
    assert_eq!(changed["snapshot_on_terminate"], true);
    assert_eq!(changed["memory_mb"], 1_024);

    let platform = platform.restart().await?;
    let client = platform.client();
    let after = client.get(&path).await?.json();
    assert_eq!(after["memory_mb"], 1_024);
    assert_eq!(after["snapshot_name"], "kept");
    client.delete(&path).await?;
    assert_eq!(platform.node.snapshot_ids().len(), 1);
    assert_eq!(patch(&client, &path, &keep).await?.status, 409);
    assert_eq!(patch(&client, "/v1/vms/vm_none", &keep).await?.status, 404);
    Ok(())
}

async fn several_vms_are_made_or_none(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let made = vm_with(&client, &json!({"count": 5, "env": {"A": "x"}})).await?;
    let vms = made["vms"].as_array().cloned().unwrap_or_default();
    assert_eq!(vms.len(), 5);
    assert_eq!(vms[0]["vm_id"], made["vm_id"]);
    for vm in &vms {
        assert_eq!(vm["status"], "active");
        let session = text(&vm["session_id"]);
        let answer = execute(&client, &session, "env A").await?;
        assert_eq!(answer.json()["stdout"], "x\n");
    }
    let one = vm_with(&client, &json!({"count": 1})).await?;
    assert_eq!(one["vms"].as_array().map(Vec::len), Some(1));

    // The node has room for some, and none remains.
    platform.node.set_capacity(8);
    let keep = json!({"count": 5, "snapshot_on_terminate": true});
    let answer = client.post("/v1/vms", &keep).await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(platform.node.vm_ids().len(), 6);
    let live = client.get("/v1/vms").await?.json();
    assert_eq!(live.as_array().map(Vec::len), Some(6));
    assert_eq!(client.get("/v1/snapshots").await?.json(), json!([]));

    let session = text(&one["session_id"]);
    let wrong = json!({"count": 2, "session_id": session});
    assert_eq!(client.post("/v1/vms", &wrong).await?.status, 422);
    let volume = volume_of(&client, "data").await?;
    let volumes = json!([{"volume_id": volume, "mount_path": "/data"}]);
    let wrong = json!({"count": 2, "volumes": volumes});
    assert_eq!(client.post("/v1/vms", &wrong).await?.status, 422);
    Ok(())
}
