//! The control plane through HTTP, over a simulated node.
#![allow(missing_docs, reason = "tests")]

mod account;
mod api_key;
mod body;
mod checkpoint;
mod clone;
mod egress;
mod execution;
mod file;
mod fuzz;
mod idempotency;
mod mount;
mod openapi;
mod outage;
mod protocol;
mod pty;
mod restart;
mod session;
mod share;
mod snapshot;
mod ssh_key;
mod tenancy;
mod vm;
mod volume;

use anyhow::Result;
use instavm_testkit::{Answer, Client};
use serde_json::{Value, json};

/// Starts a session of the client's; returns its id.
async fn session_of(client: &Client, key: &str) -> Result<String> {
    let answer = client
        .post("/v1/sessions/session", &json!({"api_key": key}))
        .await?;
    anyhow::ensure!(answer.status == 200, "no session: {answer:?}");
    Ok(text(&answer.json()["session_id"]))
}

/// The VM that a session has.
async fn vm_of(client: &Client, session: &str) -> Result<String> {
    let answer = client
        .get(&format!("/v1/sessions/session/{session}"))
        .await?;
    Ok(text(&answer.json()["vm_id"]))
}

/// Runs code in a session.
async fn execute(client: &Client, session: &str, code: &str) -> Result<Answer> {
    client
        .post("/execute", &json!({"session_id": session, "command": code}))
        .await
}

/// Asks for something until it is as it should be. What is asked for happens by itself, so this ends.
async fn eventually(client: &Client, path: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    let asking = async {
        loop {
            let answer = client.get(path).await?.json();
            if fits(&answer) {
                return anyhow::Ok(answer);
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), asking).await?
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Settings under which what is tried again is so at once.
fn quick() -> instavm_control::Settings {
    let pause = std::time::Duration::from_millis(5);
    instavm_control::Settings {
        retry_pause: pause,
        keep_patience: 4 * pause,
        ..Default::default()
    }
}

/// Makes a VM; returns its record.
async fn vm_with(client: &Client, body: &Value) -> Result<Value> {
    let answer = client.post("/v1/vms", body).await?;
    anyhow::ensure!(answer.status == 200, "no VM: {answer:?}");
    Ok(answer.json())
}

/// Makes a volume of 10 MiB; returns its id.
async fn volume_of(client: &Client, name: &str) -> Result<String> {
    let body = json!({"name": name, "quota_bytes": 10 << 20});
    let answer = client.post("/v1/volumes", &body).await?;
    anyhow::ensure!(answer.status == 200, "no volume: {answer:?}");
    Ok(text(&answer.json()["id"]))
}

/// Uploads a file into a volume.
async fn upload_into(
    client: &Client,
    volume: &str,
    parts: &[(&str, &str)],
    content: &[u8],
) -> Result<Answer> {
    let mut body = Vec::new();
    for (name, text) in parts {
        let part =
            format!("--limit\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n");
        body.extend_from_slice(part.as_bytes());
    }
    body.extend_from_slice(
        b"--limit\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n",
    );
    body.extend_from_slice(content);
    body.extend_from_slice(b"\r\n--limit--\r\n");
    let path = format!("/v1/volumes/{volume}/files/upload");
    let kind = "multipart/form-data; boundary=limit";
    client
        .call(axum::http::Method::POST, &path, kind, body)
        .await
}

/// PATCH of JSON.
async fn patch(client: &Client, path: &str, body: &Value) -> Result<Answer> {
    let kind = "application/json";
    client
        .call(axum::http::Method::PATCH, path, kind, body.to_string())
        .await
}
