//! Mounts: detached trees, ID mapping, and the plain old calls.

use crate::check;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A detached copy of the mount at `path`, which only the descriptor holds. Mounts below it are not copied.
///
/// # Errors
/// The system's, `EPERM` without `CAP_SYS_ADMIN` among them.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(
        rustix::fs::CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?)
}

/// Maps the owners of a detached mount through a user namespace: what is user 0 on disk is user 0 of that namespace.
///
/// # Errors
/// `EINVAL` when the file system does not support mapped mounts, `EPERM` without the right to map.
pub fn map_ids(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let users = u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(tree, libc::MOUNT_ATTR_IDMAP, users)
}

/// Takes rights from a detached mount: its devices and set-user-id programs mean nothing, and with `read_only` nothing
/// can be written through it.
///
/// # Errors
/// The system's.
pub fn restrict(tree: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let mut attributes = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
    if read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    set_attributes(tree, attributes, 0)
}

fn set_attributes(tree: BorrowedFd<'_>, set: u64, users: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users,
    };
    // SAFETY: the path is a NUL-terminated string, the structure lives through the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// Attaches a detached mount at `target`.
///
/// # Errors
/// The system's.
pub fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        tree,
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Attaches a detached mount at a directory that is open.
///
/// # Errors
/// The system's.
pub fn attach_at(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", target, "", flags)?)
}

/// Mounts a file system; `data` is its comma-separated options.
///
/// # Errors
/// The system's.
pub fn mount(
    source: &str,
    target: &Path,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> io::Result<()> {
    let data = CString::new(data).map_err(io::Error::other)?;
    Ok(rustix::mount::mount(
        source,
        target,
        kind,
        flags,
        data.as_c_str(),
    )?)
}

/// Mounts `source` on `target` as well; `recursive` takes the mounts below it along.
///
/// # Errors
/// The system's.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> io::Result<()> {
    if recursive {
        Ok(rustix::mount::mount_bind_recursive(source, target)?)
    } else {
        Ok(rustix::mount::mount_bind(source, target)?)
    }
}

/// Makes a path read-only from here on: a bind mount of itself.
///
/// # Errors
/// The system's.
pub fn make_read_only(path: &Path) -> io::Result<()> {
    bind(path, path, false)?;
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    Ok(rustix::mount::mount_remount(path, flags, c"")?)
}

/// Cuts the mount tree of this namespace off from every other: nothing propagates in or out.
///
/// # Errors
/// The system's.
pub fn make_private() -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Propagation;
    Ok(rustix::mount::mount_change(
        "/",
        Propagation::PRIVATE | Propagation::REC,
    )?)
}

/// Makes every mount of this namespace's tree from `/` on one that passes on what is mounted in it: to the copies of it
/// that namespaces made from this one have, and not back when their owner is less privileged.
///
/// # Errors
/// The system's.
pub fn pass_on() -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Propagation;
    let flags = Propagation::SHARED | Propagation::REC;
    Ok(rustix::mount::mount_change("/", flags)?)
}

/// Makes the mount at `new_root` the root of this mount namespace and detaches the old one.
///
/// # Errors
/// The system's, with the name of the call that failed.
pub fn pivot(new_root: &Path) -> io::Result<()> {
    let step = |what: &'static str| {
        move |e: rustix::io::Errno| {
            io::Error::new(io::Error::from(e).kind(), format!("{what}: {e}"))
        }
    };
    rustix::process::chdir(new_root).map_err(step("chdir"))?;
    rustix::process::pivot_root(".", ".").map_err(step("pivot_root"))?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).map_err(step("unmount"))?;
    rustix::process::chdir("/").map_err(step("chdir"))
}

/// Unmounts `target`; `lazy` detaches it at once and finishes when the last user is gone. Not being a mount point is
/// no error.
///
/// # Errors
/// The system's.
pub fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    let flags = if lazy {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    match rustix::mount::unmount(target, flags) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// One line of `/proc/PID/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Its number in this boot; numbers of mounts that are gone are used again.
    pub id: u64,
    /// The mount that it is mounted in.
    pub parent: u64,
    /// The device of the file system, `major:minor`.
    pub device: String,
    /// What of the file system is mounted: a path in it.
    pub root: std::path::PathBuf,
    /// Where it is mounted.
    pub target: std::path::PathBuf,
    /// Its own options, with commas: `ro` among them.
    pub options: String,
    /// The group that it passes on to what is mounted in it.
    pub group: Option<u64>,
    /// The group that it gets what is mounted in it from.
    pub master: Option<u64>,
    /// The file system's type.
    pub kind: String,
    /// What is mounted: a device, for example.
    pub source: String,
}

