//! The disk driver `btrfs`: trees are subvolumes, copies are snapshots in constant time, limits are simple quotas that
//! the kernel enforces.

use super::tree::{Copy, Trees};
use super::{ScrubReport, clone};
use instavm_linux::{btrfs, io_priority};
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
        match btrfs::delete_subvolume(path) {
            // A plain folder.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => clone::remove(path),
            other => other,
        }
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
        // Without the right to a lower priority it is done at this one.
        let _idle = io_priority::idle();
        let mut report = ScrubReport {
            verified: true,
            ..ScrubReport::default()
        };
        for device in btrfs::scrub(path)? {
            report.bytes += device.data_bytes + device.tree_bytes;
            report.read_errors += device.read_errors;
            report.checksum_errors += device.checksum_errors;
            report.tree_errors += device.verify_errors;
            report.super_errors += device.super_errors;
            report.corrected_errors += device.corrected_errors;
            report.uncorrectable_errors += device.uncorrectable_errors;
        }
        Ok(report)
    }
}
