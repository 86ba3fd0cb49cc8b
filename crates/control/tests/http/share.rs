//! Shares on record: one for each port of a VM, as long as the VM lives.

use crate::{eventually, session_of, vm_of};
use anyhow::Result;
use axum::body::Body;
use axum::http::Request;
use instavm_node_api::Ending;
use instavm_testkit::{Answer, Client, DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};

on_each_database!(
    a_port_has_one_share,
    the_vm_wins_over_the_session,
    bad_requests_are_told_what_is_wrong,
    visibility_changes_and_revoking_is_final,
    shares_end_with_their_vm,
    shares_stay_where_they_are_across_a_restart,
    a_request_under_a_key_makes_one_share,
    without_room_nothing_is_on_record,
);

async fn begin(platform: &TestPlatform) -> Result<(Client, String, String)> {
    let client = platform.client();
    let session = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &session).await?;
    Ok((client, session, vm))
}

async fn share(client: &Client, body: Value) -> Result<Value> {
    let answer = client.post("/v1/shares", &body).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(answer.json())
}

async fn patch(client: &Client, share: &Value, body: Value) -> Result<Answer> {
    let id = share["share_id"].as_str().unwrap_or_default();
    crate::patch(client, &format!("/v1/shares/{id}"), &body).await
}

/// Asks for a share under an idempotency key.
async fn once(client: &Client, key: &str, body: &Value) -> Result<Answer> {
    let request = Request::post("/v1/shares")
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(Body::from(body.to_string()))?;
    client.send(request).await
}

async fn a_port_has_one_share(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let made = share(&client, json!({"vm_id": vm, "port": 8000})).await?;
    assert_eq!(
        (&made["port"], &made["is_public"]),
        (&json!(8000), &json!(false))
    );
    assert_eq!(
        (&made["vm_id"], &made["session_id"]),
        (&json!(vm), &json!(session))
    );
    assert_eq!(made["status"], "open");
    let again = share(&client, json!({"session_id": session, "port": 8000.0})).await?;
    assert_eq!(
        (&again["share_id"], &again["url"]),
        (&made["share_id"], &made["url"])
    );
    let public = share(
        &client,
        json!({"vm_id": vm, "port": 8000, "is_public": true}),
    )
    .await?;
    assert_eq!(
        (&public["share_id"], &public["is_public"]),
        (&made["share_id"], &json!(true))
    );
    let unasked = share(&client, json!({"vm_id": vm, "port": 8000})).await?;
    assert_eq!(unasked["is_public"], true);
    let other = share(&client, json!({"vm_id": vm, "port": 8001})).await?;
    assert_ne!(other["url"], made["url"]);
    let open = platform.doors.open_shares();
    assert_eq!(open.len(), 2);
    let id = made["share_id"].as_str().unwrap_or_default();
    assert!(open[id].is_public && open[id].vm.0 == vm && open[id].port == 8000);
    Ok(())
}

async fn the_vm_wins_over_the_session(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, _, vm) = begin(&platform).await?;
    let other = session_of(&client, &platform.key).await?;
    let made = share(
        &client,
        json!({"vm_id": vm, "session_id": other, "port": 80}),
    )
    .await?;
    assert_eq!(made["vm_id"], json!(vm));
    Ok(())
}

async fn bad_requests_are_told_what_is_wrong(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    for (body, field) in [
        (json!({"vm_id": vm}), "port"),
        (json!({"vm_id": vm, "port": 0}), "port"),
        (json!({"vm_id": vm, "port": 65536}), "port"),
        (json!({"vm_id": vm, "port": "http"}), "port"),
        (
            json!({"vm_id": vm, "port": 80, "is_public": "yes"}),
            "is_public",
        ),
        (json!({"port": 80}), "vm_id"),
        (
            json!({"port": 80, "vm_id": "", "session_id": null}),
            "vm_id",
        ),
    ] {
        let answer = client.post("/v1/shares", &body).await?;
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        assert!(answer.detail().contains(field), "{}", answer.detail());
    }
    for body in [
        json!({"vm_id": "vm_nowhere", "port": 80}),
        json!({"session_id": "8e3a1e4e-9d0c-4d5c-8f6e-000000000000", "port": 80}),
        json!({"vm_id": "vm_nowhere", "session_id": session, "port": 80}),
    ] {
        assert_eq!(
            client.post("/v1/shares", &body).await?.status,
            404,
            "{body}"
        );
    }
    let made = share(&client, json!({"vm_id": vm, "port": 80})).await?;
    for body in [
        json!({}),
        json!({"revoke": false}),
        json!({"is_public": null}),
    ] {
        let answer = patch(&client, &made, body).await?;
        assert_eq!(answer.status, 422, "{answer:?}");
    }
    let nowhere = json!({"share_id": "sh-nowhere"});
    let answer = patch(&client, &nowhere, json!({"revoke": true})).await?;
    assert_eq!(answer.status, 404);
    Ok(())
}

