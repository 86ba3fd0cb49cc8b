use crate::{text, upload_into, vm_with, volume_of};
use anyhow::Result;
use instavm_control::Settings;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};

on_each_database!(
    a_checkpoint_keeps_a_moment,
    what_is_mounted_stays,
    what_fails_leaves_nothing_and_strays_go,
    numbers_are_limited,
);

async fn a_checkpoint_keeps_a_moment(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let path = format!("/v1/volumes/{volume}/checkpoints");
    assert_eq!(client.get(&path).await?.json(), json!([]));
    upload_into(&client, &volume, &[("path", "a")], b"then").await?;
    let answer = client
        .post(&path, &json!({"name": "first", "x": 1}))
        .await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let checkpoint = answer.json();
    let id = text(&checkpoint["id"]);
    assert!(id.starts_with("ckpt_") && !id.contains(':'));
    assert_eq!(checkpoint["status"], "ready");
    upload_into(
        &client,
        &volume,
        &[("path", "a"), ("overwrite", "true")],
        b"now",
    )
    .await?;
    let second = text(&client.post(&path, &json!({})).await?.json()["id"]);
    let listed = client.get(&path).await?.json();
    assert_eq!(
        (&listed[0]["id"], &listed[1]["id"]),
        (&json!(id), &json!(second))
    );
    assert_eq!(listed[0]["name"], "first");

    let mount = |path: &str, checkpoint: Value| json!({"volume_id": volume, "mount_path": path, "mode": "ro", "checkpoint_id": checkpoint});
    let volumes = json!([
        mount("/then", json!(id)),
        mount("/latest", json!("latest")),
        mount("/live", Value::Null)
    ]);
    upload_into(
        &client,
        &volume,
        &[("path", "a"), ("overwrite", "true")],
        b"live",
    )
    .await?;
    let vm = text(&vm_with(&client, &json!({"volumes": volumes})).await?["vm_id"]);
    for (path, content) in [
        ("/then/a", "then"),
        ("/latest/a", "now"),
        ("/live/a", "live"),
    ] {
        let file = platform.node.file(&vm, path);
        assert_eq!(file.as_deref(), Some(content.as_bytes()), "{path}");
    }
    for wrong in ["/v1/volumes/vol_x/checkpoints", "/v1/volumes//checkpoints"] {
        assert_eq!(client.post(wrong, &json!({})).await?.status, 404);
    }
    assert_eq!(
        client
            .post(&path, &json!({"name": "x".repeat(300)}))
            .await?
            .status,
        422
    );
    Ok(())
}

async fn what_is_mounted_stays(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let path = format!("/v1/volumes/{volume}/checkpoints");
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(text(&client.post(&path, &json!({})).await?.json()["id"]));
    }
    let mount =
        json!({"volume_id": volume, "mount_path": "/d", "mode": "ro", "checkpoint_id": ids[0]});
    let vm = text(&vm_with(&client, &json!({"volumes": [mount]})).await?["vm_id"]);
    let held = client.delete(&format!("{path}/{}", ids[0])).await?;
    assert_eq!(held.status, 409);
    assert!(held.detail().contains(&vm), "{}", held.detail());
    let gone = client.delete(&format!("{path}/{}", ids[1])).await?;
    assert_eq!(gone.json(), json!({"status": "deleted", "id": ids[1]}));
    assert_eq!(
        client.delete(&format!("{path}/{}", ids[1])).await?.status,
        404
    );
    assert_eq!(
        client
            .delete(&format!("/v1/volumes/{volume}"))
            .await?
            .status,
        409
    );
    client.delete(&format!("/v1/vms/{vm}")).await?;
    assert_eq!(
        client.delete(&format!("{path}/{}", ids[0])).await?.status,
        200
    );
    assert!(platform.node.checkpoint_ids(&volume).is_empty());
    Ok(())
}

async fn what_fails_leaves_nothing_and_strays_go(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let path = format!("/v1/volumes/{volume}/checkpoints");
    platform.node.fail("create_checkpoint", 1);
    assert_eq!(client.post(&path, &json!({})).await?.status, 500);
    assert_eq!(client.get(&path).await?.json(), json!([]));
    let late = text(&client.post(&path, &json!({})).await?.json()["id"]);
    let stray = text(&client.post(&path, &json!({})).await?.json()["id"]);
    let stays = text(&client.post(&path, &json!({})).await?.json()["id"]);
    platform.node.fail("delete_checkpoint", 1);
    let answer = client.delete(&format!("{path}/{late}")).await?;
    assert_eq!(answer.json()["status"], "deleting");
    platform
        .database
        .execute(
            "DELETE FROM checkpoints WHERE id = $1",
            vec![stray.as_str().into()],
        )
        .await?;
    let platform = platform.restart().await?;
    assert_eq!(
        platform.node.checkpoint_ids(&volume),
        std::slice::from_ref(&stays)
    );
    let listed = platform.client().get(&path).await?.json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    let recorded = instavm_control::volume::service::recorded(&platform.database).await?;
    assert_eq!(recorded[0].checkpoints.len(), 1);
    Ok(())
}

async fn numbers_are_limited(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        checkpoints_per_volume: 1,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let path = format!("/v1/volumes/{volume}/checkpoints");
    assert_eq!(client.post(&path, &json!({})).await?.status, 200);
    let refused = client.post(&path, &json!({})).await?;
    assert_eq!(refused.status, 429);
    assert!(
        refused.detail().contains("limit is 1"),
        "{}",
        refused.detail()
    );
    Ok(())
}
