//! The system calls that the other rooms need, safe from outside: namespaces, mounts, btrfs and loop ioctls.
//!
//! What `rustix` offers is used from there; here is only what it lacks. Every `unsafe` block says why it is sound.

pub mod btrfs;
pub mod io_priority;
pub mod loop_device;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod process;

use std::io;

/// Turns the result of a raw system call into a Rust one.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
