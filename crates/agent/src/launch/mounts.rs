//! The VM's mount tree, built with the host's rights in a mount namespace that only the launcher and PID 1 share.

use super::LaunchError;
use super::beside::Beside;
use instavm_agent_api::launch::Launch;
use instavm_linux::{mount, namespace};
use rustix::mount::MountFlags;
use rustix::process::{Pid, PidfdFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where the tree is put together: a folder that every host has and that everybody may enter. The mount is seen in
/// the launcher's own namespace only.
pub(super) const STAGE: &str = "/tmp";

/// The group that owns terminals, by Debian's numbering: `tty`.
const TTY_GROUP: u32 = 5;

/// Device nodes: name, permissions, major, minor. From the kernel's `Documentation/admin-guide/devices.txt`.
const DEVICES: &[(&str, u32, u32, u32)] = &[
    ("null", 0o666, 1, 3),
    ("zero", 0o666, 1, 5),
    ("full", 0o666, 1, 7),
    ("random", 0o666, 1, 8),
    ("urandom", 0o666, 1, 9),
    ("tty", 0o666, 5, 0),
    ("fuse", 0o666, 10, 229),
];

/// Files below `/proc` that tell about the host or its kernel; they read as empty.
const MASKED_FILES: &[&str] = &[
    "cmdline",
    "diskstats",
    "kcore",
    "keys",
    "key-users",
    "kallsyms",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "mdstat",
    "modules",
    "partitions",
    "sched_debug",
    "slabinfo",
    "swaps",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
    "zoneinfo",
];

/// Folders that read as empty.
const MASKED_FOLDERS: &[&str] = &[
    "proc/acpi",
    "proc/asound",
    "proc/driver",
    "proc/scsi",
    "sys/class/bdi",
    "sys/class/block",
    "sys/devices/virtual/bdi",
    "sys/devices/virtual/block",
    "sys/devices/virtual/powercap",
    "sys/firmware",
    "sys/fs/btrfs",
    "sys/fs/ext4",
    "sys/hypervisor",
    "sys/kernel",
    "sys/module",
    "sys/block",
    "sys/dev",
    "sys/power",
];

/// What of `/proc` can be read but not written, whatever its permissions say.
const READ_ONLY: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Settings of the VM's own network namespace, made while they can be written. IPv6 is absent in a VM; users
/// other than root may ping and serve on low ports.
const NETWORK_SETTINGS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv4/ping_group_range", "0 65535"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
];

const PLAIN: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NOEXEC)
    .union(MountFlags::RELATIME);

/// Takes the root disk as a detached mount, before this process leaves the mount namespace that shows it.
pub(super) fn open_root(launch: &Launch) -> Result<OwnedFd, LaunchError> {
    mount::clone_tree(Path::new(&launch.root)).map_err(LaunchError::at(format!(
        "open the root disk {}",
        launch.root
    )))
}

/// Builds the whole tree on [`STAGE`].
pub(super) fn build(launch: &Launch, first: Pid, root: BorrowedFd<'_>) -> Result<(), LaunchError> {
    let stage = Path::new(STAGE);
    let users = File::open(format!("/proc/{}/ns/user", first.as_raw_nonzero()))
        .map_err(LaunchError::at("open the user namespace"))?;
    mount::map_ids(root, users.as_fd()).map_err(LaunchError::at("map the root disk's owners"))?;
    mount::attach(root, stage).map_err(LaunchError::at("attach the root disk"))?;
    check_mount_points(stage)?;
    tmpfs(launch, "run", 0o755, launch.shm_bytes / 4)?;
    devices(launch)?;
    in_namespaces_of(first, kernel_file_systems)?;
    mask(launch)?;
    // Nothing of the host's is left in this namespace, so that the VM keeps none of it mounted.
    mount::pivot(stage).map_err(LaunchError::at("pivot"))?;
    mount::pass_on().map_err(LaunchError::at("share the tree"))
}

/// Directories that a machine has, with their permissions: an image may come without.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("proc", 0o755),
    ("sys", 0o755),
    ("run", 0o755),
    ("etc", 0o755),
    ("tmp", 0o1777),
    ("root", 0o700),
    ("app", 0o755),
];

/// Makes the directories that the root disk lacks; whoever is its user 0 owns them. Links are left as they are.
pub(super) fn complete_root(launch: &Launch) -> Result<(), LaunchError> {
    use std::os::unix::fs::PermissionsExt;
    for &(name, mode) in DIRECTORIES {
        let path = Path::new(&launch.root).join(name);
        let make = || match std::fs::create_dir(&path) {
            Ok(()) => std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        };
        make().map_err(LaunchError::at(format!("make /{name} of the root disk")))?;
    }
    Ok(())
}

