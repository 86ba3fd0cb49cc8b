//! Work of the launcher that goes on beside it, in a child.

use super::LaunchError;
use instavm_linux::namespace::{self, Fork};
use rustix::process::{Pid, WaitOptions};
use std::io::{self, PipeReader, Read, Write};

/// What a child says when its work is done.
const DONE: &str = "ok";

/// A child that works.
pub(super) struct Beside {
    pid: Pid,
    report: PipeReader,
}

impl Beside {
    /// Starts a child that does the work and nothing else.
    pub(super) fn start(
        work: impl FnOnce() -> Result<(), LaunchError>,
    ) -> Result<Self, LaunchError> {
        let (report, said) = io::pipe().map_err(LaunchError::at("pipe"))?;
        // SAFETY: launch mode has one thread only.
        let fork = unsafe { namespace::fork_into(0) }.map_err(LaunchError::at("fork"))?;
        match fork {
            Fork::Child => {
                drop(report);
                finish(work(), said)
            }
            Fork::Parent(pid) => Ok(Self { pid, report }),
        }
    }

    /// Waits for the end of the work.
    pub(super) fn wait(mut self, what: &str) -> Result<(), LaunchError> {
        let mut message = String::new();
        self.report
            .read_to_string(&mut message)
            .map_err(LaunchError::at(what))?;
        rustix::process::waitpid(Some(self.pid), WaitOptions::empty())
            .map_err(io::Error::from)
            .map_err(LaunchError::at(what))?;
        match message.as_str() {
            DONE => Ok(()),
            other => Err(LaunchError::at(what)(io::Error::other(other.to_owned()))),
        }
    }
}

fn finish(result: Result<(), LaunchError>, mut said: impl Write) -> ! {
    let message = result.map_or_else(|e| e.to_string(), |()| DONE.to_owned());
    // The reader sees an empty report when this fails.
    let _ = said.write_all(message.as_bytes());
    // SAFETY: ends this process; nothing of the parent's copy may run its destructors here.
    unsafe { libc::_exit(0) }
}
