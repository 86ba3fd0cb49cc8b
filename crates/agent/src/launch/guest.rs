//! PID 1's side: everything that happens with the VM's own rights.

use super::{LaunchError, seccomp};
use crate::identity;
use instavm_agent_api::launch::{Launch, Network};
use instavm_linux::{namespace, network, process};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

/// What the launcher hears when the agent is about to serve.
pub(super) const READY: &str = "ready";

/// What PID 1 holds for the node, and nobody in the VM can reach.
pub(super) struct Door {
    /// The agent's socket.
    pub(super) listener: OwnedFd,
    /// The mount namespace that the VM's own is a copy of. It lives as long as this descriptor: what the node mounts
    /// in it appears in the VM, locked.
    pub(super) _outside: File,
}

/// Waits until the launcher has built the tree and the node has given the link, then becomes the agent.
pub(super) fn run(launch: Launch, door: Door, mut go: File, mut done: File) -> ! {
    let mut byte = [0];
    if go.read_exact(&mut byte).is_err() {
        // The launcher died or gave up: it has said why.
        exit();
    }
    drop(go);
    if let Err(error) = enter(&launch) {
        let _ = done.write_all(error.to_string().as_bytes());
        exit();
    }
    if done.write_all(READY.as_bytes()).is_err() {
        exit();
    }
    drop(done);
    let mut config = crate::serve::ServeConfig::new(launch.token);
    config.warm = launch.warm;
    crate::serve::serve(door.listener, config);
    // The end of PID 1 is the end of the VM.
    exit()
}

fn exit() -> ! {
    // SAFETY: ends this process; the launcher's copy of everything stays untouched.
    unsafe { libc::_exit(1) }
}

fn enter(launch: &Launch) -> Result<(), LaunchError> {
    process::become_root().map_err(LaunchError::at("become root"))?;
    namespace::leave(namespace::LATE_VM_NAMESPACES)
        .map_err(LaunchError::at("new namespaces of mounts and cgroups"))?;
    rustix::process::chdir("/")
        .map_err(io::Error::from)
        .map_err(LaunchError::at("go to the root"))?;
    quiet_standard_streams().map_err(LaunchError::at("open /dev/null"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::system::sethostname(launch.hostname.as_bytes())
        .map_err(io::Error::from)
        .map_err(LaunchError::at("set the host name"))?;
    name_files(launch).map_err(LaunchError::at("write the files of names"))?;
    connect(launch.network.as_ref())?;
    process::limit_open_files(launch.open_files).map_err(LaunchError::at("limit open files"))?;
    rustix::thread::set_name(c"instavm-agent")
        .map_err(io::Error::from)
        .map_err(LaunchError::at("take a name"))?;
    process::set_undumpable().map_err(LaunchError::at("become undumpable"))?;
    seccomp::install().map_err(LaunchError::at("install the system call filter"))
}

/// Descriptors 0 to 2 were the node's: put the VM's own `/dev/null` there.
fn quiet_standard_streams() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

fn name_files(launch: &Launch) -> io::Result<()> {
    identity::write_names(&launch.hostname)?;
    match &launch.network {
        Some(network) => identity::write_resolver(network.resolver),
        None => Ok(()),
    }
}

fn connect(wanted: Option<&Network>) -> Result<(), LaunchError> {
    let socket = network::control_socket().map_err(LaunchError::at("open a socket"))?;
    network::set_up(&socket, "lo").map_err(LaunchError::at("bring lo up"))?;
    let Some(wanted) = wanted else { return Ok(()) };
    for address in &wanted.addresses {
        network::set_address(&socket, "eth0", address.address, address.prefix)
            .map_err(LaunchError::at("give eth0 its address"))?;
    }
    network::set_up(&socket, "eth0").map_err(LaunchError::at("bring eth0 up"))?;
    network::add_default_route(&socket, wanted.gateway)
        .map_err(LaunchError::at("add the default route"))
}
