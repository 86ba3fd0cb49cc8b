//! Namespaces and the processes that live in them.

use crate::check;
use rustix::process::Pid;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The namespaces that a VM gets when its first process is made.
pub const VM_NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET;

/// The namespaces that a VM's first process takes by itself: that of mounts when its mounts stand, so that they are
/// locked and its root cannot undo them; that of cgroups when it is in its own, which becomes the root of all it sees.
pub const LATE_VM_NAMESPACES: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;

/// The mount namespace, for [`enter`], [`leave`] and [`kind`].
pub const MOUNTS: libc::c_int = libc::CLONE_NEWNS;

/// The network namespace, for [`enter`].
pub const NETWORK: libc::c_int = libc::CLONE_NEWNET;

/// For [`leave`]: root, working directory and file mask, which the threads of a process share.
pub const ROOT: libc::c_int = libc::CLONE_FS;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one.
    Parent(Pid),
}

/// Forks into new namespaces (`CLONE_NEW…` flags; 0 for a plain fork).
///
/// # Errors
/// The system's: `EPERM` without the right, `ENOSPC` or `EUSERS` at a limit, `EAGAIN` without room for a process.
///
/// # Safety
/// The process must have one thread only: in the child of a process with several, locks may be held for ever.
pub unsafe fn fork_into(namespaces: libc::c_int) -> io::Result<Fork> {
    // SAFETY: an all-zero clone_args is valid: no stack, no descriptors, fork semantics.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::try_from(namespaces).map_err(io::Error::other)?;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: the structure lives through the call and its size is passed; without CLONE_VM this is a fork, sound under
    // this function's own condition.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    let pid = check(result)?;
    Ok(match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        None => Fork::Child,
        Some(pid) => Fork::Parent(pid),
    })
}

/// Moves this process into the namespace that `fd` stands for (or, with a pidfd, the namespaces of `kinds` of that
/// process). For pid namespaces only later children are concerned.
///
/// # Errors
/// The system's.
pub fn enter(fd: BorrowedFd<'_>, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    let result = unsafe { libc::setns(fd.as_raw_fd(), kinds) };
    check(result.into()).map(drop)
}

/// Leaves the namespaces of `kinds` for new ones.
///
/// # Errors
/// The system's.
pub fn leave(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    let result = unsafe { libc::unshare(kinds) };
    check(result.into()).map(drop)
}

/// What kind of namespace `fd` stands for: one of the `CLONE_NEW…` flags.
///
/// # Errors
/// `ENOTTY` when it is none.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: the request takes no argument.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE as _) };
    check(kind.into()).map(|_| kind)
}

/// The user namespace whose rights rule the namespace that `fd` stands for.
///
/// # Errors
/// `EPERM` when that is outside of this process's own.
pub fn owner(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and gives a new descriptor, which nobody else has.
    unsafe {
        let owner = libc::ioctl(fd.as_raw_fd(), libc::NS_GET_USERNS as _);
        check(owner.into())?;
        Ok(OwnedFd::from_raw_fd(owner))
    }
}

/// Maps the ids 0 to 65535 of the user namespace of `pid` to the 65,536 ids from `base`, users and groups alike.
///
/// # Errors
/// The system's.
pub fn map_user_namespace(pid: Pid, base: u32) -> io::Result<()> {
    let line = format!("0 {base} 65536");
    let pid = pid.as_raw_nonzero();
    std::fs::write(format!("/proc/{pid}/uid_map"), &line)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), &line)
}
