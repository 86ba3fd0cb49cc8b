//! Volumes, their files and their checkpoints.

use crate::call::{Call, Method, path_segment};
use crate::client::Client;
use crate::download::Download;
use crate::error::{Family, Result};
use crate::file::Parcel;
use bytes::Bytes;
use futures::Stream;
use instavm_api::checkpoint::{Checkpoint, CheckpointDeleted, CreateCheckpoint};
use instavm_api::volume::{
    CreateVolume, DownloadVolumeFile, UpdateVolume, Volume, VolumeDeleted, VolumeFile,
    VolumeFileDeleted, VolumeFileUploaded,
};
use std::io;
use std::path::Path;

const COLLECTION: &str = "/v1/volumes";

/// Where an upload goes: a path relative to the volume's root. A text alone is such a path, at which there must be no
/// file yet.
///
/// ```
/// let report = instavm::VolumePath::new("reports/latest.txt").overwrite();
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct VolumePath {
    path: String,
    overwrite: bool,
}

impl VolumePath {
    /// This path; its parent directories are made.
    pub fn new(path: impl Into<String>) -> VolumePath {
        VolumePath {
            path: path.into(),
            overwrite: false,
        }
    }

    /// A file that is there is replaced.
    pub fn overwrite(mut self) -> VolumePath {
        self.overwrite = true;
        self
    }
}

impl<T: Into<String>> From<T> for VolumePath {
    fn from(path: T) -> VolumePath {
        VolumePath::new(path)
    }
}

/// Which files of a volume are asked for.
#[derive(Clone, Debug)]
#[must_use]
pub struct VolumeFiles {
    prefix: String,
    recursive: bool,
    limit: u32,
}

impl VolumeFiles {
    /// All files, at most 1000.
    pub fn all() -> VolumeFiles {
        VolumeFiles {
            prefix: String::new(),
            recursive: true,
            limit: 1000,
        }
    }

    /// Only files whose path begins with this.
    pub fn prefix(mut self, prefix: impl Into<String>) -> VolumeFiles {
        self.prefix = prefix.into();
        self
    }

    /// The entries of one directory, instead of all files below it.
    pub fn of_directory(mut self) -> VolumeFiles {
        self.recursive = false;
        self
    }

    /// At most so many.
    pub fn limit(mut self, limit: u32) -> VolumeFiles {
        self.limit = limit;
        self
    }
}

/// The account's volumes; see [`Client::volumes`]. Their files can be worked with whether or not a VM has them mounted;
/// [`Vms::mount_volume`](crate::Vms::mount_volume) mounts one.
///
/// ```no_run
/// # async fn example(client: &instavm::Client) -> instavm::Result<()> {
/// use instavm::{VolumeFiles, VolumePath};
///
/// let volumes = client.volumes();
/// let data = volumes.create("data", 1 << 30).await?;
/// volumes.upload_bytes(&data.id, "hello\n", "docs/hello.txt").await?;
/// let before = volumes.create_checkpoint(&data.id, Some("before")).await?;
/// volumes.upload_file(&data.id, "new.txt", VolumePath::new("docs/hello.txt").overwrite()).await?;
/// for file in volumes.list_files(&data.id, VolumeFiles::all().prefix("docs/")).await? {
///     println!("{} has {} bytes", file.path, file.size);
/// }
/// volumes.delete_checkpoint(&data.id, &before.id).await?;
/// volumes.delete(&data.id).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Volumes<'a>(&'a Client);

impl Client {
    /// The account's volumes.
    pub fn volumes(&self) -> Volumes<'_> {
        Volumes(self)
    }
}

fn call(method: Method, operation: &'static str) -> Call {
    Call::new(method, COLLECTION).named(operation, Family::Api)
}

/// A call about one volume; `rest` is what comes after its id.
fn about(method: Method, volume_id: &str, rest: &str, operation: &'static str) -> Result<Call> {
    let path = format!("{COLLECTION}/{}{rest}", path_segment(volume_id)?);
    Ok(Call::new(method, path).named(operation, Family::Api))
}

fn upload(volume_id: &str, target: VolumePath) -> Result<Parcel> {
    let operation = "upload a file to the volume";
    Ok(Parcel {
        call: about(Method::Post, volume_id, "/files/upload", operation)?,
        fields: vec![
            ("path", target.path),
            ("overwrite", target.overwrite.to_string()),
        ],
    })
}

