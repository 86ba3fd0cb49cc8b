//! What of disks works on this host.

use crate::Probe;
use std::path::Path;
use std::process::Command;

/// What all the probes end with: nothing of this is needed, only wanted.
const ELSE: &str = "without it disks are plain folders (slower, and limits are only measured)";

/// What of disks works on this host. Without btrfs, or without loop devices for it, the disk driver `directory` is used.
pub fn probe() -> Vec<Probe> {
    let found = [btrfs(), quotas(), loop_devices(), mkfs()];
    let lacking = found.iter().any(|probe| !probe.ok);
    let driver = if lacking {
        "directory: plain folders, unless the data directory is on btrfs"
    } else {
        "btrfs: copies in constant time, limits that the kernel enforces"
    };
    let mut probes = Vec::from(found);
    probes.push(Probe::works("disk driver", driver));
    probes
}

fn btrfs() -> Probe {
    let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if kinds.lines().any(|line| line.trim() == "btrfs") {
        return Probe::works("btrfs", "the kernel has it");
    }
    let found = format!("the kernel does not list it; {ELSE}");
    Probe::lacks("btrfs", found, "modprobe btrfs")
}

fn quotas() -> Probe {
    // Not there before the module is loaded either: then the probe above says what to do.
    if Path::new("/sys/fs/btrfs/features/simple_quota").exists() {
        return Probe::works("btrfs simple quotas", "the kernel has them");
    }
    let found = format!("the kernel's btrfs does not list them; {ELSE}");
    Probe::lacks("btrfs simple quotas", found, "use Linux 6.7 or newer")
}

fn loop_devices() -> Probe {
    if Path::new("/dev/loop-control").exists() {
        return Probe::works("loop devices", "/dev/loop-control is there");
    }
    Probe::lacks(
        "loop devices",
        format!("/dev/loop-control is missing; {ELSE}"),
        "modprobe loop (in a container: --privileged), or put the data directory on btrfs",
    )
}

fn mkfs() -> Probe {
    match Command::new("mkfs.btrfs").arg("--version").output() {
        Ok(output) => Probe::works(
            "mkfs.btrfs",
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        ),
        Err(error) => Probe::lacks(
            "mkfs.btrfs",
            format!("{error}; {ELSE}"),
            "install btrfs-progs",
        ),
    }
}
