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
const RESIZE: libc::c_ulong = 0x5000_9403;
const TREE_SEARCH: libc::c_ulong = 0xD000_9411;
const FS_INFO: libc::c_ulong = 0x8400_941F;
const SCRUB: libc::c_ulong = 0xC400_941B;

const SCRUB_READ_ONLY: u64 = 1;

const SUBVOL_RDONLY: u64 = 1 << 1;
const SUBVOL_QGROUP_INHERIT: u64 = 1 << 2;
const INHERIT_SET_LIMITS: u64 = 1;
const QUOTA_TREE: u64 = 8;
const QGROUP_STATUS: u32 = 240;
const QGROUP_INFO: u32 = 242;
const QGROUP_LIMIT_ITEM: u32 = 244;
const QUOTA_ENABLE_SIMPLE: u64 = 4;
const LIMIT_MAX_RFER: u64 = 1;
const STATUS_SIMPLE_MODE: u64 = 1 << 3;
/// The object id of a subvolume's root directory.
const FIRST_FREE_OBJECTID: u64 = 256;

#[repr(C)]
struct VolumeArgumentsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    size: u64,
    inherit: u64,
    unused: [u64; 2],
    name: [u8; 4040],
}

impl VolumeArgumentsV2 {
    fn new(name: &str) -> io::Result<Self> {
        let mut arguments = Self {
            fd: 0,
            transid: 0,
            flags: 0,
            size: 0,
            inherit: 0,
            unused: [0; 2],
            name: [0; 4040],
        };
        put_name(&mut arguments.name, name)?;
        Ok(arguments)
    }
}

/// `struct btrfs_qgroup_inherit`, without groups to inherit from.
#[repr(C)]
struct QgroupInherit {
    flags: u64,
    groups: u64,
    referenced_copies: u64,
    exclusive_copies: u64,
    limit_flags: u64,
    max_rfer: u64,
    max_excl: u64,
    rsv_rfer: u64,
    rsv_excl: u64,
}

#[repr(C)]
struct TreeSearch {
    tree: u64,
    objectid: [u64; 2],
    offset: [u64; 2],
    transid: [u64; 2],
    kind: [u32; 2],
    items: u32,
    unused: u32,
    unused_too: [u64; 4],
    found: [u8; 3992],
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

#[repr(C)]
struct FileSystemInfo {
    max_id: u64,
    devices: u64,
    id: [u8; 16],
    unused: [u64; 124],
}

#[repr(C)]
struct ScrubArguments {
    device: u64,
    start: u64,
    end: u64,
    flags: u64,
    progress: ScrubProgress,
    unused: [u64; 109],
}

/// What a scrub found: `struct btrfs_scrub_progress`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ScrubProgress {
    /// Parts of files that were read.
    pub data_extents: u64,
    /// Blocks of the file system's own trees that were read.
    pub tree_extents: u64,
    /// Bytes of files that were read.
    pub data_bytes: u64,
    /// Bytes of the file system's own trees that were read.
    pub tree_bytes: u64,
    /// Places that could not be read.
    pub read_errors: u64,
    /// Blocks that differ from their checksum.
    pub checksum_errors: u64,
    /// Blocks of trees that are none.
    pub verify_errors: u64,
    /// Blocks that have no checksum.
    pub without_checksum: u64,
    /// Checksums of nothing.
    pub checksum_discards: u64,
    /// Damaged superblocks.
    pub super_errors: u64,
    /// The kernel had no memory.
    pub memory_errors: u64,
    /// Errors that could not be put right.
    pub uncorrectable_errors: u64,
    /// Errors that were put right.
    pub corrected_errors: u64,
    /// Where it ended.
    pub last_physical: u64,
    /// Errors that were gone when they were looked at again.
    pub unverified_errors: u64,
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
    let mut arguments = VolumeArgumentsV2::new(name)?;
    // SAFETY: this code takes a btrfs_ioctl_vol_args_v2.
    unsafe { ioctl(parent, SUBVOL_CREATE_V2, &mut arguments) }
}

