//! The account's volumes.

use super::Client;
use super::file::{Download, pieces};
use crate::{
    Checkpoint, CheckpointDeleted, Result, UpdateVolume, Volume, VolumeDeleted, VolumeFile,
    VolumeFileDeleted, VolumeFileUploaded, VolumeFiles, VolumePath,
};
use bytes::Bytes;
use std::io::Read;
use std::path::Path;

/// The account's volumes. See [`Client::volumes`]. Each method is that of [`crate::Volumes`].
#[derive(Clone, Copy, Debug)]
pub struct Volumes<'a>(&'a Client);

impl Client {
    /// The account's volumes.
    pub fn volumes(&self) -> Volumes<'_> {
        Volumes(self)
    }
}

impl Volumes<'_> {
    /// Makes a volume that holds at most so many bytes.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn create(&self, name: &str, quota_bytes: u64) -> Result<Volume> {
        let name = name.to_owned();
        self.0
            .run(|client| async move { client.volumes().create(&name, quota_bytes).await })
    }

    /// All volumes. `refresh_usage` measures first what they hold.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list(&self, refresh_usage: bool) -> Result<Vec<Volume>> {
        self.0
            .run(|client| async move { client.volumes().list(refresh_usage).await })
    }

    /// One volume. `refresh_usage` measures first what it holds.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn get(&self, volume_id: &str, refresh_usage: bool) -> Result<Volume> {
        let volume_id = volume_id.to_owned();
        self.0
            .run(|client| async move { client.volumes().get(&volume_id, refresh_usage).await })
    }

    /// Changes the name or the quota of a volume.
    ///
    /// # Errors
    /// When the platform refuses: the quota cannot be less than what the volume holds.
    pub fn update(&self, volume_id: &str, change: &UpdateVolume) -> Result<Volume> {
        let volume_id = volume_id.to_owned();
        let change = change.clone();
        self.0
            .run(|client| async move { client.volumes().update(&volume_id, &change).await })
    }

    /// Deletes a volume with its checkpoints.
    ///
    /// # Errors
    /// When a VM has it mounted, and when the platform refuses.
    pub fn delete(&self, volume_id: &str) -> Result<VolumeDeleted> {
        let volume_id = volume_id.to_owned();
        self.0
            .run(|client| async move { client.volumes().delete(&volume_id).await })
    }

    /// Keeps this moment of a volume.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn create_checkpoint(&self, volume_id: &str, name: Option<&str>) -> Result<Checkpoint> {
        let volume_id = volume_id.to_owned();
        let name = name.map(str::to_owned);
        self.0.run(|client| async move {
            client
                .volumes()
                .create_checkpoint(&volume_id, name.as_deref())
                .await
        })
    }

    /// The checkpoints of a volume.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list_checkpoints(&self, volume_id: &str) -> Result<Vec<Checkpoint>> {
        let volume_id = volume_id.to_owned();
        self.0
            .run(|client| async move { client.volumes().list_checkpoints(&volume_id).await })
    }

    /// Deletes a checkpoint.
    ///
    /// # Errors
    /// When a VM has it mounted, and when the platform refuses.
    pub fn delete_checkpoint(
        &self,
        volume_id: &str,
        checkpoint_id: &str,
    ) -> Result<CheckpointDeleted> {
        let volume_id = volume_id.to_owned();
        let checkpoint_id = checkpoint_id.to_owned();
        self.0.run(|client| async move {
            client
                .volumes()
                .delete_checkpoint(&volume_id, &checkpoint_id)
                .await
        })
    }

    /// Sends a local file. Its content is never in memory as a whole.
    ///
    /// # Errors
    /// When the file cannot be read, and when the platform refuses: there is a file at the path, or the quota is full.
    pub fn upload_file(
        &self,
        volume_id: &str,
        local: impl AsRef<Path>,
        path: impl Into<VolumePath>,
    ) -> Result<VolumeFileUploaded> {
        let volume_id = volume_id.to_owned();
        let local = local.as_ref().to_owned();
        let path: VolumePath = path.into();
        self.0.run(
            |client| async move { client.volumes().upload_file(&volume_id, local, path).await },
        )
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the platform refuses: there is a file at the path, or the quota is full.
    pub fn upload_bytes(
        &self,
        volume_id: &str,
        content: impl Into<Bytes>,
        path: impl Into<VolumePath>,
    ) -> Result<VolumeFileUploaded> {
        let volume_id = volume_id.to_owned();
        let content: Bytes = content.into();
        let path: VolumePath = path.into();
        self.0.run(|client| async move {
            client
                .volumes()
                .upload_bytes(&volume_id, content, path)
                .await
        })
    }

    /// A file, in memory.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn download_bytes(&self, volume_id: &str, path: &str) -> Result<Vec<u8>> {
        let volume_id = volume_id.to_owned();
        let path = path.to_owned();
        self.0
            .run(|client| async move { client.volumes().download_bytes(&volume_id, &path).await })
    }

    /// Writes a file to a local path and returns its size. A regular file that is there is replaced when the whole new
    /// content has come, and stays as it is when something goes wrong.
    ///
    /// # Errors
    /// When the local file cannot be written, and when the platform refuses.
    pub fn download_file(
        &self,
        volume_id: &str,
        path: &str,
        local: impl AsRef<Path>,
    ) -> Result<u64> {
        let volume_id = volume_id.to_owned();
        let path = path.to_owned();
        let local = local.as_ref().to_owned();
        self.0.run(|client| async move {
            client
                .volumes()
                .download_file(&volume_id, &path, local)
                .await
        })
    }

    /// The files of a volume.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list_files(&self, volume_id: &str, which: VolumeFiles) -> Result<Vec<VolumeFile>> {
        let volume_id = volume_id.to_owned();
        self.0
            .run(|client| async move { client.volumes().list_files(&volume_id, which).await })
    }

    /// Deletes a file, or a directory with everything in it.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn delete_file(&self, volume_id: &str, path: &str) -> Result<VolumeFileDeleted> {
        let volume_id = volume_id.to_owned();
        let path = path.to_owned();
        self.0
            .run(|client| async move { client.volumes().delete_file(&volume_id, &path).await })
    }

    /// Sends what a reader yields, of any length. It is read once, so this call is never repeated.
    ///
    /// # Errors
    /// As [`crate::Volumes::upload_stream`].
    pub fn upload_reader(
        &self,
        volume_id: &str,
        content: impl Read + Send + 'static,
        path: impl Into<VolumePath>,
    ) -> Result<VolumeFileUploaded> {
        let volume_id = volume_id.to_owned();
        let path = path.into();
        self.0.run(|client| async move {
            let volumes = client.volumes();
            volumes
                .upload_stream(&volume_id, pieces(content), path)
                .await
        })
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// As [`crate::Volumes::download_stream`].
    pub fn download_stream(&self, volume_id: &str, path: &str) -> Result<Download> {
        let (volume_id, path) = (volume_id.to_owned(), path.to_owned());
        let inner = self.0.run(|client| async move {
            client.volumes().download_stream(&volume_id, &path).await
        })?;
        Ok(Download::new(inner, self.0.worker.clone()))
    }
}