/// The mounts of this process, in order.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn mount_points() -> io::Result<Vec<MountPoint>> {
    Ok(parse_mountinfo(&std::fs::read_to_string(
        "/proc/self/mountinfo",
    )?))
}

/// The mounts of the process whose directory below `/proc` is open. Targets are relative to that process's root.
///
/// # Errors
/// `ESRCH` when the process is gone.
pub fn mount_points_of(process: impl AsFd) -> io::Result<Vec<MountPoint>> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(process, "mountinfo", flags, Mode::empty())?;
    Ok(parse_mountinfo(&io::read_to_string(std::fs::File::from(
        file,
    ))?))
}

fn parse_mountinfo(text: &str) -> Vec<MountPoint> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<MountPoint> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    let device = fields.next()?.to_owned();
    let root = unescape(fields.next()?).into();
    let target = unescape(fields.next()?).into();
    let options = fields.next()?.to_owned();
    let optional: Vec<&str> = fields.collect();
    let number = |name: &str| {
        optional
            .iter()
            .find_map(|o| o.strip_prefix(name)?.parse().ok())
    };
    let mut rest = right.split(' ');
    let kind = rest.next()?.to_owned();
    Some(MountPoint {
        id,
        parent,
        device,
        root,
        target,
        options,
        group: number("shared:"),
        master: number("master:"),
        kind,
        source: unescape(rest.next()?),
    })
}

/// A file or directory as the kernel tells them apart, and the mount that it is seen through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The device: of a btrfs subvolume, its own.
    pub device: (u32, u32),
    /// The number on that device.
    pub number: u64,
    /// The number of the mount, as in [`MountPoint::id`].
    pub mount: u64,
}

/// Where a descriptor leads, without asking file systems that may not answer.
///
/// # Errors
/// The system's.
pub fn place(fd: impl AsFd) -> io::Result<Place> {
    place_at(fd, Path::new(""))
}

/// Where a path below an open directory leads, links followed. As [`place`].
///
/// # Errors
/// The system's.
pub fn place_at(directory: impl AsFd, path: &Path) -> io::Result<Place> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(directory, path, flags, StatxFlags::INO | StatxFlags::MNT_ID)?;
    Ok(Place {
        device: (found.stx_dev_major, found.stx_dev_minor),
        number: found.stx_ino,
        mount: found.stx_mnt_id,
    })
}

/// The kernel writes blanks, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let digits = rest.get(at + 1..at + 4);
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Makes a device node; its owner is this process's.
///
/// # Errors
/// The system's.
pub fn make_device_node(
    path: &Path,
    kind: rustix::fs::FileType,
    mode: u32,
    major: u32,
    minor: u32,
) -> io::Result<()> {
    let mode = rustix::fs::Mode::from_raw_mode(mode);
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, device)?;
    // The umask has been applied: say the mode again.
    Ok(rustix::fs::chmod(path, mode)?)
}

/// Makes a character device node that belongs to `owner`, a user and a group.
///
/// # Errors
/// The system's.
pub fn make_device(path: &Path, mode: u32, major: u32, minor: u32, owner: u32) -> io::Result<()> {
    make_device_node(
        path,
        rustix::fs::FileType::CharacterDevice,
        mode,
        major,
        minor,
    )?;
    std::os::unix::fs::chown(path, Some(owner), Some(owner))
}

/// Is `fd` on a file system of this magic number?
///
/// # Errors
/// The system's.
pub fn is_file_system(fd: impl AsFd, magic: i64) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type == magic)
}

/// The path as a NUL-terminated string.
///
/// # Errors
/// When it contains a NUL.
pub fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_with_blanks_and_optional_fields_is_parsed() {
        let text = "36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 master:22 - btrfs /dev/loop3 rw\nbroken line\n\
                    37 35 0:5 / /x\\y rw - proc proc rw\n";
        let first = MountPoint {
            id: 36,
            parent: 35,
            device: "98:0".to_owned(),
            root: "/".into(),
            target: "/mnt/a b".into(),
            options: "rw,noatime".to_owned(),
            group: Some(1),
            master: Some(22),
            kind: "btrfs".to_owned(),
            source: "/dev/loop3".to_owned(),
        };
        let second = MountPoint {
            id: 37,
            device: "0:5".to_owned(),
            target: "/x\\y".into(),
            options: "rw".to_owned(),
            group: None,
            master: None,
            kind: "proc".to_owned(),
            source: "proc".to_owned(),
            ..first.clone()
        };
        assert_eq!(parse_mountinfo(text), [first, second]);
    }
}