/// Makes an empty subvolume that is limited to so many bytes from its first moment.
///
/// # Errors
/// `EEXIST` when there is something already.
pub fn create_limited_subvolume(path: &Path, limit: u64) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let mut arguments = VolumeArgumentsV2::new(name)?;
    let inherit = limit_from_the_start(limit);
    put_limit(&mut arguments, &inherit);
    // SAFETY: this code takes a btrfs_ioctl_vol_args_v2; what it points to outlives the call.
    unsafe { ioctl(parent, SUBVOL_CREATE_V2, &mut arguments) }
}

/// Makes `target` a snapshot of the subvolume `source`, in constant time. It is on the disk, whole, when this returns.
///
/// # Errors
/// `EEXIST` when there is something already.
pub fn snapshot(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    take_snapshot(source, target, read_only, None)
}

/// Makes `target` a writable snapshot of `source` that is limited, from its first moment, to so many bytes on top of it.
///
/// # Errors
/// `EEXIST` when there is something already.
pub fn limited_snapshot(source: &Path, target: &Path, limit: u64) -> io::Result<()> {
    take_snapshot(source, target, false, Some(limit))
}

fn take_snapshot(
    source: &Path,
    target: &Path,
    read_only: bool,
    limit: Option<u64>,
) -> io::Result<()> {
    let (parent, name) = split(target)?;
    let source = directory(source)?;
    let mut arguments = VolumeArgumentsV2::new(name)?;
    arguments.fd = i64::from(source.as_raw_fd());
    if read_only {
        arguments.flags |= SUBVOL_RDONLY;
    }
    let inherit = limit.map(limit_from_the_start);
    if let Some(inherit) = &inherit {
        put_limit(&mut arguments, inherit);
    }
    // SAFETY: this code takes a btrfs_ioctl_vol_args_v2; the source's descriptor is open, and what it points to outlives
    // the call.
    unsafe { ioctl(parent, SNAP_CREATE_V2, &mut arguments) }
}

fn limit_from_the_start(bytes: u64) -> QgroupInherit {
    QgroupInherit {
        flags: INHERIT_SET_LIMITS,
        groups: 0,
        referenced_copies: 0,
        exclusive_copies: 0,
        limit_flags: LIMIT_MAX_RFER,
        max_rfer: bytes,
        max_excl: 0,
        rsv_rfer: 0,
        rsv_excl: 0,
    }
}

