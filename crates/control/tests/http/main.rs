//! The control plane through HTTP, over a simulated node.
#![allow(missing_docs, reason = "tests")]

mod account;
mod api_key;
mod body;
mod execution;
mod file;
mod fuzz;
mod openapi;
mod outage;
mod protocol;
mod pty;
mod restart;
mod session;
mod ssh_key;
mod tenancy;
mod vm;

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
