//! Images from this host: a copy of its `/usr`, with a generated `/etc` and nothing else of it.
//!
//! A copy rather than a mount, so that nothing of the host is open to a VM, and a VM does not change when the host
//! is upgraded under it.

use super::archive::Written;
use super::{ImageError, pack};
use std::path::Path;
use std::process::{Command, Stdio};

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

/// Builds the tar file `content`, working in `directory`.
pub(super) fn build(
    directory: &Path,
    content: &Path,
    progress: &dyn Fn(&str),
) -> Result<Written, ImageError> {
    require_programs()?;
    progress("building an image from this host's /usr; this takes up to a minute, once per host");
    let root = directory.join("root");
    pack::run_script(STAGE, &root)?;
    pack::finish(&root)?;
    progress("copying /usr");
    pack::write(&root, Some(EXCLUDED), content)
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
