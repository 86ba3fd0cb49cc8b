use crate::{eventually, execute, quick, text, vm_with, volume_of};
use anyhow::Result;
use instavm_node_api::Ending;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::json;

on_each_database!(
    a_clone_begins_as_the_other_vm_is,
    a_named_clone_keeps_its_snapshot,
    clones_are_made_all_or_none,
    what_cannot_be_cloned_is_refused,
);

async fn a_clone_begins_as_the_other_vm_is(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let body = json!({
        "memory_mb": 512, "vcpu_count": 4, "env": {"A": "x"}, "metadata": {"m": 1}, "vm_lifetime_seconds": 900,
        "volumes": [{"volume_id": volume, "mount_path": "/data"}], "snapshot_on_terminate": true,
    });
    let vm = vm_with(&client, &body).await?;
    let session = text(&vm["session_id"]);
    client.upload(&session, "/app/f", false, b"kept").await?;
    let path = format!("/v1/vms/{}/clone?wait=true", text(&vm["vm_id"]));
    let answer = client.post(&path, &json!({"x": 1})).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let clone = answer.json();
    assert_eq!(clone["status"], "active");
    assert_ne!(clone["vm_id"], vm["vm_id"]);
    assert_ne!(clone["session_id"], vm["session_id"]);
    for same in ["memory_mb", "vcpu_count", "metadata", "vm_lifetime_seconds"] {
        assert_eq!(clone[same], vm[same], "{same}");
    }
    assert_eq!(clone["snapshot_on_terminate"], false);
    let id = text(&clone["vm_id"]);
    let file = platform.node.file(&id, "/app/f");
    assert_eq!(file.as_deref(), Some(&b"kept"[..]));
    let own = text(&clone["session_id"]);
    assert_eq!(
        execute(&client, &own, "env A").await?.json()["stdout"],
        "x\n"
    );
    let mounts = client.get(&format!("/v1/vms/{id}/volumes")).await?.json();
    assert_eq!(mounts, json!([]));
    // Its snapshot served it alone.
    assert!(platform.node.snapshot_ids().is_empty());
    assert_eq!(client.get("/v1/snapshots").await?.json(), json!([]));
    // After its end the session begins as the other one's would.
    platform.node.end(&id, Ending::Expired);
    assert_eq!(
        execute(&client, &own, "env A").await?.json()["stdout"],
        "x\n"
    );
    Ok(())
}

async fn a_named_clone_keeps_its_snapshot(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let vm = vm_with(&client, &json!({})).await?;
    let session = text(&vm["session_id"]);
    client.upload(&session, "/app/f", false, b"kept").await?;
    let path = format!("/v1/vms/{}/clone", text(&vm["vm_id"]));
    let clone = client
        .post(&path, &json!({"snapshot_name": "base"}))
        .await?
        .json();
    let listed = client.get("/v1/snapshots").await?.json();
    assert_eq!(listed[0]["name"], "base");
    assert_eq!(listed[0]["id"], clone["snapshot_id"]);
    // A new VM of the clone's session starts from it again.
    platform.node.end(&text(&clone["vm_id"]), Ending::Expired);
    let own = text(&clone["session_id"]);
    assert_eq!(execute(&client, &own, "echo").await?.status, 200);
    let next = crate::vm_of(&client, &own).await?;
    assert_eq!(
        platform.node.file(&next, "/app/f").as_deref(),
        Some(&b"kept"[..])
    );
    Ok(())
}

async fn clones_are_made_all_or_none(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::with(kind, quick()).await?;
    let client = platform.client();
    let vm = vm_with(&client, &json!({})).await?;
    let path = format!("/v1/vms/{}/clone", text(&vm["vm_id"]));
    let clones = client.post(&path, &json!({"count": 10})).await?;
    assert_eq!(clones.status, 200, "{clones:?}");
    assert_eq!(clones.json()["vms"].as_array().map(Vec::len), Some(10));
    platform.node.set_capacity(15);
    let body = json!({"count": 10, "snapshot_name": "kept"});
    assert_eq!(client.post(&path, &body).await?.status, 503);
    assert_eq!(platform.node.vm_ids().len(), 11);
    assert!(platform.node.snapshot_ids().is_empty());
    assert_eq!(
        client.post(&path, &json!({"count": 101})).await?.status,
        422
    );

    platform.node.hold_creations(Some("making"));
    let early = client
        .post(&format!("{path}?wait=false"), &json!({}))
        .await?
        .json();
    assert_eq!(early["status"], "creating");
    platform.node.open_gate("making");
    let one = format!("/v1/vms/{}", text(&early["vm_id"]));
    eventually(&client, &one, |vm| vm["status"] == "active").await?;
    Ok(())
}

async fn what_cannot_be_cloned_is_refused(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::with(kind, quick()).await?;
    let client = platform.client();
    let vm = vm_with(&client, &json!({})).await?;
    let path = format!("/v1/vms/{}/clone", text(&vm["vm_id"]));
    platform.node.fail("take_snapshot", 1);
    assert_eq!(client.post(&path, &json!({})).await?.status, 500);
    client
        .delete(&format!("/v1/vms/{}", text(&vm["vm_id"])))
        .await?;
    assert_eq!(client.post(&path, &json!({})).await?.status, 409);
    assert_eq!(
        client.post("/v1/vms/vm_x/clone", &json!({})).await?.status,
        404
    );
    // What was to be cloned is dropped at the next start.
    let platform = platform.restart().await?;
    assert_eq!(
        platform.client().get("/v1/snapshots").await?.json(),
        json!([])
    );
    Ok(())
}
