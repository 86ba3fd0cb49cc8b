use crate::session_of;
use anyhow::Result;
use axum::http::{Method, Request};
use instavm_control::Settings;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::json;

on_each_database!(
    paths_are_taken_as_they_are_and_never_redirected,
    wrong_methods_are_405_with_the_right_ones,
    malformed_bodies_are_400,
    big_commands_work_and_bigger_ones_name_the_limit,
    limits_are_the_operators,
    keys_are_refused_whatever_they_look_like,
    operators_see_health_figures_and_documents,
);

async fn paths_are_taken_as_they_are_and_never_redirected(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    for path in ["//v1/users/me", "///v1/users/me"] {
        assert_eq!(client.get(path).await?.status, 200, "{path}");
    }
    for path in [
        "/v1/users/me/",
        "/v1/ssh-keys/",
        "/v1/api-keys",
        "/v1/sessions/sandboxes/?limit=5",
        "/healthz/",
    ] {
        assert_eq!(client.get(path).await?.status, 200, "{path}");
    }
    let index = platform.client_with(None).get("/").await?;
    assert_eq!(index.status, 200);
    assert_eq!(index.json()["docs"], "/docs/");
    for path in [
        "/v1/users/me//",
        "/v1/nothing",
        "/v1/nothing/",
        "/v1",
        "/v1/vms/a/b",
        "/%ff",
    ] {
        let answer = client.get(path).await?;
        assert_eq!(answer.status, 404, "{path}");
        assert!(!answer.detail().is_empty(), "{path}: {answer:?}");
    }
    // Decoded after the path is split: the id holds a slash, so it names nothing.
    for id in ["a%2Fb", "%3A", "%20", "..", "%2e%2e", "%ff"] {
        assert_eq!(
            client.get(&format!("/v1/vms/{id}")).await?.status,
            404,
            "{id}"
        );
    }
    Ok(())
}

async fn wrong_methods_are_405_with_the_right_ones(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    for (method, path, allowed) in [
        (Method::GET, "/execute", "POST"),
        (Method::GET, "/execute/", "POST"),
        (Method::DELETE, "/v1/vms", "POST"),
        (Method::POST, "/v1/vms/", "GET"),
        (Method::PUT, "/v1/api-keys/1", "PATCH"),
    ] {
        let answer = client.call(method, path, "application/json", "{}").await?;
        assert_eq!(answer.status, 405, "{path}");
        assert!(!answer.detail().is_empty(), "{path}: {answer:?}");
        let allow = answer
            .headers
            .get("allow")
            .and_then(|allow| allow.to_str().ok());
        assert!(
            allow.is_some_and(|allow| allow.contains(allowed)),
            "{path}: {allow:?}"
        );
    }
    Ok(())
}

async fn malformed_bodies_are_400(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let deep = "[".repeat(100_000);
    for body in [
        "",
        "{",
        "{\"command\": }",
        "\u{FEFF}{}",
        "{} x",
        "'x'",
        deep.as_str(),
    ] {
        for path in [
            "/execute",
            "/kill",
            "/v1/vms",
            "/v1/sessions/session",
            "/v1/ssh-keys",
        ] {
            let answer = client
                .call(Method::POST, path, "application/json", body.to_owned())
                .await?;
            assert_eq!(answer.status, 400, "{path} {body:.20}: {answer:?}");
            assert!(!answer.detail().is_empty());
            assert!(answer.body.len() < 2_000, "the answer echoes too much");
        }
    }
    let answer = client
        .call(Method::POST, "/kill", "application/json", vec![b'{', 0xff])
        .await?;
    assert_eq!(answer.status, 400);
    let lone_surrogate = r#"{"command": "\ud800"}"#;
    let answer = client
        .call(Method::POST, "/execute", "application/json", lone_surrogate)
        .await?;
    assert_eq!(answer.status, 400);
    Ok(())
}

async fn big_commands_work_and_bigger_ones_name_the_limit(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let text = "x".repeat(10 << 20);
    let answer = client
        .post(
            "/execute",
            &json!({"session_id": id, "command": format!("echo {text}")}),
        )
        .await?;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json()["stdout"].as_str().map(str::len),
        Some((10 << 20) + 1)
    );
    let over = "x".repeat(17 << 20);
    let answer = client
        .post("/execute", &json!({"session_id": id, "command": over}))
        .await?;
    assert_eq!(answer.status, 413);
    assert!(answer.detail().contains("16777216"), "{}", answer.detail());
    // A wrong type of any length is not sent back.
    let answer = client
        .post(
            "/execute",
            &json!({"session_id": id, "command": "x", "timeout": text}),
        )
        .await?;
    assert_eq!(answer.status, 422);
    assert!(answer.body.len() < 2_000);
    Ok(())
}

async fn limits_are_the_operators(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        body_limit: 200,
        memory_range_mb: 128..=16_384,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let answer = client
        .post("/v1/vms", &json!({"memory_mb": 16_384}))
        .await?;
    assert_eq!(answer.json()["memory_mb"], 16_384);
    let answer = client
        .post("/v1/vms", &json!({"metadata": {"x": "y".repeat(200)}}))
        .await?;
    assert_eq!(answer.status, 413);
    assert!(answer.detail().contains("200 bytes"));
    Ok(())
}

async fn keys_are_refused_whatever_they_look_like(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    for key in ["", "x", "instavm_sk_", &"k".repeat(5_000)] {
        let answer = platform.client_with(Some(key)).get("/v1/users/me").await?;
        assert_eq!(answer.status, 401, "{key:.20}");
        assert!(answer.detail().contains("X-API-Key"));
    }
    let raw = Request::builder()
        .uri("/v1/users/me")
        .header(
            "x-api-key",
            axum::http::HeaderValue::from_bytes(b"\xff\xfe")?,
        )
        .body(axum::body::Body::empty())?;
    assert_eq!(platform.client_with(None).send(raw).await?.status, 401);
    Ok(())
}

async fn operators_see_health_figures_and_documents(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let anonymous = platform.client_with(None);
    assert_eq!(anonymous.get("/healthz").await?.json()["status"], "ok");
    let id = session_of(&client, &platform.key).await?;
    crate::execute(&client, &id, "echo x").await?;
    client.get("/v1/some/path").await?;
    let figures = anonymous.get("/metrics").await?;
    assert_eq!(figures.status, 200);
    let text = String::from_utf8(figures.body.to_vec())?;
    for line in [
        r#"instavm_http_requests_total{method="POST",route="/execute",status="200"} 1"#,
        r#"instavm_http_requests_total{method="GET",route="unmatched",status="404"} 1"#,
        r#"instavm_executions_total{language="python",outcome="ok"} 1"#,
        r#"instavm_vm_creations_total{outcome="ok"} 1"#,
        "instavm_vms 1",
        "instavm_pool_ready 3",
        r#"instavm_http_request_duration_seconds_count{method="POST",route="/execute"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert_eq!(
        anonymous.get("/openapi.json").await?.json()["info"]["title"],
        "InstaVM"
    );
    let page = anonymous.get("/docs/").await?;
    assert_eq!(page.status, 200);
    assert!(String::from_utf8_lossy(&page.body).contains("swagger"));
    Ok(())
}
