//! Starting processes, ending them, and reaping.

use instavm_agent_api::TOKEN_BYTES;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use subtle::ConstantTimeEq;

/// Where programs are looked for, in this order.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The highest signal of the kernel.
const LAST_SIGNAL: i32 = 64;

/// Most descriptors that a child is given.
const MAX_DESCRIPTORS: usize = 6;

/// The node's secret. Children of the agent begin as copies of it and must not carry it into the VM.
pub(crate) struct Secret([Cell<u8>; TOKEN_BYTES]);

impl Secret {
    pub(crate) fn new(token: [u8; TOKEN_BYTES]) -> Secret {
        Secret(token.map(Cell::new))
    }

    /// Compares in constant time.
    pub(crate) fn matches(&self, token: &[u8; TOKEN_BYTES]) -> bool {
        let mine: [u8; TOKEN_BYTES] = std::array::from_fn(|index| self.0[index].get());
        mine.ct_eq(token).into()
    }

    fn wipe(&self) {
        for byte in &self.0 {
            // SAFETY: the cell is there to be written; volatile, because nothing reads it again.
            unsafe { std::ptr::write_volatile(byte.as_ptr(), 0) };
        }
    }
}

/// A program to start. Everything that takes memory is made before the fork.
#[derive(Debug)]
pub(crate) struct Program {
    /// Where it may be, each with the name that it gets.
    candidates: Vec<(CString, CString)>,
    /// What follows the name.
    arguments: Vec<CString>,
    environment: Vec<CString>,
    workdir: CString,
    descriptors: Vec<OwnedFd>,
    oom_score: &'static CStr,
    dies_with_agent: bool,
    has_terminal: bool,
}

impl Program {
    /// A program by its path, or by its name, looked for in [`PATH`]. `descriptors` become 0, 1, 2 and so on.
    pub(crate) fn new(
        name: &str,
        arguments: &[&str],
        workdir: &Path,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<Program> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let arguments = arguments.iter().map(|argument| CString::new(*argument));
        let arguments = arguments.collect::<Result<_, _>>()?;
        Ok(Program {
            candidates: places(name)?,
            arguments,
            environment: Vec::new(),
            workdir: CString::new(workdir.as_os_str().as_bytes())?,
            descriptors,
            oom_score: c"500",
            dies_with_agent: false,
            has_terminal: false,
        })
    }

    /// Another program that does where the first is not there.
    pub(crate) fn or(mut self, name: &str) -> io::Result<Program> {
        self.candidates.extend(places(name)?);
        Ok(self)
    }

    /// Sets the environment. Names and values that no environment can hold are left out.
    pub(crate) fn environment<'a>(
        mut self,
        variables: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Program {
        let usable = variables.filter(|(name, _)| !name.is_empty() && !name.contains('='));
        self.environment = usable
            .filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok())
            .collect();
        self
    }

    /// How readily the kernel picks it when memory runs out; higher than the agent's.
    pub(crate) fn oom_score(mut self, score: &'static CStr) -> Program {
        self.oom_score = score;
        self
    }

    /// It is killed when the agent ends.
    pub(crate) fn dies_with_agent(mut self) -> Program {
        self.dies_with_agent = true;
        self
    }

    /// Its standard input is the terminal that controls its session.
    pub(crate) fn with_terminal(mut self) -> Program {
        self.has_terminal = true;
        self
    }

    /// Starts it as the leader of a new session. That it cannot be executed shows as exit status 126 or 127 and a line on
    /// its standard error, as with a shell.
    ///
    /// `secret` is wiped in the child before anything else could read it.
    pub(crate) fn spawn(&self, secret: &Secret) -> io::Result<i32> {
        let mut arguments = pointers(&self.arguments);
        // The place of the name.
        arguments.insert(0, std::ptr::null());
        let environment = pointers(&self.environment);
        // SAFETY: the process has one thread, and the child only makes system calls until it executes or exits.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: this is the child; the pointer arrays end with null and outlive the call.
            0 => unsafe { self.execute(&mut arguments, &environment, secret) },
            pid => Ok(pid),
        }
    }

    /// # Safety
    /// Only in a child just forked; the arrays are null-terminated lists of C strings, but for the first of the arguments,
    /// whose place is free.
    unsafe fn execute(
        &self,
        arguments: &mut [*const c_char],
        environment: &[*const c_char],
        secret: &Secret,
    ) -> ! {
        // SAFETY: plain system calls on memory that lives until `_exit`.
        unsafe {
            secret.wipe();
            libc::setsid();
            if self.dies_with_agent {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            }
            reset_signals();
            self.place_descriptors();
            if self.has_terminal {
                libc::ioctl(0, libc::TIOCSCTTY, 0);
            }
            // A copy of the agent cannot be traced, and therefore its own /proc files belong to nobody here. By now it
            // has none of the agent's descriptors.
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
            write_oom_score(self.oom_score);
            libc::umask(0o022);
            if libc::chdir(self.workdir.as_ptr()) != 0 {
                libc::chdir(c"/".as_ptr());
            }
            let mut denied = false;
            for (path, name) in &self.candidates {
                arguments[0] = name.as_ptr();
                libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                denied |= !matches!(*libc::__errno_location(), libc::ENOENT | libc::ENOTDIR);
            }
            let text = if denied {
                c": cannot be executed\n"
            } else {
                c": command not found\n"
            };
            if let Some((_, name)) = self.candidates.first() {
                write_all(2, name);
            }
            write_all(2, text);
            libc::_exit(if denied { 126 } else { 127 })
        }
    }

    /// # Safety
    /// Only in a child just forked.
    unsafe fn place_descriptors(&self) {
        let mut lifted: [RawFd; MAX_DESCRIPTORS] = [-1; MAX_DESCRIPTORS];
        let count = self.descriptors.len() as RawFd;
        // SAFETY: system calls on descriptors of this child alone.
        unsafe {
            for (slot, source) in lifted.iter_mut().zip(&self.descriptors) {
                *slot = libc::fcntl(source.as_raw_fd(), libc::F_DUPFD_CLOEXEC, count);
            }
            for (target, source) in (0..count).zip(lifted) {
                if source < 0 || libc::dup2(source, target) < 0 {
                    libc::_exit(126);
                }
            }
            // Everything is close-on-exec already; this is for what the launcher may have left open.
            libc::syscall(libc::SYS_close_range, count, libc::c_uint::MAX, 0);
        }
    }
}

