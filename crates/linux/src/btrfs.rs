//! btrfs by its ioctls: subvolumes, snapshots, simple quotas.
//!
//! Numbers and layouts are those of the kernel's `include/uapi/linux/btrfs.h`.

use crate::check;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// The magic number that `statfs` tells of a btrfs.
pub const MAGIC: i64 = 0x9123_683E;

const SNAP_CREATE_V2: libc::c_ulong = 0x5000_9417;
const SUBVOL_CREATE_V2: libc::c_ulong = 0x5000_9418;
const SNAP_DESTROY: libc::c_ulong = 0x5000_940F;
const INO_LOOKUP: libc::c_ulong = 0xD000_9412;
const QUOTA_CTL: libc::c_ulong = 0xC010_9428;
const QGROUP_LIMIT: libc::c_ulong = 0x8030_942B;
const SYNC: libc::c_ulong = 0x9408;

const SUBVOL_RDONLY: u64 = 1 << 1;
const QUOTA_ENABLE_SIMPLE: u64 = 4;
const LIMIT_MAX_RFER: u64 = 1;
/// The object id of a subvolume's root directory.
const FIRST_FREE_OBJECTID: u64 = 256;

#[repr(C)]
struct VolumeArgumentsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

#[repr(C)]
struct VolumeArguments {
    fd: i64,
    name: [u8; 4088],
}

#[repr(C)]
struct InodeLookup {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}

#[repr(C)]
struct QuotaControl {
    command: u64,
    status: u64,
}

#[repr(C)]
struct QgroupLimit {
    qgroupid: u64,
    flags: u64,
    max_rfer: u64,
    max_excl: u64,
    rsv_rfer: u64,
    rsv_excl: u64,
}

/// Calls an ioctl that takes a pointer to `T`.
///
/// # Safety
/// The code must be one whose argument is a `T`.
unsafe fn ioctl<T>(fd: impl AsFd, code: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: the argument lives through the call and is what the code takes, by this function's own condition.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code as _, &raw mut *argument) };
    check(result.into()).map(drop)
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The parent's descriptor and the last part of a path.
fn split(path: &Path) -> io::Result<(OwnedFd, &str)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, "not a subvolume's path");
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(bad)?;
    let parent = path.parent().ok_or_else(bad)?;
    Ok((directory(parent)?, name))
}

fn put_name<const N: usize>(to: &mut [u8; N], name: &str) -> io::Result<()> {
    if name.len() >= N || name.len() > 255 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the name is too long",
        ));
    }
    to[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

/// Is there a btrfs at `path`?
///
/// # Errors
/// When `path` cannot be opened.
pub fn is_btrfs(path: &Path) -> io::Result<bool> {
    crate::mount::is_file_system(directory(path)?, MAGIC)
}

/// Makes an empty subvolume.
///
/// # Errors
/// `EEXIST` when there is something already.
pub fn create_subvolume(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let mut arguments = VolumeArgumentsV2 {
        fd: 0,
        transid: 0,
        flags: 0,
        unused: [0; 4],
        name: [0; 4040],
    };
    put_name(&mut arguments.name, name)?;
    // SAFETY: this code takes a btrfs_ioctl_vol_args_v2.
    unsafe { ioctl(parent, SUBVOL_CREATE_V2, &mut arguments) }
}

/// Makes `target` a snapshot of the subvolume `source`, in constant time.
///
/// # Errors
/// `EEXIST` when there is something already.
pub fn snapshot(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    let (parent, name) = split(target)?;
    let source = directory(source)?;
    let flags = if read_only { SUBVOL_RDONLY } else { 0 };
    let fd = i64::from(source.as_raw_fd());
    let mut arguments = VolumeArgumentsV2 {
        fd,
        transid: 0,
        flags,
        unused: [0; 4],
        name: [0; 4040],
    };
    put_name(&mut arguments.name, name)?;
    // SAFETY: this code takes a btrfs_ioctl_vol_args_v2; the source's descriptor is open.
    unsafe { ioctl(parent, SNAP_CREATE_V2, &mut arguments) }
}

/// Deletes a subvolume: its name is gone at once, its space comes back behind. One that is not there is no error.
///
/// # Errors
/// `EBUSY` while it is mounted, `ENOTEMPTY` while it holds other subvolumes.
pub fn delete_subvolume(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let mut arguments = VolumeArguments {
        fd: 0,
        name: [0; 4088],
    };
    put_name(&mut arguments.name, name)?;
    // SAFETY: this code takes a btrfs_ioctl_vol_args.
    match unsafe { ioctl(parent, SNAP_DESTROY, &mut arguments) } {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The id of the subvolume that `path` is the root of, or lies in.
///
/// # Errors
/// The system's.
pub fn subvolume_id(path: &Path) -> io::Result<u64> {
    let mut lookup = InodeLookup {
        treeid: 0,
        objectid: FIRST_FREE_OBJECTID,
        name: [0; 4080],
    };
    // SAFETY: this code takes a btrfs_ioctl_ino_lookup_args.
    unsafe { ioctl(directory(path)?, INO_LOOKUP, &mut lookup)? };
    Ok(lookup.treeid)
}

/// Turns simple quotas on: each extent counts for the subvolume that wrote it. Being on already is no error.
///
/// # Errors
/// `EINVAL` on a kernel before 6.7, `EEXIST` where classic quota groups are on.
pub fn enable_simple_quotas(path: &Path) -> io::Result<()> {
    let mut control = QuotaControl {
        command: QUOTA_ENABLE_SIMPLE,
        status: 0,
    };
    // SAFETY: this code takes a btrfs_ioctl_quota_ctl_args.
    unsafe { ioctl(directory(path)?, QUOTA_CTL, &mut control) }
}

/// Limits what a subvolume may write on top of what it was made from, in bytes. The kernel enforces it (`EDQUOT`).
///
/// # Errors
/// The system's.
pub fn limit_subvolume(path: &Path, bytes: u64) -> io::Result<()> {
    let mut limit = QgroupLimit {
        qgroupid: subvolume_id(path)?,
        flags: LIMIT_MAX_RFER,
        max_rfer: bytes,
        max_excl: 0,
        rsv_rfer: 0,
        rsv_excl: 0,
    };
    // SAFETY: this code takes a btrfs_ioctl_qgroup_limit_args.
    unsafe { ioctl(directory(path)?, QGROUP_LIMIT, &mut limit) }
}

/// Commits everything written so far.
///
/// # Errors
/// The system's.
pub fn sync(path: &Path) -> io::Result<()> {
    let fd = directory(path)?;
    // SAFETY: this code takes no argument.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), SYNC as _, std::ptr::null::<u8>()) };
    check(result.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernel_s_sizes() {
        assert_eq!(size_of::<VolumeArgumentsV2>(), 4096);
        assert_eq!(size_of::<VolumeArguments>(), 4096);
        assert_eq!(size_of::<InodeLookup>(), 4096);
        assert_eq!(size_of::<QuotaControl>(), 16);
        assert_eq!(size_of::<QgroupLimit>(), 48);
    }
}
