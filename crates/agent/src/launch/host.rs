//! The launcher's side: everything that needs the host's rights.

use super::beside::Beside;
use super::{LaunchError, guest, mounts, receive, send};
use instavm_agent_api::launch::{Launch, Proceed, Progress};
use instavm_linux::namespace::{self, Fork};
use rustix::process::{Pid, Signal, WaitOptions};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// How far behind the agent's accept queue may fall.
const BACKLOG: i32 = 1024;

/// Runs the whole launch. In the VM's PID 1 it does not return.
pub(super) fn launch() -> Result<(), LaunchError> {
    // Taken over from std, whose handle would buffer and outlive the fork.
    // SAFETY: nothing else uses descriptor 0 from here on.
    let mut node = File::from(unsafe { OwnedFd::from_raw_fd(0) });
    let launch: Launch = receive(&mut node).map_err(LaunchError::at("read the launch"))?;
    rustix::process::setsid()
        .map_err(io::Error::from)
        .map_err(LaunchError::at("setsid"))?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let listener = bind(Path::new(&launch.socket)).map_err(LaunchError::at("bind the socket"))?;
    let groups = open_cgroups(&launch.cgroups)?;
    mounts::complete_root(&launch)?;
    let tree = mounts::open_root(&launch)?;
    namespace::leave(libc::CLONE_NEWNS).map_err(LaunchError::at("new mount namespace"))?;
    instavm_linux::mount::make_private().map_err(LaunchError::at("make mounts private"))?;
    let outside =
        File::open("/proc/self/ns/mnt").map_err(LaunchError::at("open the new mount namespace"))?;

    let (go_out, go_in) = pipe()?;
    let (done_out, done_in) = pipe()?;
    // SAFETY: launch mode has one thread only.
    let fork = unsafe { namespace::fork_into(namespace::VM_NAMESPACES) }
        .map_err(LaunchError::at("clone into new namespaces"))?;
    match fork {
        Fork::Child => {
            drop((go_in, done_out, tree, node, groups));
            let door = guest::Door {
                listener,
                _outside: outside,
            };
            guest::run(launch, door, File::from(go_out), File::from(done_in))
        }
        Fork::Parent(pid) => {
            drop((go_out, done_in, listener, outside));
            let first = FirstProcess { pid, keep: false };
            let joining = Beside::start(|| join_cgroups(groups, pid))?;
            let pipes = (File::from(go_in), File::from(done_out));
            first.bring_up(&launch, tree, node, joining, pipes)
        }
    }
}

/// The VM's PID 1 as the launcher holds it: killed unless the launch succeeds.
struct FirstProcess {
    pid: Pid,
    keep: bool,
}

impl FirstProcess {
    fn bring_up(
        mut self,
        launch: &Launch,
        tree: OwnedFd,
        mut node: File,
        joining: Beside,
        (mut go, mut done): (File, File),
    ) -> Result<(), LaunchError> {
        namespace::map_user_namespace(self.pid, launch.id_base)
            .map_err(LaunchError::at("map the user namespace"))?;
        mounts::build(launch, self.pid, tree.as_fd())?;
        drop(tree);
        let spawned = Progress::Spawned {
            pid: self.pid.as_raw_nonzero().get(),
        };
        send(&mut io::stdout(), &spawned).map_err(LaunchError::at("report"))?;
        let Proceed = receive(&mut node).map_err(LaunchError::at("wait for the link"))?;
        joining.wait("join the cgroups")?;
        go.write_all(&[1])
            .map_err(LaunchError::at("let the first process go on"))?;
        let mut report = String::new();
        done.read_to_string(&mut report)
            .map_err(LaunchError::at("hear from the first process"))?;
        match report.as_str() {
            guest::READY => {}
            "" => return Err(failed("the VM's first process died")),
            message => return Err(failed(message)),
        }
        send(&mut io::stdout(), &Progress::Ready).map_err(LaunchError::at("report"))?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for FirstProcess {
    fn drop(&mut self) {
        if !self.keep {
            // Both fail only when it is gone already.
            let _ = rustix::process::kill_process(self.pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}

fn failed(message: &str) -> LaunchError {
    LaunchError {
        step: "inside the VM".to_owned(),
        source: io::Error::other(message.to_owned()),
    }
}

/// Opens the files by which a process joins the VM's cgroups: the host's paths are not seen for long.
fn open_cgroups(directories: &[String]) -> Result<Vec<File>, LaunchError> {
    let open = |directory: &String| {
        let file = Path::new(directory).join("cgroup.procs");
        let opened = File::options().write(true).open(file);
        opened.map_err(LaunchError::at(format!("open cgroup {directory}")))
    };
    directories.iter().map(open).collect()
}

fn join_cgroups(groups: Vec<File>, first: Pid) -> Result<(), LaunchError> {
    let first = first.as_raw_nonzero().to_string();
    for mut group in groups {
        group
            .write_all(first.as_bytes())
            .map_err(LaunchError::at("put the first process into them"))?;
    }
    Ok(())
}

fn pipe() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .map_err(LaunchError::at("pipe"))
}

/// Binds the agent's socket. The path goes through a descriptor of its folder: a socket's path has 107 bytes at most.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a socket's path");
    let folder = path.parent().ok_or_else(invalid)?;
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(invalid)?;
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let short = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    let _ = std::fs::remove_file(path);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(short.as_str())?)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
