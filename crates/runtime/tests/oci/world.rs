//! A pool and a store of a test's own, removed with everything in them.

use crate::image::Image;
use crate::server::Server;
use instavm_runtime::disk::{DiskDriver, DiskOptions, DiskPool};
use instavm_runtime::image::oci::{
    OciConfig, OciError, OciImage, OciLimits, OciProgress, OciStore,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub struct World {
    pub pool: DiskPool,
    pub store: OciStore,
    place: Place,
}

/// A data directory; its pool is destroyed with it, when nothing has it open any more.
struct Place(tempfile::TempDir);

impl Drop for Place {
    fn drop(&mut self) {
        DiskPool::destroy(&self.0.path().join("data")).expect("the pool of a test is destroyed");
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(DiskDriver::Btrfs, |_| ())
    }

    pub fn with(driver: DiskDriver, change: impl FnOnce(&mut OciConfig)) -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        let data = place.0.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let options = DiskOptions {
            size: Some(1 << 30),
            driver,
        };
        let pool = DiskPool::open(&data, &options).unwrap();
        let store = open(place.0.path(), change);
        Self { pool, store, place }
    }

    /// Another store over the same blobs, as another daemon of the host has it.
    pub fn other_store(&self, change: impl FnOnce(&mut OciConfig)) -> OciStore {
        open(self.place.0.path(), change)
    }

    pub fn path(&self) -> &Path {
        self.place.0.path()
    }

    pub async fn ensure(&self, reference: &str) -> Result<OciImage, OciError> {
        self.store.ensure(&self.pool, reference, |_| ()).await
    }

    /// Serves an image of this world's own and pulls it.
    pub async fn make(&self, image: &Image) -> Result<OciImage, OciError> {
        let server = Server::start().await;
        let reference = server.push("test/image", image);
        self.ensure(&reference).await
    }

    pub fn blobs(&self) -> Vec<String> {
        names(&self.path().join("blobs/sha256"))
    }

    pub fn drafts(&self) -> Vec<String> {
        names(&self.path().join("blobs/drafts"))
    }

    /// What is in the pool, drafts too.
    pub fn images(&self) -> Vec<String> {
        names(&self.pool.image_path("x").parent().unwrap().to_owned())
    }

    /// Nothing of an image that failed is there, but blobs that are what their digests say.
    pub fn nothing_remains(&self) {
        assert_eq!(self.drafts(), [""; 0]);
        assert_eq!(
            self.images()
                .iter()
                .filter(|name| name.starts_with('.'))
                .count(),
            0,
            "{:?}",
            self.images()
        );
        for blob in self.blobs() {
            let content = std::fs::read(self.path().join("blobs/sha256").join(&blob)).unwrap();
            assert_eq!(crate::image::digest(&content), format!("sha256:{blob}"));
        }
    }
}

fn open(folder: &Path, change: impl FnOnce(&mut OciConfig)) -> OciStore {
    let mut config = OciConfig::new(folder.join("blobs"));
    config.limits = limits();
    change(&mut config);
    OciStore::new(config).unwrap()
}

/// As the default, but soon.
pub fn limits() -> OciLimits {
    OciLimits {
        connect: Duration::from_secs(2),
        stall: Duration::from_millis(300),
        attempts: 3,
        pause: Duration::from_millis(1),
        unpacked_bytes: 64 << 20,
        compressed_bytes: 64 << 20,
        files: 10_000,
    }
}

pub fn names(folder: &PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn text(root: &Path, name: &str) -> String {
    std::fs::read_to_string(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The lines of a log that the steps make.
pub fn log(steps: &[OciProgress]) -> String {
    let lines: Vec<String> = steps.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