async fn visibility_changes_and_revoking_is_final(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, _, vm) = begin(&platform).await?;
    let made = share(&client, json!({"vm_id": vm, "port": 80, "is_public": true})).await?;
    let private = patch(&client, &made, json!({"is_public": false}))
        .await?
        .json();
    assert_eq!(private["is_public"], false);
    let id = made["share_id"].as_str().unwrap_or_default();
    assert!(!platform.doors.open_shares()[id].is_public);

    let revoked = patch(&client, &made, json!({"revoke": true})).await?.json();
    assert_eq!(
        (&revoked["status"], &revoked["url"]),
        (&json!("revoked"), &made["url"])
    );
    assert!(platform.doors.open_shares().is_empty());
    assert_eq!(
        patch(&client, &made, json!({"revoke": true})).await?.status,
        200
    );
    assert_eq!(
        patch(&client, &made, json!({"is_public": true}))
            .await?
            .status,
        409
    );
    let shown = client.get(&format!("/v1/shares/{id}")).await?.json();
    assert_eq!(shown["status"], "revoked");
    let next = share(&client, json!({"vm_id": vm, "port": 80})).await?;
    assert_ne!(next["share_id"], made["share_id"]);
    Ok(())
}

async fn shares_end_with_their_vm(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let made = share(&client, json!({"vm_id": vm, "port": 80})).await?;
    platform.node.end(&vm, Ending::Expired);
    let path = format!(
        "/v1/shares/{}",
        made["share_id"].as_str().unwrap_or_default()
    );
    eventually(&client, &path, |shown| shown["status"] == "ended").await?;
    assert!(platform.doors.open_shares().is_empty());
    let answer = client
        .post("/v1/shares", &json!({"vm_id": vm, "port": 80}))
        .await?;
    assert_eq!(answer.status, 409);
    // The session gets another VM, and with it another share.
    let next = share(&client, json!({"session_id": session, "port": 80})).await?;
    assert_ne!(
        (&next["vm_id"], &next["share_id"]),
        (&made["vm_id"], &made["share_id"])
    );
    let all = client.get("/v1/shares").await?.json();
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    let of_vm = client.get(&format!("/v1/shares?vm_id={vm}")).await?.json();
    assert_eq!(of_vm[0]["share_id"], made["share_id"]);
    Ok(())
}

async fn shares_stay_where_they_are_across_a_restart(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let stays = share(&client, json!({"vm_id": vm, "port": 80, "is_public": true})).await?;
    let moves = share(&client, json!({"vm_id": vm, "port": 81})).await?;
    let dies = {
        let other = session_of(&client, &platform.key).await?;
        share(&client, json!({"session_id": other, "port": 80})).await?
    };
    let stopped = platform.stop().await?;
    stopped
        .node
        .end_silently(dies["vm_id"].as_str().unwrap_or_default());
    let port = moves["url"].as_str().and_then(|url| url.rsplit_once(':'));
    stopped
        .doors
        .take_port(port.map_or(0, |(_, port)| port.parse().unwrap_or(0)));
    let platform = stopped.start().await?;
    let client = platform.client();
    let now = share(&client, json!({"session_id": session, "port": 80})).await?;
    assert_eq!(
        (&now["share_id"], &now["url"]),
        (&stays["share_id"], &stays["url"])
    );
    assert_eq!(now["is_public"], true);
    let moved = share(&client, json!({"vm_id": vm, "port": 81})).await?;
    assert_eq!(moved["share_id"], moves["share_id"]);
    assert_ne!(moved["url"], moves["url"]);
    let id = dies["share_id"].as_str().unwrap_or_default();
    let ended = client.get(&format!("/v1/shares/{id}")).await?.json();
    assert_eq!(ended["status"], "ended");
    assert_eq!(platform.doors.open_shares().len(), 2);
    Ok(())
}

async fn a_request_under_a_key_makes_one_share(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, _, vm) = begin(&platform).await?;
    let body = json!({"vm_id": vm, "port": 80, "is_public": true});
    let first = once(&client, "key-1", &body).await?;
    assert_eq!(first.status, 200, "{first:?}");
    patch(&client, &first.json(), json!({"revoke": true})).await?;
    let again = once(&client, "key-1", &body).await?;
    assert_eq!(again.json(), first.json());
    Ok(())
}

async fn without_room_nothing_is_on_record(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, _, vm) = begin(&platform).await?;
    platform.doors.set_full(true);
    let body = json!({"vm_id": vm, "port": 80});
    let answer = client.post("/v1/shares", &body).await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(client.get("/v1/shares").await?.json(), json!([]));
    platform.doors.set_full(false);
    share(&client, body).await?;
    Ok(())
}
