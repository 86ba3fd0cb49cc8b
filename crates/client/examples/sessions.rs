//! Looks at sessions: their record, their state, what they use, and those with a label.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example sessions
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::{Client, Sandboxes};

#[tokio::main]
async fn main() -> instavm::Result<()> {
    let client = Client::builder()
        .metadata("team", "research")
        .build()
        .await?;
    let info = client.get_session_info().await?;
    println!("session {} has {} MiB", info.session_id, info.memory_mb);
    println!("active: {}", client.is_session_active().await);
    println!(
        "memory in use: {} bytes",
        client.get_usage().await?.memory_used
    );

    let team = client
        .list_sandboxes(Sandboxes::all().with("team", "research"))
        .await?;
    println!("the team has {} sandboxes", team.len());

    // A private share: it opens with an API key, or by logging in.
    let url = client.get_session_app_url(Some(8080)).await?;
    println!("port 8080 is at {}", url.app_url);

    let ended = client.kill().await?;
    println!("session {} is {}", ended.session_id, ended.status);
    Ok(())
}
