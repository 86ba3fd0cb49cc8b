//! A data directory of a test's own, removed with everything in it.

use instavm_runtime::disk::{DiskDriver, DiskOptions, DiskPool};
use std::path::{Path, PathBuf};

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// A pool in a data directory of its own.
#[derive(Debug)]
pub struct World {
    pub pool: DiskPool,
    pub options: DiskOptions,
    /// Dropped last: the pool is unmounted by then.
    place: Place,
}

/// A data directory; its pool is destroyed with it.
#[derive(Debug)]
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn within(folder: &Path) -> Self {
        Self(tempfile::tempdir_in(folder).unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        DiskPool::destroy(self.path()).expect("the pool of a test is destroyed");
    }
}

impl World {
    pub fn new(driver: DiskDriver) -> Self {
        Self::at(Place::new(), driver, GIB)
    }

    pub fn at(place: Place, driver: DiskDriver, size: u64) -> Self {
        let options = DiskOptions {
            size: Some(size),
            driver,
        };
        let pool = DiskPool::open(place.path(), &options).unwrap();
        Self {
            pool,
            options,
            place,
        }
    }

    /// The pool again, as a daemon's next start opens it.
    pub fn reopened(&self) -> DiskPool {
        DiskPool::open(self.data_dir(), &self.options).unwrap()
    }

    pub fn data_dir(&self) -> &Path {
        self.place.path()
    }

    /// An image with a few files.
    pub fn image(&self) -> PathBuf {
        self.pool
            .ensure_image("base", |root| {
                std::fs::write(root.join("hello"), "from the image")?;
                std::fs::create_dir(root.join("etc"))?;
                std::fs::write(root.join("etc/blob"), vec![7; 300_000])
            })
            .unwrap()
    }

    /// What is in the pool's folder of this name, drafts too.
    pub fn raw(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.data_dir().join("pool").join(folder)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn is_hard(&self) -> bool {
        self.pool.quota() == "hard"
    }
}

/// Content that no file system can make smaller.
pub fn noise(length: u64) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let words = (0..length.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.collect();
    bytes.truncate(usize::try_from(length).unwrap());
    bytes
}