fn put_limit(arguments: &mut VolumeArgumentsV2, inherit: &QgroupInherit) {
    arguments.flags |= SUBVOL_QGROUP_INHERIT;
    arguments.size = size_of::<QgroupInherit>() as u64;
    arguments.inherit = std::ptr::from_ref(inherit) as u64;
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
    let root = directory(path)?;
    // SAFETY: this code takes a btrfs_ioctl_quota_ctl_args.
    unsafe { ioctl(&root, QUOTA_CTL, &mut control)? };
    // The kernel is content when any quotas are on.
    // version, generation, flags, …
    let flags = number_at(&quota_tree_item(root, QGROUP_STATUS, 0)?, 16)?;
    if flags & STATUS_SIMPLE_MODE == 0 {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    Ok(())
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

/// What a subvolume is charged with, in bytes: what it wrote and what something still refers to. As of the last commit.
///
/// # Errors
/// `ENOENT` when quotas are not on, or do not know the subvolume.
pub fn charged_bytes(path: &Path) -> io::Result<u64> {
    let item = quota_item(path, QGROUP_INFO)?;
    // generation, referenced, …
    number_at(&item, 8)
}

/// The limit of a subvolume; `None` when it has none.
///
/// # Errors
/// `ENOENT` when quotas are not on, or do not know the subvolume.
pub fn limit_of(path: &Path) -> io::Result<Option<u64>> {
    let item = quota_item(path, QGROUP_LIMIT_ITEM)?;
    // flags, max_rfer, …
    let limited = number_at(&item, 0)? & LIMIT_MAX_RFER != 0;
    Ok(if limited {
        Some(number_at(&item, 8)?)
    } else {
        None
    })
}

fn number_at(item: &[u8], offset: usize) -> io::Result<u64> {
    item.get(offset..offset + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_le_bytes)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

/// An item of the quota tree about the subvolume at `path`.
fn quota_item(path: &Path, kind: u32) -> io::Result<Vec<u8>> {
    quota_tree_item(directory(path)?, kind, subvolume_id(path)?)
}

/// The item of the quota tree with the key (0, `kind`, `id`).
fn quota_tree_item(root: impl AsFd, kind: u32, id: u64) -> io::Result<Vec<u8>> {
    /// The kernel puts a header before each item: transid, objectid, offset, type, length.
    const HEADER: usize = 32;
    let mut search = TreeSearch {
        tree: QUOTA_TREE,
        objectid: [0, 0],
        offset: [id, id],
        transid: [0, u64::MAX],
        kind: [kind, kind],
        items: 1,
        unused: 0,
        unused_too: [0; 4],
        found: [0; 3992],
    };
    // SAFETY: this code takes a btrfs_ioctl_search_args.
    unsafe { ioctl(root, TREE_SEARCH, &mut search)? };
    if search.items == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    let length = search.found.get(28..HEADER).and_then(|b| b.try_into().ok());
    let length = length.map_or(0, u32::from_le_bytes) as usize;
    search
        .found
        .get(HEADER..HEADER + length)
        .map(<[u8]>::to_vec)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

/// Reads everything of each of a file system's devices and compares it with its checksums; changes nothing. Returns when
/// it is done.
///
/// # Errors
/// `EINPROGRESS` while another scrub runs; the system's.
pub fn scrub(path: &Path) -> io::Result<Vec<ScrubProgress>> {
    let root = directory(path)?;
    let info = file_system_info(&root)?;
    let mut found = Vec::new();
    for device in 1..=info.max_id {
        let mut arguments = ScrubArguments {
            device,
            start: 0,
            end: u64::MAX,
            flags: SCRUB_READ_ONLY,
            progress: ScrubProgress::default(),
            unused: [0; 109],
        };
        // SAFETY: this code takes a btrfs_ioctl_scrub_args.
        match unsafe { ioctl(&root, SCRUB, &mut arguments) } {
            // A device that was removed has left its number.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            other => {
                other?;
                found.push(arguments.progress);
            }
        }
    }
    Ok(found)
}

fn file_system_info(root: &OwnedFd) -> io::Result<FileSystemInfo> {
    let mut info = FileSystemInfo {
        max_id: 0,
        devices: 0,
        id: [0; 16],
        unused: [0; 124],
    };
    // SAFETY: this code takes a btrfs_ioctl_fs_info_args.
    unsafe { ioctl(root, FS_INFO, &mut info)? };
    Ok(info)
}

/// Bytes that a file system has promised to what is written and not on its way to the disk yet. Those that `statfs` calls
/// free are among them.
///
/// # Errors
/// The system's; `ENOENT` where the kernel's own description of the file system cannot be seen.
pub fn promised_bytes(path: &Path) -> io::Result<u64> {
    let id = file_system_info(&directory(path)?)?.id;
    let mut name = String::with_capacity(36);
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            name.push('-');
        }
        name.push_str(&format!("{byte:02x}"));
    }
    // Without a place on the disk, and with one that the file system's trees do not name yet.
    let mut promised: u64 = 0;
    for what in ["bytes_may_use", "bytes_reserved"] {
        let file = format!("/sys/fs/btrfs/{name}/allocation/data/{what}");
        let bytes: u64 = std::fs::read_to_string(file)?
            .trim()
            .parse()
            .map_err(io::Error::other)?;
        promised = promised.saturating_add(bytes);
    }
    Ok(promised)
}

/// Makes a file system on one device as large as the device has become.
///
/// # Errors
/// The system's.
pub fn grow_to_device(path: &Path) -> io::Result<()> {
    let mut arguments = VolumeArguments {
        fd: 0,
        name: [0; 4088],
    };
    put_name(&mut arguments.name, "max")?;
    // SAFETY: this code takes a btrfs_ioctl_vol_args.
    unsafe { ioctl(directory(path)?, RESIZE, &mut arguments) }
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
        assert_eq!(size_of::<QgroupInherit>(), 72);
        assert_eq!(size_of::<TreeSearch>(), 4096);
        assert_eq!(size_of::<FileSystemInfo>(), 1024);
        assert_eq!(size_of::<ScrubArguments>(), 1024);
    }
}
