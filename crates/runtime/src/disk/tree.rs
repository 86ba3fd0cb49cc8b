//! What a disk driver can do: trees of files that are copied whole.

use super::ScrubReport;
use std::fmt::Debug;
use std::io;
use std::path::Path;

/// The begin of the names of what is not whole yet; such names are never listed, and go when the pool is opened.
pub(super) const DRAFT: &str = ".draft-";

/// What becomes of a copy.
#[derive(Clone, Copy, Debug)]
pub(super) enum Copy {
    /// Nobody writes it any more.
    ReadOnly,
    /// It may take so many bytes on top of what it was copied from.
    Limited(u64),
}

/// A disk driver. A tree appears at its path whole and safe on the disk, or not at all; its name goes at once, its
/// space comes back behind.
pub(super) trait Trees: Debug + Send + Sync {
    /// `btrfs` or `directory`.
    fn driver(&self) -> &'static str;

    /// `hard` when the kernel enforces limits, `soft` when the node measures.
    fn quota(&self) -> &'static str;

    /// Makes an empty tree.
    fn make(&self, path: &Path, limit: Option<u64>) -> io::Result<()>;

    /// Copies a tree. `AlreadyExists` when there is something at `target`.
    fn copy(&self, source: &Path, target: &Path, copy: Copy) -> io::Result<()>;

    /// Makes what was filled in at `draft` a read-only tree at `target`.
    fn publish(&self, draft: &Path, target: &Path) -> io::Result<()>;

    /// Removes a tree; one that is not there is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Limits what a tree may take on top of what it was copied from.
    fn limit(&self, path: &Path, bytes: u64) -> io::Result<()>;

    /// What a tree takes on top of what it was copied from.
    fn charged(&self, path: &Path) -> io::Result<u64>;

    /// Writes what is dirty.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Reads everything and compares it with its checksums, where there are any.
    fn scrub(&self, path: &Path) -> io::Result<ScrubReport>;
}