/// Where a program may be, by its name or path.
fn places(name: &str) -> io::Result<Vec<(CString, CString)>> {
    if name.contains('/') {
        return Ok(vec![(CString::new(name)?, CString::new(name)?)]);
    }
    let place = |directory| {
        let path = CString::new(format!("{directory}/{name}"))?;
        Ok((path, CString::new(name)?))
    };
    PATH.split(':').map(place).collect()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let ends = std::iter::once(std::ptr::null());
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain(ends)
        .collect()
}

/// # Safety
/// Only in a child just forked.
unsafe fn reset_signals() {
    // The kernel's own layout: handler, flags, restorer, mask. All zero is the default disposition.
    let default = [0u64; 4];
    // SAFETY: default dispositions and an empty mask are always valid. The C library would refuse two of the signals.
    unsafe {
        for signal in 1..=LAST_SIGNAL {
            let (new, old) = (default.as_ptr(), std::ptr::null_mut::<u64>());
            libc::syscall(libc::SYS_rt_sigaction, signal, new, old, size_of::<u64>());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// # Safety
/// Only in a child just forked.
unsafe fn write_oom_score(score: &CStr) {
    // SAFETY: system calls on a descriptor of this child alone.
    unsafe {
        let path = c"/proc/self/oom_score_adj";
        let fd = libc::open(
            path.as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NONBLOCK,
        );
        if fd >= 0 {
            write_all(fd, score);
            libc::close(fd);
        }
    }
}

/// # Safety
/// Only in a child just forked.
unsafe fn write_all(fd: RawFd, text: &CStr) {
    // SAFETY: the buffer is valid for its length.
    unsafe { libc::write(fd, text.as_ptr().cast(), text.count_bytes()) };
}

/// Runs a task in a forked child, without another program: for work that may block on the VM's file systems.
/// The child keeps no descriptor but `keep`.
pub(crate) fn fork_task(keep: RawFd, secret: &Secret, task: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: the process has one thread, so the child may do whatever the parent might.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: this is a child just forked. The descriptors are closed behind the back of their owners, none of
            // which is used or dropped any more: the child ends by `_exit`.
            unsafe {
                secret.wipe();
                libc::setsid();
                reset_signals();
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                close_all_but(keep);
                write_oom_score(c"500");
            }
            let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(finished.is_err())) }
        }
        pid => Ok(pid),
    }
}

/// # Safety
/// Nothing may use or close any other descriptor afterwards.
unsafe fn close_all_but(keep: RawFd) {
    let keep = keep.unsigned_abs();
    // SAFETY: as the caller promises.
    unsafe {
        if keep > 0 {
            libc::syscall(libc::SYS_close_range, 0, keep - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, keep + 1, libc::c_uint::MAX, 0);
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) pid: i32,
    status: i32,
    /// Processor time of it and the children it waited for, in microseconds.
    pub(crate) cpu_micros: u64,
}

impl Ended {
    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        libc::WIFSIGNALED(self.status).then(|| libc::WTERMSIG(self.status))
    }

    /// Its exit status, or 128 + the signal.
    pub(crate) fn code(&self) -> i32 {
        self.signal()
            .map_or_else(|| libc::WEXITSTATUS(self.status), |signal| 128 + signal)
    }
}

/// Takes one child that has ended, whether it was started here or inherited.
pub(crate) fn reap() -> Option<Ended> {
    let mut status = 0;
    // SAFETY: all-zero is a valid `rusage`, and both pointers are to live values.
    let (pid, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let options = libc::WNOHANG | libc::__WALL;
        (
            libc::wait4(-1, &raw mut status, options, &raw mut usage),
            usage,
        )
    };
    if pid <= 0 {
        return None;
    }
    let micros =
        |time: libc::timeval| time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs();
    Some(Ended {
        pid,
        status,
        cpu_micros: micros(usage.ru_utime) + micros(usage.ru_stime),
    })
}

/// Sends a signal to a process; one that is gone does not matter.
pub(crate) fn signal(pid: i32, signal: i32) {
    if pid > 1 {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Sends a signal to a process group; one that is gone does not matter.
pub(crate) fn signal_group(leader: i32, signal: i32) {
    if leader > 1 {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(-leader, signal) };
    }
}
