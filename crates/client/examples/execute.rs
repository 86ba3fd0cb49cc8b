//! Runs Python and shell code in one session.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example execute
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::{Client, Code};
use std::time::Duration;

#[tokio::main]
async fn main() -> instavm::Result<()> {
    let client = Client::builder()
        .cpu_count(1)
        .memory_mb(512)
        .env("GREETING", "hello")
        .lifetime(Duration::from_secs(120))
        .build()
        .await?;

    // Variables stay from one execution to the next.
    client.execute("n = 6").await?;
    let answer = client.execute("print(n * 7)").await?;
    println!("python says {}", answer.stdout.trim_end());

    let shell = Code::bash("echo \"$GREETING from bash\"; exit 3").timeout(Duration::from_secs(10));
    let shell = client.execute(shell).await?;
    println!(
        "{} (exit code {})",
        shell.stdout.trim_end(),
        shell.exit_code
    );

    client.kill().await?;
    Ok(())
}
