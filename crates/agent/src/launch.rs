//! *Launch* mode: from a process of the host to PID 1 of a VM.
//!
//! The launcher is started by the node with a [`Launch`] on standard input and tells its [`Progress`] on standard
//! output. It has one thread. The order matters:
//!
//! 1. bind the agent's socket on the host;
//! 2. take a private mount namespace, still with the host's rights;
//! 3. fork PID 1 into the VM's user, pid, network, uts and ipc namespaces; map its ids. A child puts PID 1 into the VM's
//!    cgroups meanwhile, which waits for the kernel for longer than all the rest takes;
//! 4. mount the VM's tree (root disk mapped to its ids, `/proc`, `/dev`, `/sys`, masks), make it the root of the
//!    namespace and let it pass on what is mounted in it later;
//! 5. let the node give the VM its link;
//! 6. PID 1, which is in its cgroups by now, takes namespaces of mounts and cgroups of its own. Everything mounted so far came from a more privileged namespace, so the
//!    kernel locks it: the VM's root cannot unmount a mask or turn a read-only mount writable. Then it configures its
//!    network, installs the system call filter and goes on as the agent.
//!
//! The launcher's mount namespace lives on by a descriptor of PID 1. The node mounts volumes in it: they appear in the
//! VM's own namespace, with what is locked locked; what is mounted in the VM does not appear outside.
//!
//! PID 1 is never started by `exec`, and is marked undumpable: the kernel then lets nobody without rights in the *host's*
//! user namespace trace it or read its memory, root of the VM included.

mod beside;
mod guest;
mod host;
mod mounts;
mod seccomp;

use instavm_agent_api::frame;
use instavm_agent_api::launch::Progress;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::process::ExitCode;

/// Why a VM could not be launched: the step, and the system's error.
#[derive(Debug)]
pub(crate) struct LaunchError {
    step: String,
    source: io::Error,
}

impl LaunchError {
    /// An adapter for `map_err`.
    pub(crate) fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> LaunchError {
        let step = step.into();
        move |source| LaunchError { step, source }
    }
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step, self.source)
    }
}

/// Runs launch mode. In the launcher it returns when the VM's agent listens, or the launch failed; in PID 1 it does not.
pub fn main() -> ExitCode {
    match host::launch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The node is the only reader; without it there is nobody to tell.
            let _ = send(
                &mut io::stdout(),
                &Progress::Failed {
                    message: error.to_string(),
                },
            );
            ExitCode::FAILURE
        }
    }
}

fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    to.write_all(&frame::encode(message).map_err(io::Error::other)?)?;
    to.flush()
}

fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut prefix = [0; 4];
    from.read_exact(&mut prefix)?;
    let mut payload = vec![0; frame::payload_length(prefix).map_err(io::Error::other)?];
    from.read_exact(&mut payload)?;
    frame::decode(&payload).map_err(io::Error::other)
}
