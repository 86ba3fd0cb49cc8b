//! The priority of a thread's reads and writes.

use crate::check;
use std::io;

const WHO_PROCESS: libc::c_int = 1;
/// Only while nobody else reads or writes.
const IDLE: libc::c_long = 3 << 13;

/// Lets this thread read and write only while nobody else does, until the result is dropped.
///
/// # Errors
/// The system's.
pub fn idle() -> io::Result<Idle> {
    // SAFETY: this call takes numbers only; 0 is this thread.
    let before = check(unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE) })?;
    Ok(Idle {
        before,
        _thread: std::marker::PhantomData,
    })
}

/// Restores the thread's priority when it is dropped.
#[derive(Debug)]
pub struct Idle {
    before: libc::c_long,
    /// It belongs to the thread that made it.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Drop for Idle {
    fn drop(&mut self) {
        // SAFETY: this call takes numbers only; 0 is this thread. It had this priority before, so it may have it.
        unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, self.before) };
    }
}
