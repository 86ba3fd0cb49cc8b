//! Carries data from one VM to the next on a volume, with a checkpoint of how it was before.
//!
//! ```sh
//! INSTAVM_API_KEY=... INSTAVM_BASE_URL=http://127.0.0.1:8080 cargo run --release -p instavm --example volumes
//! ```
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use instavm::{Access, Client, NewVm, VolumeFiles, VolumePath};

#[tokio::main]
async fn main() -> instavm::Result<()> {
    let client = Client::builder().without_session().build().await?;
    let (vms, volumes) = (client.vms(), client.volumes());
    let data = volumes.create("example-data", 64 << 20).await?;
    volumes
        .upload_bytes(&data.id, "first\n", "notes/a.txt")
        .await?;
    let before = volumes.create_checkpoint(&data.id, Some("before")).await?;
    let again = VolumePath::new("notes/a.txt").overwrite();
    volumes.upload_bytes(&data.id, "second\n", again).await?;

    let reader = NewVm::default().volume(&data.id, "/data", Access::ReadWrite);
    let reader = vms.create(reader).await?.vm;
    let old = Access::Checkpoint(before.id.clone());
    vms.mount_volume(&reader.vm_id, &data.id, "/before", old)
        .await?;
    for mount in vms.list_volumes(&reader.vm_id).await? {
        println!(
            "{} is mounted at {} ({})",
            mount.name, mount.mount_path, mount.mode
        );
    }
    vms.unmount_volume(&reader.vm_id, &data.id, "/before")
        .await?;
    vms.delete(&reader.vm_id).await?;

    for file in volumes.list_files(&data.id, VolumeFiles::all()).await? {
        let content = volumes.download_bytes(&data.id, &file.path).await?;
        println!(
            "{} has {}",
            file.path,
            String::from_utf8_lossy(&content).trim()
        );
    }
    volumes.delete_checkpoint(&data.id, &before.id).await?;
    volumes.delete(&data.id).await?;
    Ok(())
}
