//! The snapshots that the account sees.

use super::Client;
use crate::{Result, Snapshot, SnapshotBuild, SnapshotDeleted, SnapshotType};

/// The snapshots that the account sees. See [`Client::snapshots`]. Each method is that of [`crate::Snapshots`].
#[derive(Clone, Copy, Debug)]
pub struct Snapshots<'a>(&'a Client);

impl Client {
    /// The snapshots that the account sees.
    pub fn snapshots(&self) -> Snapshots<'_> {
        Snapshots(self)
    }
}

impl Snapshots<'_> {
    /// Begins to build a snapshot from an OCI image, and returns at once. [`get`](Self::get) tells how far it is.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn create(&self, build: SnapshotBuild) -> Result<Snapshot> {
        self.0
            .run(|client| async move { client.snapshots().create(build).await })
    }

    /// Snapshots of one type, or all that the account sees.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list(&self, snapshot_type: Option<SnapshotType>) -> Result<Vec<Snapshot>> {
        self.0
            .run(|client| async move { client.snapshots().list(snapshot_type).await })
    }

    /// One snapshot; of one that is being built, also the step and the log.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn get(&self, snapshot_id: &str) -> Result<Snapshot> {
        let snapshot_id = snapshot_id.to_owned();
        self.0
            .run(|client| async move { client.snapshots().get(&snapshot_id).await })
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// When it is in use, and when the platform refuses.
    pub fn delete(&self, snapshot_id: &str) -> Result<SnapshotDeleted> {
        let snapshot_id = snapshot_id.to_owned();
        self.0
            .run(|client| async move { client.snapshots().delete(&snapshot_id).await })
    }
}
