//! Sends a file, works on it, and fetches the result, without ever having it in memory as a whole.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example files -- FILE
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::{Client, Code};
use std::path::PathBuf;

#[tokio::main]
async fn main() -> instavm::Result<()> {
    let local = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("Cargo.toml"), PathBuf::from);
    let client = Client::from_env().await?;

    let sent = client.upload_file(&local, "input.txt").await?;
    println!("sent {} bytes", sent.size);
    client.execute(Code::bash("cp input.txt copy.txt")).await?;
    let back = std::env::temp_dir().join(format!("instavm-copy-{}.txt", std::process::id()));
    let size = client.download_file("input.txt", &back).await?;
    println!("fetched {size} bytes");

    client.upload_bytes("a line\n", "line.txt").await?;
    let mut pieces = client.download_stream("line.txt").await?;
    while let Some(piece) = pieces.chunk().await? {
        println!("a piece of {} bytes", piece.len());
    }

    // The copy has done its duty.
    let _ = std::fs::remove_file(back);
    client.kill().await?;
    Ok(())
}
