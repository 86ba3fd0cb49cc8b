use crate::text;
use anyhow::Result;
use axum::http::Method;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::json;

on_each_database!(
    keys_are_made_changed_and_deleted_under_both_paths,
    wrong_requests_are_refused,
);

async fn keys_are_made_changed_and_deleted_under_both_paths(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    for path in ["/v1/api-keys/", "/v1/api-keys"] {
        let made = client
            .post(path, &json!({"description": "ci", "anything": 1}))
            .await?;
        assert_eq!(made.status, 200, "{made:?}");
        let made = made.json();
        let (id, key) = (
            made["id"].as_i64().unwrap_or_default(),
            text(&made["api_key"]),
        );
        assert!(key.starts_with("instavm_sk_") && key.len() == 54);
        assert!(key.starts_with(&text(&made["key_prefix"])));
        assert_eq!(made["description"], "ci");
        let other = platform.client_with(Some(&key));
        assert_eq!(other.get("/v1/users/me").await?.status, 200);

        let one = format!("/v1/api-keys/{id}");
        let shown = client.get(&one).await?;
        assert!(shown.json().get("api_key").is_none());
        assert!(shown.json()["last_used_at"].is_string());
        let list = client.get(path).await?.json();
        assert!(
            list.as_array()
                .is_some_and(|keys| keys.iter().any(|key| key["id"] == id))
        );
        assert!(!list.to_string().contains(&key));

        let patch = async |body: &str| {
            client
                .call(Method::PATCH, &one, "application/json", body.to_owned())
                .await
        };
        assert_eq!(
            patch(r#"{"is_active": false}"#).await?.json()["is_active"],
            false
        );
        assert_eq!(other.get("/v1/users/me").await?.status, 401);
        let back = patch(r#"{"is_active": true, "description": "new"}"#)
            .await?
            .json();
        assert_eq!(back["description"], "new");
        assert_eq!(other.get("/v1/users/me").await?.status, 200);
        assert_eq!(patch(r#"{"is_active": "yes"}"#).await?.status, 422);

        assert_eq!(
            client.delete(&one).await?.json(),
            json!({"status": "deleted", "id": id})
        );
        assert_eq!(other.get("/v1/users/me").await?.status, 401);
        assert_eq!(client.delete(&one).await?.status, 404);
        assert_eq!(client.get(&one).await?.status, 404);
    }
    Ok(())
}

async fn wrong_requests_are_refused(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let answer = client
        .post("/v1/api-keys/", &json!({"description": 5}))
        .await?;
    assert_eq!(answer.status, 422);
    assert!(answer.detail().starts_with("description"));
    let long = json!({"description": "x".repeat(1_001)});
    assert_eq!(client.post("/v1/api-keys/", &long).await?.status, 422);
    for id in ["0", "999", "x", "99999999999999999999"] {
        assert_eq!(
            client.get(&format!("/v1/api-keys/{id}")).await?.status,
            404,
            "{id}"
        );
    }
    Ok(())
}
