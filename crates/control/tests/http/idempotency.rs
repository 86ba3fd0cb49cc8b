use crate::{quick, text, vm_with, volume_of};
use anyhow::Result;
use axum::body::Body;
use axum::http::Request;
use instavm_control::Settings;
use instavm_testkit::{Answer, Client, DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};
use std::time::Duration;

on_each_database!(
    every_creation_is_carried_out_once,
    another_request_under_the_key_is_refused,
    keys_are_an_accounts_own_and_have_a_form,
    one_that_is_under_way_is_a_conflict,
    one_that_failed_is_tried_again,
    one_that_takes_long_is_waited_for,
    what_was_cut_off_is_found_again,
    secrets_come_out_the_same_and_are_stored_nowhere,
    after_a_time_a_key_is_free_again,
);

async fn once(client: &Client, path: &str, key: &str, body: &Value) -> Result<Answer> {
    let request = Request::builder()
        .method("POST")
        .uri(path)
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(Body::from(body.to_string()))?;
    client.send(request).await
}

async fn every_creation_is_carried_out_once(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let vm = text(&vm_with(&client, &json!({})).await?["vm_id"]);
    let volume = volume_of(&client, "data").await?;
    let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    let cases = [
        (
            "/v1/sessions/session".to_owned(),
            json!({"api_key": platform.key}),
        ),
        ("/v1/vms".to_owned(), json!({"count": 3})),
        (format!("/v1/vms/{vm}/clone"), json!({"count": 2})),
        (format!("/v1/vms/{vm}/clone"), json!({"snapshot_name": "x"})),
        (format!("/v1/vms/{vm}/snapshot"), json!({})),
        ("/v1/snapshots".to_owned(), json!({"oci_image": "debian"})),
        (
            "/v1/volumes".to_owned(),
            json!({"name": "x", "quota_bytes": 1 << 20}),
        ),
        (format!("/v1/volumes/{volume}/checkpoints"), json!({})),
        ("/v1/api-keys/".to_owned(), json!({"description": "x"})),
        ("/v1/ssh-keys".to_owned(), json!({"public_key": line})),
    ];
    let mut answers = Vec::new();
    for (number, (path, body)) in cases.iter().enumerate() {
        let key = format!("key-{number}");
        let first = once(&client, path, &key, body).await?;
        assert_eq!(first.status, 200, "{path}: {first:?}");
        let again = once(&client, path, &key, body).await?;
        assert_eq!(again.status, 200, "{path}: {again:?}");
        assert_eq!(again.json(), first.json(), "{path}");
        answers.push(first.json());
    }
    let vms = platform.node.creations();
    assert_eq!(vms, 1 + 1 + 3 + 2 + 1);
    assert_eq!(platform.node.calls("create_volume"), 2);
    assert_eq!(platform.node.calls("create_checkpoint"), 1);
    assert_eq!(platform.node.calls("take_snapshot"), 3);
    // The answers outlive the platform.
    let platform = platform.restart().await?;
    let client = platform.client();
    for (number, ((path, body), answer)) in cases.iter().zip(answers).enumerate() {
        let again = once(&client, path, &format!("key-{number}"), body).await?;
        assert_eq!(again.json(), answer, "{path}");
    }
    assert_eq!(platform.node.creations(), vms);
    Ok(())
}

async fn another_request_under_the_key_is_refused(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let body = json!({"memory_mb": 512});
    assert_eq!(once(&client, "/v1/vms", "k", &body).await?.status, 200);
    for (path, body) in [
        ("/v1/vms", json!({"memory_mb": 1_024})),
        ("/v1/vms?wait=false", json!({"memory_mb": 512})),
        ("/v1/volumes", json!({"name": "x", "quota_bytes": 1 << 20})),
    ] {
        let refused = once(&client, path, "k", &body).await?;
        assert_eq!(refused.status, 422, "{path}: {refused:?}");
        assert!(
            refused.detail().starts_with("Idempotency-Key"),
            "{}",
            refused.detail()
        );
    }
    assert_eq!(platform.node.creations(), 1);
    Ok(())
}

async fn keys_are_an_accounts_own_and_have_a_form(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, other) = (platform.client(), platform.stranger("b@example.com").await?);
    let body = json!({"name": "x", "quota_bytes": 1 << 20});
    let one = once(&client, "/v1/volumes", "k", &body).await?.json();
    let two = once(&other, "/v1/volumes", "k", &body).await?.json();
    assert_ne!(one["id"], two["id"]);
    for wrong in ["", " ", &"x".repeat(256)] {
        let refused = once(&client, "/v1/volumes", wrong, &body).await?;
        assert_eq!(refused.status, 422, "{refused:?}");
    }
    // Bodies are checked as without a key, and a wrong one is forgotten.
    let wrong = once(&client, "/v1/volumes", "k2", &json!({"name": "y"})).await?;
    assert_eq!(wrong.status, 422);
    let right = json!({"name": "y", "quota_bytes": 1 << 20});
    assert_eq!(
        once(&client, "/v1/volumes", "k2", &right).await?.status,
        200
    );
    Ok(())
}

async fn one_that_is_under_way_is_a_conflict(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    platform.node.hold_creations(Some("making"));
    let body = json!({});
    let opening = async {
        platform.node.gate_occupied("making", 1).await;
        let conflict = once(&client, "/v1/vms", "k", &body).await?;
        assert_eq!(conflict.status, 409, "{conflict:?}");
        assert!(
            conflict.detail().contains("under way"),
            "{}",
            conflict.detail()
        );
        platform.node.open_gate("making");
        anyhow::Ok(())
    };
    let (first, opened) = tokio::join!(once(&client, "/v1/vms", "k", &body), opening);
    opened?;
    let again = once(&client, "/v1/vms", "k", &body).await?;
    assert_eq!(again.json(), first?.json());
    assert_eq!(platform.node.creations(), 1);
    Ok(())
}

