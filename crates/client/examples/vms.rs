//! Makes a VM, changes its memory, clones it with what it has on its disk, and ends all of them.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example vms
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::{Client, NewClone, NewVm, UpdateVm};
use std::time::Duration;

#[tokio::main]
async fn main() -> instavm::Result<()> {
    let client = Client::builder().without_session().build().await?;
    let vms = client.vms();
    let vm = NewVm::default()
        .lifetime(Duration::from_secs(600))
        .memory_mb(512)
        .metadata("made-by", "an example");
    let first = vms.create(vm).await?.vm;
    println!("{} is {}", first.vm_id, first.status);

    let more = UpdateVm {
        memory_mb: Some(1024),
        ..UpdateVm::default()
    };
    let grown = vms.update(&first.vm_id, &more).await?;
    println!("it has {} MiB", grown.memory_mb);

    // A VM has a session; what runs in it is as in any other.
    client.use_session(&first.session_id);
    client.upload_bytes("kept\n", "/app/state").await?;
    let twin = vms.clone(&first.vm_id, NewClone::default()).await?.vm;
    client.use_session(&twin.session_id);
    let state = client.download_bytes("/app/state").await?;
    println!("its clone has {}", String::from_utf8_lossy(&state).trim());

    for vm in [first, twin] {
        println!("{}", vms.delete(&vm.vm_id).await?.status);
    }
    Ok(())
}
