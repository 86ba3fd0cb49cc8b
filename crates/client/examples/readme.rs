//! The example of the README, word for word.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example readme
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::{Client, Code};
use std::time::Duration;

#[tokio::main]
async fn main() -> instavm::Result<()> {
    let client = Client::from_env().await?;
    client.execute("x = 42").await?;
    println!("{}", client.execute("print(x)").await?.stdout.trim()); // 42

    client
        .upload_bytes("name,age\nada,36\n", "/app/data.csv")
        .await?;
    client
        .execute(Code::bash("sort data.csv | head -n 1 > sorted.csv"))
        .await?;
    let sorted = client.download_bytes("sorted.csv").await?;
    println!("{}", String::from_utf8_lossy(&sorted).trim()); // ada,36

    let task = client
        .execute_async(Code::bash("sleep 1 && echo done"))
        .await?;
    let (interval, timeout) = (Duration::from_millis(100), Duration::from_secs(60));
    let task = client
        .get_task_result(&task.task_id, interval, timeout)
        .await?;
    println!("{}", task.stdout.trim()); // done
    client.kill().await?;
    Ok(())
}
