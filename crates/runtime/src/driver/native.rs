//! The driver `native`: Linux namespaces, made by the agent program's *launch* mode.

use super::{
    Driver, DriverError, Isolation, Machine, MachineRecord, MachineSpec, Starting, boot_id,
};
use crate::Probe;
use crate::agent::SOCKET;
use async_trait::async_trait;
use instavm_agent_api::frame::{self, FrameError};
use instavm_agent_api::launch::{Launch, Proceed, Progress};
use sha2::{Digest, Sha256};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// How long each half of a launch may take. It takes milliseconds; this is for hosts that swap.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes machines of Linux namespaces.
#[derive(Clone, Debug)]
pub struct NativeDriver {
    program: PathBuf,
}

impl NativeDriver {
    /// Puts the agent program into `folder`, under a name made from its content, so that machines of an older daemon
    /// keep theirs.
    ///
    /// # Errors
    /// [`DriverError::Program`].
    pub fn install(folder: &Path, agent: &[u8]) -> Result<Self, DriverError> {
        let digest: String = Sha256::digest(agent)[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let program = folder.join(format!("instavm-agent-{digest}"));
        let put = || {
            if program.exists() {
                return Ok(());
            }
            std::fs::create_dir_all(folder)?;
            let mut draft = tempfile::NamedTempFile::new_in(folder)?;
            io::Write::write_all(&mut draft, agent)?;
            std::fs::set_permissions(draft.path(), PermissionsExt::from_mode(0o700))?;
            // A file that is open for writing, even in a forked copy of this process, cannot be executed.
            let path = draft.into_temp_path();
            path.persist(&program).map_err(|e| e.error)
        };
        put().map_err(|source| DriverError::Program {
            path: program.clone(),
            source,
        })?;
        Ok(Self { program })
    }

    fn launch_of(spec: &MachineSpec) -> Result<Launch, DriverError> {
        let text = |path: &Path| {
            let not_text = || DriverError::Launch(format!("{} is no UTF-8", path.display()));
            path.to_str().map(str::to_owned).ok_or_else(not_text)
        };
        Ok(Launch {
            token: spec.token,
            hostname: spec.hostname.clone(),
            root: text(&spec.root)?,
            id_base: spec.id_base,
            cgroups: spec
                .cgroup
                .folders()
                .iter()
                .map(|p| text(p))
                .collect::<Result<_, _>>()?,
            socket: text(&spec.folder.join(SOCKET))?,
            network: spec.network.clone(),
            open_files: spec.open_files,
            shm_bytes: spec.shm_bytes,
            warm: spec.warm,
        })
    }
}

#[async_trait]
impl Driver for NativeDriver {
    fn isolation(&self) -> Isolation {
        Isolation::Namespaces
    }

    async fn probe(&self) -> Vec<Probe> {
        probe()
    }

    async fn start(&self, spec: &MachineSpec) -> Result<Box<dyn Starting>, DriverError> {
        let launch = Self::launch_of(spec)?;
        let program = |source| DriverError::Program {
            path: self.program.clone(),
            source,
        };
        let mut child = Command::new(&self.program)
            // PID 1 of the VM keeps this command line: it shall not tell paths of the host.
            .arg0("instavm-agent")
            .arg("launch")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(program)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(DriverError::Launch("its pipes are missing".to_owned()));
        };
        let mut launcher = Launcher {
            child,
            input,
            output,
        };
        launcher.send(&launch).await?;
        match launcher.progress().await? {
            Progress::Spawned { pid } => {
                // The launcher is its parent and waits for us: the id cannot have been reused.
                let machine = Machine::follow(pid)?;
                Ok(Box::new(NativeStarting { launcher, machine }))
            }
            other => Err(launch_failed(&other)),
        }
    }

    fn adopt(&self, record: &MachineRecord) -> Option<Machine> {
        let stat = instavm_linux::process::stat(record.pid)?;
        let same = stat.start_ticks == record.start_ticks
            && stat.state != 'Z'
            && boot_id().ok()? == record.boot_id;
        if !same {
            return None;
        }
        let machine = Machine::follow(record.pid).ok()?;
        // It may have ended, and its id been reused, in between.
        (machine.record == *record).then_some(machine)
    }
}

