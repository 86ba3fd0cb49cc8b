//! The disk driver `btrfs`: trees are subvolumes, copies are snapshots in constant time, limits are simple quotas that
//! the kernel enforces.

use super::ScrubReport;
use super::tree::{Copy, Trees};
use instavm_linux::btrfs;
use std::io;
use std::path::Path;

/// The driver.
#[derive(Debug)]
pub(super) struct Btrfs;

impl Trees for Btrfs {
    fn driver(&self) -> &'static str {
        "btrfs"
    }

    fn quota(&self) -> &'static str {
        "hard"
    }

    fn make(&self, path: &Path, limit: Option<u64>) -> io::Result<()> {
        match limit {
            Some(limit) => btrfs::create_limited_subvolume(path, limit),
            None => btrfs::create_subvolume(path),
        }
    }

    fn copy(&self, source: &Path, target: &Path, copy: Copy) -> io::Result<()> {
        match copy {
            Copy::ReadOnly => btrfs::snapshot(source, target, true),
            Copy::Limited(limit) => btrfs::limited_snapshot(source, target, limit),
        }
    }

    fn publish(&self, draft: &Path, target: &Path) -> io::Result<()> {
        btrfs::sync(draft)?;
        btrfs::snapshot(draft, target, true)?;
        btrfs::delete_subvolume(draft)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        btrfs::delete_subvolume(path)
    }

    fn limit(&self, path: &Path, bytes: u64) -> io::Result<()> {
        btrfs::limit_subvolume(path, bytes)
    }

    fn charged(&self, path: &Path) -> io::Result<u64> {
        btrfs::charged_bytes(path)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        btrfs::sync(path)
    }

    fn scrub(&self, path: &Path) -> io::Result<ScrubReport> {
        let _ = path;
        Ok(ScrubReport::default())
    }
}
