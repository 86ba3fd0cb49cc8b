//! The client for programs without `async`.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example blocking
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::blocking::Client;
use std::io::Read;

fn main() -> instavm::Result<()> {
    let client = Client::from_env()?;
    println!(
        "python says {}",
        client.execute("print(6 * 7)")?.stdout.trim_end()
    );

    client.upload_reader(std::io::Cursor::new("some text"), "text.txt")?;
    let mut text = String::new();
    match client
        .download_stream("text.txt")?
        .read_to_string(&mut text)
    {
        Ok(_) => println!("the file says {text}"),
        Err(error) => println!("the file broke off: {error}"),
    }
    client.kill()?;
    Ok(())
}
