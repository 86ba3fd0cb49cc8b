//! Where a path of a file transfer leads.
//!
//! The kernel's own file systems have links that are no paths (`/proc/self/exe`, `/proc/1/root`) and lead out of what a
//! path is about; here they would lead to the agent itself. They are never followed, and nothing is written there.

use crate::file::{refuse, system_failure};
use instavm_agent_api::{Failure, FailureKind};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatfs, open, openat2, readlinkat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

/// Links that are followed to a file that does not exist yet.
const MOST_LINKS: usize = 40;

/// File systems that are the kernel's own: `proc`, `sysfs`, and the two versions of control groups.
const OF_THE_KERNEL: [u64; 4] = [0x9fa0, 0x6265_6572, 0x27_e0eb, 0x6367_7270];
const PROC: u64 = OF_THE_KERNEL[0];

/// Is it a file of the kernel's own file systems? Those tell sizes that mean nothing.
pub(crate) fn is_of_the_kernel(file: impl AsFd) -> bool {
    file_system(file).is_some_and(|kind| OF_THE_KERNEL.contains(&kind))
}

fn file_system(file: impl AsFd) -> Option<u64> {
    // The type's width and sign differ between architectures; the numbers are all positive.
    Some(fstatfs(file).ok()?.f_type as u64)
}

/// Opens a regular file.
pub(crate) fn open_to_read(workdir: &Path, path: &str) -> Result<(File, Metadata), Failure> {
    let absolute = absolute(workdir, path)?;
    // Without waiting for a writer of a FIFO, and without getting a terminal.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let failed = |error: io::Error| system_failure("read", path, &error);
    let file = File::from(open_plainly(&absolute, flags).map_err(failed)?);
    let about = file.metadata().map_err(failed)?;
    regular(path, &about)?;
    if file_system(&file) == Some(PROC) && is_about_this_process(&file) {
        let message = format!(
            "{path} is about the process that would read it, which is none of the VM's own"
        );
        return Err(refuse(FailureKind::Unsuitable, message));
    }
    Ok((file, about))
}

/// Opens what a path leads to by names and ordinary links alone.
fn open_plainly(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        // A kernel without the call.
        Err(Errno::NOSYS | Errno::PERM) => Ok(open(path, flags, Mode::empty())?),
        other => Ok(other?),
    }
}

/// `/proc/self` of a transfer is the transfer's own process, which has come from outside of the VM. What is there about
/// the VM's network and mounts is the same for all.
fn is_about_this_process(file: &File) -> bool {
    let me = std::process::id().to_string();
    let Ok(place) = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
        return true;
    };
    let mut parts = place.iter().skip_while(|part| *part != me.as_str());
    let about = parts.nth(1).and_then(OsStr::to_str);
    about.is_some_and(|about| !matches!(about, "net" | "mounts"))
}

/// Where a write to the path ends up, and what is there: links are followed, also to what does not exist yet. The
/// directories above it are made.
pub(crate) fn destination(
    workdir: &Path,
    path: &str,
) -> Result<(PathBuf, Option<Metadata>), Failure> {
    let failed = |error: io::Error| system_failure("write", path, &error);
    let mut target = absolute(workdir, path)?;
    for _ in 0..=MOST_LINKS {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            break;
        };
        let directory = make_directories(parent).map_err(failed)?;
        if is_of_the_kernel(&directory) {
            let message = format!("cannot write {path}: it leads to the kernel's own files");
            return Err(refuse(FailureKind::Unsuitable, message));
        }
        match readlinkat(&directory, name, Vec::new()) {
            Ok(link) => target = parent.join(OsStr::from_bytes(link.as_bytes())),
            Err(Errno::NOENT) => return Ok((target, None)),
            Err(Errno::INVAL) => {
                let about = target.symlink_metadata().map_err(failed)?;
                regular(path, &about)?;
                return Ok((target, Some(about)));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
    match target.file_name() {
        Some(_) => Err(failed(Errno::LOOP.into())),
        None => Err(refuse(
            FailureKind::Unsuitable,
            format!("{path} names no file"),
        )),
    }
}

/// Opens a directory, after making it and those above it where they are missing.
fn make_directories(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open_plainly(path, flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut so_far = PathBuf::new();
    for part in path.components() {
        so_far.push(part);
        if part == Component::RootDir {
            continue;
        }
        match open_plainly(&so_far, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match std::fs::create_dir(&so_far) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    open_plainly(path, flags)
}

fn absolute(workdir: &Path, path: &str) -> Result<PathBuf, Failure> {
    if path.is_empty() || path.contains('\0') {
        return Err(refuse(
            FailureKind::Unsuitable,
            "the path is empty or has a NUL character".to_owned(),
        ));
    }
    if path.ends_with('/') {
        return Err(refuse(
            FailureKind::Unsuitable,
            format!("{path} is a directory, not a regular file"),
        ));
    }
    Ok(workdir.join(path))
}

fn regular(path: &str, about: &Metadata) -> Result<(), Failure> {
    let kind = about.file_type();
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(refuse(
        FailureKind::Unsuitable,
        format!("{path} is {what}, not a regular file"),
    ))
}
