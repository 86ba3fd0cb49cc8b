use crate::{execute, session_of};
use anyhow::{Context, Result};
use axum::http::Method;
use instavm_control::Settings;
use instavm_testkit::{Client, DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

on_each_database!(
    a_body_that_pauses_or_takes_too_long_is_a_408,
    strangers_cannot_make_the_platform_hold_much,
    long_bodies_together_have_a_bound,
    the_time_limit_begins_when_the_body_is_there,
    refusals_speak_of_the_request,
    refusals_of_texts_and_queries_speak_of_them,
    numbers_and_environments_are_taken_as_callers_write_them,
    session_ids_may_be_written_in_any_way,
);

/// Sends the beginning of a request that announces a thousand bytes.
async fn begin(platform: &TestPlatform, path: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(platform.address()).await?;
    let key = &platform.key;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: {key}\r\nContent-Length: 1000\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

/// Head and body of the answer, which ends the connection.
async fn rest(mut stream: TcpStream) -> Result<(String, Value)> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok((head.to_owned(), serde_json::from_str(body)?))
}

async fn a_body_that_pauses_or_takes_too_long_is_a_408(kind: DatabaseKind) -> Result<()> {
    let (short, long) = (Duration::from_millis(50), Duration::from_secs(600));
    for (body_idle, body_time) in [(short, long), (long, short)] {
        let settings = Settings {
            body_idle,
            body_time,
            ..Settings::default()
        };
        let platform = TestPlatform::with(kind, settings).await?;
        for path in [
            "/v1/sessions/session",
            "/execute",
            "/v1/ssh-keys",
            "/download",
        ] {
            let (head, body) = rest(begin(&platform, path).await?).await?;
            assert!(head.starts_with("HTTP/1.1 408"), "{path}: {head}");
            let detail = body["detail"].as_str().unwrap_or_default();
            assert!(detail.contains("too slowly"), "{path}: {body}");
        }
    }
    Ok(())
}

async fn strangers_cannot_make_the_platform_hold_much(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let stranger = platform.client_with(None);
    let body = json!({"api_key": platform.key, "metadata": {"a": "x".repeat(1 << 20)}});
    let answer = stranger.post("/v1/sessions/session", &body).await?;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.detail().contains("1048576"), "{answer:?}");
    // Everywhere else the key is asked for before any of the body is.
    for path in [
        "/execute",
        "/v1/vms",
        "/v1/ssh-keys",
        "/v1/api-keys/",
        "/kill",
    ] {
        let mut stream = TcpStream::connect(platform.address()).await?;
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let (head, _) = rest(stream).await?;
        assert!(head.starts_with("HTTP/1.1 401"), "{path}: {head}");
    }
    Ok(())
}

async fn long_bodies_together_have_a_bound(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        body_limit: 100_000,
        body_memory: 200_000,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let long = format!("gate door\nrem {}", "x".repeat(90_000));
    let first = [
        tokio::spawn(run(client.clone(), id.clone(), long.clone())),
        tokio::spawn(run(client.clone(), id.clone(), long.clone())),
    ];
    platform.node.gate_occupied("door", 2).await;
    let answer = execute(&client, &id, &long).await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(execute(&client, &id, "echo short").await?.status, 200);
    platform.node.open_gate("door");
    for running in first {
        assert_eq!(running.await??, 200);
    }
    assert_eq!(execute(&client, &id, &long).await?.status, 200);
    Ok(())
}

async fn run(client: Client, session: String, code: String) -> Result<u16> {
    Ok(execute(&client, &session, &code).await?.status.as_u16())
}

async fn the_time_limit_begins_when_the_body_is_there(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let body = json!({"session_id": id, "command": "sleep 0.7\necho done", "timeout": 1});
    let body = format!("{:<1000}", body.to_string());
    let mut stream = begin(&platform, "/execute").await?;
    stream.write_all(&body.as_bytes()[1..500]).await?;
    // Longer than the code's whole time.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    stream.write_all(&body.as_bytes()[500..]).await?;
    let (head, answer) = rest(stream).await?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(answer["stdout"], "done\n", "{answer}");
    Ok(())
}

