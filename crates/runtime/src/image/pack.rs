//! The last steps of every image: its root file system is finished and written as a tar file.

use super::archive::{self, Written};
use super::{ImageError, process};
use std::path::Path;
use std::process::{Command, Stdio};

const FINISH: &str = include_str!("finish.sh");
const TAR_FIX: &str = "install it with `apt-get install -y tar util-linux`";

/// Runs the script that makes any root file system fit for VMs on the directory `root`.
pub(super) fn finish(root: &Path) -> Result<(), ImageError> {
    run_script(FINISH, root)
}

/// Writes `root` as the tar file `content`, without device nodes; with the host's `/usr`, less `excluded`, when
/// `host_usr` is given.
pub(super) fn write(
    root: &Path,
    host_usr: Option<&[&str]>,
    content: &Path,
) -> Result<Written, ImageError> {
    let mut command = process::tied_command("tar");
    command
        .env("LC_ALL", "C")
        .args(["--create", "--file", "-", "--format=pax", "--numeric-owner"])
        .args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"])
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--xattrs-exclude=system.*",
        ])
        .args([
            "--one-file-system",
            "--anchored",
            "--wildcards",
            "--sort=name",
        ])
        .arg("--exclude=./dev/?*");
    // 1: a file changed while it was read, as files of a living host may.
    let mut accepted = vec![0];
    if let Some(excluded) = host_usr {
        accepted.push(1);
        command
            .args(excluded.iter().map(|path| format!("--exclude={path}")))
            .args(["--directory", "/", "usr"]);
    }
    command.arg("--directory").arg(root).arg(".");
    process::run_producer("tar", TAR_FIX, command, &accepted, &mut |_| {}, |stdout| {
        archive::write_file(stdout, content)
    })
}

/// Runs a shell script with `root` as its argument.
pub(super) fn run_script(script: &str, root: &Path) -> Result<(), ImageError> {
    let output = Command::new("/bin/sh")
        .args(["-c", script, "sh"])
        .arg(root)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ImageError::Program {
            program: "sh",
            fix: "install it with `apt-get install -y dash`",
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    Err(ImageError::ProgramFailed {
        program: "sh",
        status: output.status.to_string(),
        output: messages.lines().last().unwrap_or_default().to_owned(),
    })
}
