//! Numbers that are kept with a tree, in attributes of its root directory. Only the host's root sees those of this kind,
//! so nothing inside a VM can read or change them; copies take them along, whole.

use rustix::fs::XattrFlags;
use std::io;
use std::path::Path;

/// Bytes of a snapshot's own.
pub(super) const OWN_BYTES: &str = "trusted.instavm.bytes";
/// The limit of a tree that no kernel enforces.
pub(super) const LIMIT: &str = "trusted.instavm.limit";
/// What a tree had taken when it was copied.
pub(super) const BASE: &str = "trusted.instavm.base";

/// The number of this name at `path`, if it has one.
pub(super) fn get(path: &Path, name: &str) -> io::Result<Option<u64>> {
    let mut bytes = [0_u8; 8];
    match rustix::fs::lgetxattr(path, name, &mut bytes[..]) {
        Ok(8) => Ok(Some(u64::from_le_bytes(bytes))),
        Ok(_) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::RANGE) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Sets it.
pub(super) fn set(path: &Path, name: &str, number: u64) -> io::Result<()> {
    let bytes = number.to_le_bytes();
    Ok(rustix::fs::lsetxattr(
        path,
        name,
        &bytes,
        XattrFlags::empty(),
    )?)
}
