//! Images from this host: a copy of its `/usr`, with a generated `/etc` and nothing else of it.
//!
//! A copy rather than a mount, so that nothing of the host is open to a VM, and a VM does not change when the host
//! is upgraded under it.

use super::archive::{self, Written};
use super::{ImageError, process};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const FINISH: &str = include_str!("finish.sh");
const STAGE: &str = include_str!("host_root.sh");
const OLDEST_PYTHON: &str = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))";
const OLDEST_NODE: &str = "process.exit(Number(process.versions.node.split('.')[0]) < 18 ? 1 : 0)";

/// Programs that an image offers, and the packages that have them.
const REQUIRED: &[(&str, &str)] = &[
    ("bash", "bash"),
    ("curl", "curl"),
    ("git", "git"),
    ("gzip", "gzip"),
    ("ip", "iproute2"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("pip3", "python3-pip"),
    ("ps", "procps"),
    ("python3", "python3"),
    ("ssh", "openssh-client"),
    ("sudo", "sudo"),
    ("tar", "tar"),
    ("unzip", "unzip"),
    ("wget", "wget"),
];

/// Parts of `/usr` that images do without: documentation, sources, the kernel's parts, what is local to this host,
/// and large toolkits.
const EXCLUDED: &[&str] = &[
    "usr/games/*",
    "usr/lib/debug",
    "usr/lib/firmware",
    "usr/lib/google-cloud-sdk",
    "usr/lib/jvm",
    "usr/lib/llvm-*",
    "usr/lib/modules",
    "usr/lib/postgresql",
    "usr/lib/python3*/EXTERNALLY-MANAGED",
    "usr/local",
    "usr/share/doc",
    "usr/share/icons",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/src/*",
];

/// Writes the script that finishes any root file system into `directory`.
pub(super) fn write_finish_script(directory: &Path) -> Result<PathBuf, ImageError> {
    write_script(directory, "finish.sh", FINISH)
}

/// Builds the tar file `content`, working in `directory`.
pub(super) fn build(
    directory: &Path,
    content: &Path,
    progress: &dyn Fn(&str),
) -> Result<Written, ImageError> {
    require_programs()?;
    progress("building an image from this host's /usr; this takes up to a minute, once per host");
    let stage = write_script(directory, "host_root.sh", STAGE)?;
    let finish = write_finish_script(directory)?;
    let root = directory.join("root");
    for script in [&stage, &finish] {
        run_script(script, &root)?;
    }
    progress("copying /usr");
    let mut command = process::tied_command("tar");
    command
        .env("LC_ALL", "C")
        .args([
            "--create",
            "--file",
            "-",
            "--format=pax",
            "--numeric-owner",
            "--xattrs",
        ])
        .args([
            "--one-file-system",
            "--anchored",
            "--wildcards",
            "--sort=name",
        ])
        .args(EXCLUDED.iter().map(|path| format!("--exclude={path}")))
        .args(["--directory", "/", "usr", "--directory"])
        .arg(&root)
        .arg(".");
    // 1: a file changed while it was read, as files of a living host may.
    let fix = "install it with `apt-get install -y tar util-linux`";
    process::run_producer("tar", fix, command, &[0, 1], &mut |_| {}, |stdout| {
        archive::write_file(stdout, content)
    })
}

fn require_programs() -> Result<(), ImageError> {
    let merged = std::fs::read_link("/bin").is_ok_and(|target| target.ends_with("usr/bin"));
    if !merged {
        return Err(ImageError::UnsuitableHost(
            "its /bin is not a link to /usr/bin; build from Debian's packages instead".to_owned(),
        ));
    }
    let missing: Vec<&str> = REQUIRED
        .iter()
        .filter(|(program, _)| !Path::new("/usr/bin").join(program).exists())
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        return Err(ImageError::UnsuitableHost(format!(
            "/usr/bin lacks programs; install them with `apt-get install -y {}`",
            missing.join(" ")
        )));
    }
    if !succeeds("/usr/bin/python3", "-c", OLDEST_PYTHON) {
        return Err(ImageError::UnsuitableHost(
            "/usr/bin/python3 is older than 3.11 or has no venv; install `python3-venv` of a newer release".to_owned(),
        ));
    }
    if !succeeds("/usr/bin/node", "-e", OLDEST_NODE) {
        return Err(ImageError::UnsuitableHost(
            "/usr/bin/node is older than 18; install a newer `nodejs`".to_owned(),
        ));
    }
    Ok(())
}

fn succeeds(program: &str, option: &str, code: &str) -> bool {
    Command::new(program)
        .args([option, code])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn write_script(directory: &Path, name: &str, text: &str) -> Result<PathBuf, ImageError> {
    let path = directory.join(name);
    std::fs::write(&path, text).map_err(ImageError::io("write", &path))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        .map_err(ImageError::io("set the mode of", &path))?;
    Ok(path)
}

fn run_script(script: &Path, root: &Path) -> Result<(), ImageError> {
    let output = Command::new("/bin/sh")
        .arg(script)
        .arg(root)
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
