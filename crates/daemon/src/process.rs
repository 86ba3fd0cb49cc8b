//! This process and others: signals, limits, the duties of a container's first process, ending a daemon.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tokio::signal::unix::{self, SignalKind};

/// The signals that ask the daemon to stop, as they come.
#[derive(Debug)]
pub struct StopSignals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl StopSignals {
    /// Takes them over from the kernel's default action.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Raises the limit of open files as far as it goes; returns what it is.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_open_files() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Undoes a mask of blocked signals that a parent left behind.
///
/// # Errors
/// When the kernel refuses.
pub fn unblock_signals() -> nix::Result<()> {
    SigSet::all().thread_unblock()
}

/// Whether this is a container's first process.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// The first process' duties: runs this program again as a child, hands signals on to it, buries orphans, and ends as
/// the child does.
///
/// # Errors
/// When the child cannot be started or waited for.
pub fn supervise(arguments: &[OsString]) -> io::Result<ExitCode> {
    SigSet::all().thread_block()?;
    let child = Command::new("/proc/self/exe")
        .args(arguments.iter().skip(1))
        .spawn()?;
    let child = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    loop {
        match SigSet::all().wait()? {
            Signal::SIGCHLD => {
                if let Some(code) = bury(child)? {
                    return Ok(ExitCode::from(code));
                }
            }
            // A child that has ended already is found at its SIGCHLD.
            other => drop(kill(child, other)),
        }
    }
}

/// Takes all ended children; returns the exit status of `awaited` when it is among them.
fn bury(awaited: Pid) -> io::Result<Option<u8>> {
    let mut found = None;
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                let code = 128 + signal as i32;
                (pid, u8::try_from(code).unwrap_or(u8::MAX))
            }
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(found),
            Ok(_) | Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if pid == awaited {
            found = Some(code);
        }
    }
}

/// Another process, held by a descriptor: its number cannot come to mean another one.
#[derive(Debug)]
pub struct Other(OwnedFd);

impl Other {
    /// Takes hold of it; `None` when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(pid: u32) -> io::Result<Option<Self>> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Some(Self(descriptor))),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks it to end; kills it when it has not after `grace`. Returns when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses, or the process does not even end when it is killed.
    pub fn end(&self, grace: Duration) -> io::Result<()> {
        self.send(rustix::process::Signal::TERM)?;
        if self.gone_within(grace)? {
            return Ok(());
        }
        self.send(rustix::process::Signal::KILL)?;
        if self.gone_within(grace)? {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the process does not end",
        ))
    }

    fn send(&self, signal: rustix::process::Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn gone_within(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut watched = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut watched, Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_asked_to_end_is_gone_afterwards() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let other = Other::open(child.id()).unwrap().unwrap();
        other.end(Duration::from_secs(10)).unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_process_that_ignores_the_request_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo ready; read line"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let other = Other::open(child.id()).unwrap().unwrap();
        other.end(Duration::from_millis(200)).unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_process_that_is_gone_is_nobody() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(Other::open(child.id()).unwrap().is_none());
    }

    #[test]
    fn the_limit_of_open_files_is_raised_to_the_hard_one() {
        let raised = raise_open_files().unwrap();
        assert_eq!(
            getrlimit(Resource::RLIMIT_NOFILE).unwrap(),
            (raised, raised)
        );
    }
}
