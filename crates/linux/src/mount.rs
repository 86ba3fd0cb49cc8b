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
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?,
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

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Where it is mounted.
    pub target: std::path::PathBuf,
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

fn parse_mountinfo(text: &str) -> Vec<MountPoint> {
    let parse_line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let target = unescape(left.split(' ').nth(4)?);
        let mut rest = right.split(' ');
        let kind = rest.next()?.to_owned();
        let source = unescape(rest.next()?);
        Some(MountPoint {
            target: target.into(),
            kind,
            source,
        })
    };
    text.lines().filter_map(parse_line).collect()
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
        let text = "36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 - btrfs /dev/loop3 rw\nbroken line\n\
                    37 35 0:5 / /x\\y rw - proc proc rw\n";
        let points = parse_mountinfo(text);
        assert_eq!(
            points,
            [
                MountPoint {
                    target: "/mnt/a b".into(),
                    kind: "btrfs".into(),
                    source: "/dev/loop3".into()
                },
                MountPoint {
                    target: "/x\\y".into(),
                    kind: "proc".into(),
                    source: "proc".into()
                },
            ]
        );
    }
}