impl Volumes<'_> {
    /// Makes a volume that holds at most so many bytes.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn create(&self, name: &str, quota_bytes: u64) -> Result<Volume> {
        let body = CreateVolume {
            name: name.to_owned(),
            quota_bytes: Some(i64::try_from(quota_bytes).unwrap_or(i64::MAX)),
        };
        let call = call(Method::Post, "create a volume").once().json(&body)?;
        self.0.fetch(call).await
    }

    /// All volumes. `refresh_usage` measures first what they hold.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list(&self, refresh_usage: bool) -> Result<Vec<Volume>> {
        let call = call(Method::Get, "list volumes").query("refresh_usage", refresh_usage);
        self.0.fetch(call).await
    }

    /// One volume. `refresh_usage` measures first what it holds.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get(&self, volume_id: &str, refresh_usage: bool) -> Result<Volume> {
        let call = about(Method::Get, volume_id, "", "get the volume")?
            .query("refresh_usage", refresh_usage);
        self.0.fetch(call).await
    }

    /// Changes the name or the quota of a volume.
    ///
    /// # Errors
    /// When the platform refuses: the quota cannot be less than what the volume holds.
    pub async fn update(&self, volume_id: &str, change: &UpdateVolume) -> Result<Volume> {
        let call = about(Method::Patch, volume_id, "", "update the volume")?.json(change)?;
        self.0.fetch(call).await
    }

    /// Deletes a volume with its checkpoints.
    ///
    /// # Errors
    /// When a VM has it mounted, and when the platform refuses.
    pub async fn delete(&self, volume_id: &str) -> Result<VolumeDeleted> {
        self.0
            .fetch(about(Method::Delete, volume_id, "", "delete the volume")?)
            .await
    }

    /// Keeps this moment of a volume.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn create_checkpoint(
        &self,
        volume_id: &str,
        name: Option<&str>,
    ) -> Result<Checkpoint> {
        let operation = "create a checkpoint";
        let body = CreateCheckpoint {
            name: name.map(str::to_owned),
        };
        let call = about(Method::Post, volume_id, "/checkpoints", operation)?
            .once()
            .json(&body)?;
        self.0.fetch(call).await
    }

    /// The checkpoints of a volume.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list_checkpoints(&self, volume_id: &str) -> Result<Vec<Checkpoint>> {
        let operation = "list checkpoints";
        self.0
            .fetch(about(Method::Get, volume_id, "/checkpoints", operation)?)
            .await
    }

    /// Deletes a checkpoint.
    ///
    /// # Errors
    /// When a VM has it mounted, and when the platform refuses.
    pub async fn delete_checkpoint(
        &self,
        volume_id: &str,
        checkpoint_id: &str,
    ) -> Result<CheckpointDeleted> {
        let rest = format!("/checkpoints/{}", path_segment(checkpoint_id)?);
        let operation = "delete the checkpoint";
        self.0
            .fetch(about(Method::Delete, volume_id, &rest, operation)?)
            .await
    }

    /// Sends a local file. Its content is never in memory as a whole.
    ///
    /// # Errors
    /// When the file cannot be read, and when the platform refuses: there is a file at the path, or the quota is full.
    pub async fn upload_file(
        &self,
        volume_id: &str,
        local: impl AsRef<Path>,
        path: impl Into<VolumePath>,
    ) -> Result<VolumeFileUploaded> {
        let parcel = upload(volume_id, path.into())?;
        parcel.local(self.0, local.as_ref()).await?.json()
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the platform refuses: there is a file at the path, or the quota is full.
    pub async fn upload_bytes(
        &self,
        volume_id: &str,
        content: impl Into<Bytes>,
        path: impl Into<VolumePath>,
    ) -> Result<VolumeFileUploaded> {
        let parcel = upload(volume_id, path.into())?;
        parcel.bytes(self.0, content.into()).await?.json()
    }

    /// Sends what a stream yields, of any length. It is read once, so this call is never repeated.
    ///
    /// # Errors
    /// When the stream fails, and when the platform refuses.
    pub async fn upload_stream<S>(
        &self,
        volume_id: &str,
        content: S,
        path: impl Into<VolumePath>,
    ) -> Result<VolumeFileUploaded>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let parcel = upload(volume_id, path.into())?;
        parcel.stream(self.0, content).await?.json()
    }

    /// Opens a file for reading piece by piece.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn download_stream(&self, volume_id: &str, path: &str) -> Result<Download> {
        let body = DownloadVolumeFile {
            path: path.to_owned(),
        };
        let operation = "download a file of the volume";
        let call = about(Method::Post, volume_id, "/files/download", operation)?.json(&body)?;
        self.0.download(call).await
    }

    /// A file, in memory.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn download_bytes(&self, volume_id: &str, path: &str) -> Result<Vec<u8>> {
        self.download_stream(volume_id, path).await?.bytes().await
    }

    /// Writes a file to a local path and returns its size. A regular file that is there is replaced when the whole new
    /// content has come, and stays as it is when something goes wrong.
    ///
    /// # Errors
    /// When the local file cannot be written, and when the platform refuses.
    pub async fn download_file(
        &self,
        volume_id: &str,
        path: &str,
        local: impl AsRef<Path>,
    ) -> Result<u64> {
        self.download_stream(volume_id, path)
            .await?
            .save(local)
            .await
    }

    /// The files of a volume.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list_files(&self, volume_id: &str, which: VolumeFiles) -> Result<Vec<VolumeFile>> {
        let call = about(Method::Get, volume_id, "/files", "list files of the volume")?
            .query("prefix", which.prefix)
            .query("recursive", which.recursive)
            .query("limit", which.limit);
        self.0.fetch(call).await
    }

    /// Deletes a file, or a directory with everything in it.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn delete_file(&self, volume_id: &str, path: &str) -> Result<VolumeFileDeleted> {
        let operation = "delete a file of the volume";
        let call = about(Method::Delete, volume_id, "/files", operation)?.query("path", path);
        self.0.fetch(call).await
    }
}
