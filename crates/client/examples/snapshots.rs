//! Saves a prepared VM, starts two others from it, and deletes the snapshot.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example snapshots
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::{Client, NewVm, SnapshotType};

#[tokio::main]
async fn main() -> instavm::Result<()> {
    let client = Client::builder().without_session().build().await?;
    let (vms, snapshots) = (client.vms(), client.snapshots());
    let prepared = vms.create(NewVm::default()).await?.vm;
    client.use_session(&prepared.session_id);
    client.upload_bytes("ready to go\n", "/app/state").await?;

    let snapshot = vms.snapshot(&prepared.vm_id, Some("prepared")).await?;
    println!("{} is {}", snapshot.name, snapshot.status);
    vms.delete(&prepared.vm_id).await?;

    let two = NewVm::default().from_snapshot(&snapshot.id).count(2);
    let started = vms.create(two).await?.vms.unwrap_or_default();
    for vm in &started {
        client.use_session(&vm.session_id);
        let state = client.download_bytes("/app/state").await?;
        println!("one is {}", String::from_utf8_lossy(&state).trim());
        vms.delete(&vm.vm_id).await?;
    }

    let own = snapshots.list(Some(SnapshotType::User)).await?;
    println!("there are {} snapshots", own.len());
    println!("{}", snapshots.delete(&snapshot.id).await?.status);
    Ok(())
}