async fn refusals_speak_of_the_request(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let start = "/v1/sessions/session";
    for (path, body, status, detail) in [
        (start, "[]", 422, "the body must be a JSON object"),
        (
            start,
            r#"["key", 300, 256, 1, {}, {}]"#,
            422,
            "the body must be a JSON object",
        ),
        (start, " null", 422, "the body must be a JSON object"),
        (
            start,
            r#"{"vm_lifetime_seconds": "x"}"#,
            422,
            "vm_lifetime_seconds: must be an integer",
        ),
        (
            "/v1/vms",
            r#"{"egress_policy": [true]}"#,
            422,
            "egress_policy: must be a JSON object",
        ),
        (
            "/v1/vms?wait=maybe",
            "{}",
            422,
            "wait: must be true or false",
        ),
        ("/kill", "{}", 422, "session_id: is missing"),
    ] {
        let answer = client
            .call(Method::POST, path, "application/json", body)
            .await?;
        assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
        assert_eq!(answer.detail(), detail, "{path} {body}");
    }
    Ok(())
}

async fn refusals_of_texts_and_queries_speak_of_them(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let half = r#"{"session_id": "x", "command": "print(1) \ud800"}"#;
    let answer = client
        .call(Method::POST, "/execute", "application/json", half)
        .await?;
    assert_eq!(answer.status, 400);
    assert!(
        answer
            .detail()
            .starts_with("command: has half of a surrogate pair"),
        "{answer:?}"
    );
    for (path, detail) in [
        (
            "/v1/sessions/sandboxes?limit=x",
            "limit: must be an integer",
        ),
        ("/v1/sessions/sandboxes?limit=", "limit: must be an integer"),
        ("/v1/vms/?limit=1.5", "limit: must be an integer"),
        ("/v1/vms/?limit=1&limit=2", "limit: is there more than once"),
    ] {
        let answer = client.get(path).await?;
        assert_eq!(answer.status, 422, "{path}: {answer:?}");
        assert_eq!(answer.detail(), detail, "{path}");
    }
    Ok(())
}

async fn numbers_and_environments_are_taken_as_callers_write_them(
    kind: DatabaseKind,
) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let body = json!({"vm_lifetime_seconds": 60.0, "memory_mb": 256.0, "vcpu_count": 1.0,
                      "env": {"A": null, "B": 2, "C": true}});
    let answer = client.post("/v1/sessions/session", &body).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let session = answer.json();
    assert_eq!(session["vm_lifetime_seconds"], 60);
    assert_eq!(session["memory_mb"], 256);
    let id = crate::text(&session["session_id"]);
    let run = execute(&client, &id, "env A\nenv B\nenv C").await?.json();
    assert_eq!(run["stdout"], "\n2\ntrue\n");
    for (timeout, status) in [
        (json!(60.0), 200),
        (json!(2.5), 200),
        (json!(0.1), 200),
        (json!(600.5), 422),
        (json!(0.0), 422),
        (json!(-0.5), 422),
        (json!(1e300), 422),
        (json!("5"), 422),
        (json!(true), 422),
    ] {
        let body = json!({"session_id": id, "command": "echo x", "timeout": timeout});
        let answer = client.post("/execute", &body).await?;
        assert_eq!(answer.status, status, "{timeout}: {answer:?}");
        if status == 422 {
            assert!(answer.detail().starts_with("timeout: "), "{answer:?}");
        }
    }
    Ok(())
}

async fn session_ids_may_be_written_in_any_way(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    for written in [id.to_uppercase(), id.replace('-', "")] {
        let run = execute(&client, &written, "echo x").await?;
        assert_eq!(run.status, 200, "{written}");
        assert_eq!(run.json()["session_id"], json!(id));
        let path = format!("/v1/sessions/status/{written}");
        assert_eq!(client.get(&path).await?.json()["session_id"], json!(id));
        let uploaded = client.upload(&written, "f", false, b"x").await?.json();
        assert_eq!(uploaded["session_id"], json!(id));
    }
    Ok(())
}
