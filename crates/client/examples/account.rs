//! Manages an account: the user, API keys and SSH keys. It needs no session.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example account
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::{Client, UpdateApiKey};

#[tokio::main]
async fn main() -> instavm::Result<()> {
    let client = Client::builder().without_session().build().await?;
    println!("you are {}", client.get_current_user().await?.email);

    let key = client.api_keys().create("an example").await?;
    let off = UpdateApiKey {
        is_active: Some(false),
        ..UpdateApiKey::default()
    };
    let record = client.api_keys().update(key.record.id, &off).await?;
    println!("key {} is active: {}", record.key_prefix, record.is_active);
    client.api_keys().delete(record.id).await?;

    for key in client.list_ssh_keys().await? {
        println!("SSH key {} {}", key.fingerprint, key.comment);
    }
    Ok(())
}
