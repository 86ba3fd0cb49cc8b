//! Images of the pool beside those that are made in one go: layers, each on top of a copy of the one below.

use super::error::{check_name, disk};
use super::tree::{Copy, DRAFT};
use super::{DiskError, DiskPool, listed};
use std::io;
use std::path::{Path, PathBuf};

/// A limit that is none: more than any pool has.
const UNLIMITED: u64 = 1 << 60;

impl DiskPool {
    /// Makes an image, when there is none of this key, on top of what is at `below`, or of nothing: `fill` writes into
    /// that, and the image appears when it is done and safe on the disk. Two calls for one key must not run at once.
    ///
    /// # Errors
    /// [`DiskError::Full`] when the reserve is touched; [`DiskError::Disk`], also for what `fill` fails with.
    pub fn ensure_image_on(
        &self,
        key: &str,
        below: Option<&Path>,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, DiskError> {
        check_name("image", key)?;
        let image = self.image_path(key);
        if image.exists() {
            return Ok(image);
        }
        self.require_room()?;
        let draft = self.image_path(&format!("{DRAFT}{key}"));
        let trees = self.trees();
        trees.remove(&draft).map_err(disk("delete", &draft))?;
        let publish = || {
            match below {
                Some(below) => trees.copy(below, &draft, Copy::Limited(UNLIMITED)),
                None => trees.make(&draft, None),
            }
            .map_err(disk("make", &draft))?;
            fill(&draft).map_err(disk("fill", &draft))?;
            trees
                .publish(&draft, &image)
                .map_err(disk("publish", &image))
        };
        if let Err(error) = publish() {
            // The next opening sweeps it otherwise.
            let _ = trees.remove(&draft);
            return Err(error);
        }
        Ok(image)
    }

    /// Whether there is an image of this key.
    pub fn has_image(&self, key: &str) -> bool {
        check_name("image", key).is_ok() && self.image_path(key).exists()
    }

    /// Deletes an image; one that is not there is no error. Disks and images that were made from it are not touched.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn delete_image(&self, key: &str) -> Result<(), DiskError> {
        check_name("image", key)?;
        let path = self.image_path(key);
        self.trees().remove(&path).map_err(disk("delete", &path))
    }

    /// The keys of all images.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn image_keys(&self) -> Result<Vec<String>, DiskError> {
        listed(&self.folder("images"))
    }

    /// Refuses when the reserve of free space is touched: for whoever is about to write much.
    ///
    /// # Errors
    /// [`DiskError::Full`].
    pub fn check_room(&self) -> Result<(), DiskError> {
        self.require_room()
    }
}