/// A path on the root disk that is a link would lead a mount elsewhere: refuse, before anything is mounted on it.
fn check_mount_points(stage: &Path) -> Result<(), LaunchError> {
    for name in ["dev", "proc", "sys", "run"] {
        let path = stage.join(name);
        let kind = std::fs::symlink_metadata(&path)
            .map_err(LaunchError::at(format!("the root disk has no /{name}")))?;
        if !kind.is_dir() {
            let error = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(LaunchError::at(format!("/{name} of the root disk"))(error));
        }
    }
    Ok(())
}

fn tmpfs(launch: &Launch, name: &str, mode: u32, bytes: u64) -> Result<(), LaunchError> {
    let base = launch.id_base;
    let options = format!("mode={mode:o},uid={base},gid={base},size={bytes}");
    let flags = MountFlags::NOSUID | MountFlags::RELATIME;
    mount::mount(
        "tmpfs",
        &Path::new(STAGE).join(name),
        "tmpfs",
        flags,
        &options,
    )
    .map_err(LaunchError::at(format!("mount /{name}")))
}

fn devices(launch: &Launch) -> Result<(), LaunchError> {
    tmpfs(launch, "dev", 0o755, 1 << 20)?;
    let dev = Path::new(STAGE).join("dev");
    for &(name, mode, major, minor) in DEVICES {
        mount::make_device(&dev.join(name), mode, major, minor, launch.id_base)
            .map_err(LaunchError::at(format!("make /dev/{name}")))?;
    }
    for name in ["pts", "shm"] {
        let folder = dev.join(name);
        std::fs::create_dir(&folder).map_err(LaunchError::at(format!("make /dev/{name}")))?;
    }
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        let path = dev.join(name);
        std::os::unix::fs::symlink(target, &path)
            .and_then(|()| owned_link(&path, launch.id_base))
            .map_err(LaunchError::at(format!("make /dev/{name}")))?;
    }
    tmpfs(launch, "dev/shm", 0o1777, launch.shm_bytes)?;
    let terminals = format!(
        "newinstance,ptmxmode=0666,mode=0620,gid={}",
        launch.id_base + TTY_GROUP
    );
    mount::mount("devpts", &dev.join("pts"), "devpts", PLAIN, &terminals)
        .map_err(LaunchError::at("mount /dev/pts"))
}

fn owned_link(path: &Path, owner: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(owner), Some(owner))
}

/// `/proc` and `/sys` show the namespaces of whoever mounts them: a child that has entered the VM's does it.
fn in_namespaces_of(
    first: Pid,
    action: fn() -> Result<(), LaunchError>,
) -> Result<(), LaunchError> {
    let process = rustix::process::pidfd_open(first, PidfdFlags::empty())
        .map_err(io::Error::from)
        .map_err(LaunchError::at("open the first process"))?;
    namespace::enter(process.as_fd(), libc::CLONE_NEWPID)
        .map_err(LaunchError::at("enter the pid namespace"))?;
    let mounting = Beside::start(|| {
        namespace::enter(process.as_fd(), libc::CLONE_NEWNET)
            .map_err(LaunchError::at("enter the network namespace"))
            .and_then(|()| action())
    })?;
    mounting.wait("mount kernel file systems")
}

fn kernel_file_systems() -> Result<(), LaunchError> {
    let stage = Path::new(STAGE);
    let flags = PLAIN | MountFlags::NODEV;
    mount::mount("proc", &stage.join("proc"), "proc", flags, "")
        .map_err(LaunchError::at("mount /proc"))?;
    for (name, value) in NETWORK_SETTINGS {
        match std::fs::write(stage.join("proc/sys").join(name), value) {
            // A kernel without IPv6 has nothing to turn off.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(LaunchError::at(format!("set {name}")))?,
        }
    }
    mount::mount(
        "sysfs",
        &stage.join("sys"),
        "sysfs",
        flags | MountFlags::RDONLY,
        "",
    )
    .map_err(LaunchError::at("mount /sys"))
}

fn mask(launch: &Launch) -> Result<(), LaunchError> {
    let stage = Path::new(STAGE);
    let proc_folder = stage.join("proc");
    let null = stage.join("dev/null");
    for name in MASKED_FILES {
        let path = proc_folder.join(name);
        if path.exists() {
            mount::bind(&null, &path, false).map_err(LaunchError::at(format!("mask {name}")))?;
        }
    }
    for name in READ_ONLY {
        let path = proc_folder.join(name);
        if path.exists() {
            mount::make_read_only(&path)
                .map_err(LaunchError::at(format!("make /proc/{name} read-only")))?;
        }
    }
    let empty = format!(
        "mode=555,size=0,nr_inodes=1,uid={0},gid={0}",
        launch.id_base
    );
    let flags = PLAIN | MountFlags::NODEV | MountFlags::RDONLY;
    let folders = MASKED_FOLDERS
        .iter()
        .map(|name| stage.join(name))
        .filter(|p| p.is_dir());
    for path in folders.collect::<Vec<PathBuf>>() {
        mount::mount("none", &path, "tmpfs", flags, &empty)
            .map_err(LaunchError::at(format!("mask {}", path.display())))?;
    }
    Ok(())
}