async fn one_that_failed_is_tried_again(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    platform.node.set_capacity(1);
    let body = json!({"count": 2});
    assert_eq!(once(&client, "/v1/vms", "k", &body).await?.status, 503);
    platform.node.set_capacity(10);
    let made = once(&client, "/v1/vms", "k", &body).await?;
    assert_eq!(made.status, 200, "{made:?}");
    assert_eq!(platform.node.vm_ids().len(), 2);
    Ok(())
}

async fn one_that_takes_long_is_waited_for(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        provision_wait: Duration::from_millis(20),
        ..quick()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    platform.node.hold_creations(Some("making"));
    let body = json!({});
    for _ in 0..2 {
        let slow = once(&client, "/v1/vms", "k", &body).await?;
        assert_eq!(slow.status, 504, "{slow:?}");
        assert!(slow.detail().contains("provisioning timed out"));
    }
    platform.node.open_gate("making");
    let asking = async {
        loop {
            let answer = once(&client, "/v1/vms", "k", &body).await?;
            if answer.status != 504 {
                return anyhow::Ok(answer);
            }
        }
    };
    let made = tokio::time::timeout(Duration::from_secs(30), asking).await??;
    assert_eq!(made.status, 200, "{made:?}");
    assert_eq!(made.json()["status"], "active");
    assert_eq!(platform.node.creations(), 1);
    Ok(())
}

async fn what_was_cut_off_is_found_again(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let cases = [
        ("/v1/vms", json!({"count": 2})),
        ("/v1/sessions/session", json!({"api_key": platform.key})),
        ("/v1/snapshots", json!({"oci_image": "debian"})),
        ("/v1/volumes", json!({"name": "x", "quota_bytes": 1 << 20})),
        ("/v1/api-keys/", json!({})),
    ];
    let id = |answer: &Value| {
        let ids = ["session_id", "id"].map(|name| answer[name].clone());
        (ids, answer["api_key"].clone())
    };
    let mut made = Vec::new();
    for (number, (path, body)) in cases.iter().enumerate() {
        let answer = once(&client, path, &number.to_string(), body).await?;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        made.push(id(&answer.json()));
    }
    // As after an end before the answers were written down.
    platform
        .database
        .execute("UPDATE requests SET answer = NULL", vec![])
        .await?;
    let platform = platform.restart().await?;
    let client = platform.client();
    for (number, ((path, body), made)) in cases.iter().zip(&made).enumerate() {
        let again = once(&client, path, &number.to_string(), body).await?;
        assert_eq!(again.status, 200, "{path}: {again:?}");
        assert_eq!(id(&again.json()), *made, "{path}");
    }
    assert_eq!(platform.node.creations(), 3);

    // Of a group of which a part is left, nothing remains, and the next time all of it is made.
    platform
        .database
        .execute("UPDATE requests SET answer = NULL", vec![])
        .await?;
    let (path, body) = &cases[0];
    let vms = client.get("/v1/vms").await?.json();
    let in_group = |vm: &&Value| vm["session_id"] == made[0].0[0];
    let first = vms
        .as_array()
        .and_then(|vms| vms.iter().find(in_group))
        .cloned();
    let first = text(&first.unwrap_or_default()["vm_id"]);
    client.delete(&format!("/v1/vms/{first}")).await?;
    let partial = once(&client, path, "0", body).await?;
    assert_eq!(partial.status, 409, "{partial:?}");
    assert_eq!(platform.node.vm_ids().len(), 1);
    assert_eq!(once(&client, path, "0", body).await?.status, 200);
    assert_eq!(platform.node.vm_ids().len(), 3);
    Ok(())
}

async fn secrets_come_out_the_same_and_are_stored_nowhere(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let first = once(&client, "/v1/api-keys/", "k", &json!({}))
        .await?
        .json();
    let text_of_key = text(&first["api_key"]);
    assert!(text_of_key.starts_with("instavm_sk_") && text_of_key.len() == 54);
    let again = once(&client, "/v1/api-keys/", "k", &json!({}))
        .await?
        .json();
    assert_eq!(again, first);
    let made = platform.client_with(Some(&text_of_key));
    assert_eq!(made.get("/v1/users/me").await?.status, 200);
    let rows = platform
        .database
        .fetch("SELECT answer, key_hash, fingerprint FROM requests", vec![])
        .await?;
    for column in ["answer", "key_hash", "fingerprint"] {
        let stored: String = rows[0].get(column)?;
        assert!(!stored.contains(&text_of_key[15..]), "{stored}");
    }
    // Another key of the account would come to another text, so it is refused.
    let other = once(&made, "/v1/api-keys/", "k", &json!({})).await?;
    assert_eq!(other.status, 422);
    // Without a key of that kind each is another.
    let one = client.post("/v1/api-keys/", &json!({})).await?.json();
    let two = client.post("/v1/api-keys/", &json!({})).await?.json();
    assert_ne!(one["api_key"], two["api_key"]);
    Ok(())
}

async fn after_a_time_a_key_is_free_again(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        request_retention: Duration::ZERO,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let first = once(&client, "/v1/vms", "k", &json!({})).await?.json();
    let second = once(&client, "/v1/vms", "k", &json!({})).await?.json();
    assert_ne!(first["vm_id"], second["vm_id"]);
    Ok(())
}
