//! Removing layers and blobs that nobody uses any more.

use super::root::PREFIX;
use super::{OciError, OciStore};
use crate::disk::DiskPool;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What was not used for so long goes.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
/// When space is short, what was not used for so long goes.
const UNUSED_WHEN_SHORT: Duration = Duration::from_secs(3600);
/// Space is short when less than one part in so many is free.
const SHORT: u64 = 10;

/// What [`OciStore::prune`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OciPruned {
    /// Layers and images of the pool.
    pub images: usize,
    /// Blobs.
    pub blobs: usize,
}

impl OciStore {
    /// Removes layers and blobs that nobody has used for 30 days, or for an hour when a tenth of the space or less is
    /// free. What is being built, and what an [`OciImage`](super::OciImage) still stands for, stays; `keep` says which
    /// other images of the pool, by key, are to stay. Blocks.
    ///
    /// # Errors
    /// [`OciError`] when the pool or the folder of blobs cannot be read.
    pub fn prune(
        &self,
        pool: &DiskPool,
        keep: impl Fn(&str) -> bool,
    ) -> Result<OciPruned, OciError> {
        let space = pool.space()?;
        let mut pruned = OciPruned::default();
        let limit = unused_limit(space.free_bytes, space.total_bytes);
        for key in pool.image_keys()? {
            if !key.starts_with(PREFIX) || keep(&key) {
                continue;
            }
            let mark = self.inner.blobs.mark_path(&key);
            let Some(age) = age(&mark) else {
                // Never noted: its time begins now.
                self.inner.blobs.mark(&key);
                continue;
            };
            if age < limit {
                continue;
            }
            let removed = self.inner.pins.if_free(&key, || pool.delete_image(&key));
            if let Some(removed) = removed {
                removed?;
                // Another pool of this host may have one, and note it again.
                let _ = std::fs::remove_file(mark);
                pruned.images += 1;
            }
        }
        pruned.blobs = self.prune_blobs()?;
        Ok(pruned)
    }

    fn prune_blobs(&self) -> Result<usize, OciError> {
        let folder = self.inner.blobs.folder().join("sha256");
        let space =
            rustix::fs::statvfs(&folder).map_err(|e| OciError::io("measure", &folder)(e.into()))?;
        let limit = unused_limit(space.f_bavail, space.f_blocks);
        let mut removed = 0;
        let entries = std::fs::read_dir(&folder).map_err(OciError::io("list", &folder))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if age(&path).is_none_or(|age| age < limit) {
                continue;
            }
            let name = entry.file_name();
            let gone = self
                .inner
                .pins
                .if_free(&name.to_string_lossy(), || std::fs::remove_file(&path));
            match gone {
                Some(Ok(())) => removed += 1,
                Some(Err(e)) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(OciError::io("remove", &path)(e));
                }
                _ => {}
            }
        }
        Ok(removed)
    }
}

fn unused_limit(free: u64, total: u64) -> Duration {
    if free < total / SHORT {
        UNUSED_WHEN_SHORT
    } else {
        UNUSED
    }
}

/// How long ago a file was last marked as used.
fn age(path: &Path) -> Option<Duration> {
    let when = std::fs::metadata(path).ok()?.modified().ok()?;
    Some(SystemTime::now().duration_since(when).unwrap_or_default())
}
