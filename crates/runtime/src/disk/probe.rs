//! What of disks works on this host.

use crate::Probe;
use std::path::Path;
use std::process::Command;

/// What of disks works on this host.
pub fn probe() -> Vec<Probe> {
    let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_btrfs = kinds.lines().any(|line| line.trim() == "btrfs");
    let btrfs = if has_btrfs {
        Probe::works("btrfs", "the kernel has it")
    } else {
        Probe::fails("btrfs", "the kernel does not list it", "modprobe btrfs")
    };
    let has_loop = Path::new("/dev/loop-control").exists();
    let loops = if has_loop {
        Probe::works("loop devices", "/dev/loop-control is there")
    } else {
        Probe::lacks(
            "loop devices",
            "/dev/loop-control is missing",
            "modprobe loop (in a container: --privileged), or put the data directory on btrfs",
        )
    };
    let mkfs = match Command::new("mkfs.btrfs").arg("--version").output() {
        Ok(output) => Probe::works(
            "mkfs.btrfs",
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        ),
        Err(error) => Probe::fails("mkfs.btrfs", error.to_string(), "install btrfs-progs"),
    };
    vec![btrfs, loops, mkfs]
}