fn launch_failed(progress: &Progress) -> DriverError {
    match progress {
        Progress::Failed { message } => DriverError::Launch(message.clone()),
        Progress::Spawned { .. } | Progress::Ready => {
            DriverError::Launch("the launcher reported out of turn".to_owned())
        }
    }
}

/// The launcher process. Dropping it kills it; PID 1, which waits for its word, ends with it.
struct Launcher {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Launcher {
    async fn send<T: serde::Serialize>(&mut self, message: &T) -> Result<(), DriverError> {
        let bytes = frame::encode(message).map_err(|e| DriverError::Launch(e.to_string()))?;
        let sent = self.input.write_all(&bytes).await;
        sent.map_err(|e| DriverError::Launch(format!("the launcher does not listen: {e}")))
    }

    async fn progress(&mut self) -> Result<Progress, DriverError> {
        match tokio::time::timeout(PATIENCE, self.read()).await {
            Ok(Ok(progress)) => Ok(progress),
            Ok(Err(e)) => Err(DriverError::Launch(format!("the launcher ended: {e}"))),
            Err(_) => Err(DriverError::Launch(format!("no progress in {PATIENCE:?}"))),
        }
    }

    async fn read(&mut self) -> io::Result<Progress> {
        let bad = |e: FrameError| io::Error::other(e);
        let mut prefix = [0; 4];
        self.output.read_exact(&mut prefix).await?;
        let mut payload = vec![0; frame::payload_length(prefix).map_err(bad)?];
        self.output.read_exact(&mut payload).await?;
        frame::decode(&payload).map_err(bad)
    }
}

struct NativeStarting {
    launcher: Launcher,
    machine: Machine,
}

#[async_trait]
impl Starting for NativeStarting {
    fn pid(&self) -> i32 {
        self.machine.record.pid
    }

    async fn finish(self: Box<Self>) -> Result<Machine, DriverError> {
        let Self {
            mut launcher,
            machine,
        } = *self;
        launcher.send(&Proceed).await?;
        match launcher.progress().await? {
            Progress::Ready => {}
            other => return Err(launch_failed(&other)),
        }
        // It has said its last word; waiting only reaps it.
        let _ = launcher.child.wait().await;
        Ok(machine)
    }
}

/// What of namespaces works on this host.
fn probe() -> Vec<Probe> {
    vec![rights(), user_namespaces(), crate::cgroup::probe()]
}

/// The rights that a launch needs, by their numbers in the kernel's `include/uapi/linux/capability.h`.
const CAPABILITIES: &[(&str, u32)] = &[
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_MKNOD", 27),
];

fn rights() -> Probe {
    let fix = "run it as root of the host (in a container: --privileged, without a user namespace)";
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let lacking: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(_, number)| effective >> number & 1 == 0)
        .map(|(name, _)| *name)
        .collect();
    if !lacking.is_empty() {
        return Probe::fails("rights", format!("lacking {}", lacking.join(", ")), fix);
    }
    // Anything but the whole range mapped to itself is a user namespace, in which root disks cannot be mapped.
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if map.split_whitespace().eq(["0", "0", "4294967295"]) {
        Probe::works("rights", "those of the host's root")
    } else {
        Probe::fails("rights", "this is a user namespace of its own", fix)
    }
}

fn user_namespaces() -> Probe {
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    match most.trim().parse::<u64>() {
        Ok(0) => Probe::fails(
            "user namespaces",
            "user.max_user_namespaces is 0",
            "sysctl -w user.max_user_namespaces=65536",
        ),
        Ok(most) => Probe::works("user namespaces", format!("up to {most}")),
        Err(_) => Probe::fails(
            "user namespaces",
            "the kernel has none",
            "use a kernel with CONFIG_USER_NS",
        ),
    }
}
