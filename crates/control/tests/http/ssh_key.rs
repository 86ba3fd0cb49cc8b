use anyhow::Result;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::json;

on_each_database!(
    keys_are_added_once_listed_and_deleted,
    what_is_no_key_is_refused,
);

/// A key with the bytes 0 to 31, and what `ssh-keygen -l` says of it.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@host";

async fn keys_are_added_once_listed_and_deleted(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let added = client
        .post("/v1/ssh-keys", &json!({"public_key": format!("{KEY}\n")}))
        .await?;
    assert_eq!(added.status, 200, "{added:?}");
    let key = added.json();
    assert!(key["id"].is_i64());
    assert_eq!(key["comment"], "me@host");
    assert_eq!(
        key["fingerprint"],
        "SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA"
    );
    let again = client
        .post("/v1/ssh-keys", &json!({"public_key": KEY}))
        .await?;
    assert_eq!(again.status, 200);
    assert_eq!(again.json(), key);
    assert_eq!(
        client.get("/v1/ssh-keys").await?.json(),
        json!({"keys": [key]})
    );
    let path = format!("/v1/ssh-keys/{}", key["id"]);
    assert_eq!(
        client.delete(&path).await?.json(),
        json!({"status": "deleted", "id": key["id"]})
    );
    assert_eq!(client.delete(&path).await?.status, 404);
    assert_eq!(
        client.get("/v1/ssh-keys").await?.json(),
        json!({"keys": []})
    );
    Ok(())
}

async fn what_is_no_key_is_refused(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    for wrong in [json!(""), json!("ssh-ed25519 AAAA"), json!(7), json!(null)] {
        let answer = client
            .post("/v1/ssh-keys", &json!({"public_key": wrong}))
            .await?;
        assert_eq!(answer.status, 422, "{wrong}");
        assert!(
            answer.detail().starts_with("public_key"),
            "{}",
            answer.detail()
        );
    }
    assert_eq!(client.delete("/v1/ssh-keys/x").await?.status, 404);
    Ok(())
}
