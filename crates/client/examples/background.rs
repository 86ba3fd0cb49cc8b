//! Starts code in the background and waits for its result.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example background
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::{Client, Code};
use std::time::Duration;

#[tokio::main]
async fn main() -> instavm::Result<()> {
    let client = Client::from_env().await?;
    let started = client
        .execute_async(Code::python("print(sum(range(1_000_000)))"))
        .await?;
    println!("task {} is {}", started.task_id, started.status);

    let (interval, timeout) = (Duration::from_millis(100), Duration::from_secs(60));
    let task = client
        .get_task_result(&started.task_id, interval, timeout)
        .await?;
    println!("it wrote {}", task.stdout.trim_end());

    client.kill().await?;
    Ok(())
}
