//! Images from Debian's packages, by mmdebstrap.

use super::archive::Written;
use super::{ImageError, debian_sources, pack, process};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The release: its Python and Node.js are the versions that are promised.
pub(super) const RELEASE: &str = "bookworm";

const PROGRAM: &str = "mmdebstrap";
const FIX: &str =
    "install it with `apt-get install -y mmdebstrap debian-archive-keyring util-linux`";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is installed besides the packages that every Debian has.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "curl",
    "file",
    "fuse3",
    "git",
    "iproute2",
    "iputils-ping",
    "less",
    "libnss-myhostname",
    "nano",
    "netbase",
    "nodejs",
    "npm",
    "openssh-client",
    "procps",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "sudo",
    "tzdata",
    "unzip",
    "vim-tiny",
    "wget",
    "xz-utils",
    "zip",
    "zstd",
];

/// What no package may bring: documentation, translations, and the marker that makes pip refuse to install.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/lib/python3*/EXTERNALLY-MANAGED",
];

/// Settings of apt for the build alone; the image does not keep them.
const APT_OPTIONS: &[&str] = &[
    r#"Acquire::Check-Valid-Until "false""#,
    r#"Acquire::Retries "2""#,
    r#"Acquire::http::Timeout "30""#,
    r#"Acquire::https::Timeout "30""#,
];

/// Builds the tar file `content`, working in `directory`.
pub(super) fn build(
    directory: &Path,
    content: &Path,
    progress: &dyn Fn(&str),
) -> Result<Written, ImageError> {
    progress(
        "building an image from Debian's packages; this takes one to three minutes, once per host",
    );
    // apt downloads as a user of its own, who has to get through to here.
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
        .map_err(ImageError::io("set the mode of", directory))?;
    let root = install_from_best(directory, progress)?;
    pack::finish(&root)?;
    progress("writing the image");
    pack::write(&root, None, content)
}

/// Installs from the host's own sources, and from the standard ones where that fails. Returns the directory.
fn install_from_best(directory: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf, ImageError> {
    if let Some(sources) = debian_sources::of_host(Path::new("/"), RELEASE) {
        let list = directory.join("debian.list");
        std::fs::write(&list, sources).map_err(ImageError::io("write", &list))?;
        let root = directory.join("root");
        match install(directory, Some(&list), &root, progress) {
            Ok(()) => return Ok(root),
            Err(error @ ImageError::ProgramFailed { .. }) => progress(&format!(
                "this host's own package sources did not do ({error}); trying the standard ones"
            )),
            Err(error) => return Err(error),
        }
    }
    let root = directory.join("root-standard");
    install(directory, None, &root, progress)?;
    Ok(root)
}

fn install(
    directory: &Path,
    sources: Option<&Path>,
    root: &Path,
    progress: &dyn Fn(&str),
) -> Result<(), ImageError> {
    let mut command = process::tied_command(PROGRAM);
    command
        .env("TMPDIR", directory)
        .env("LC_ALL", "C")
        .env("PATH", PATH)
        .args(["--mode=root", "--variant=apt", "--format=directory"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .args(
            EXCLUDED
                .iter()
                .map(|path| format!("--dpkgopt=path-exclude={path}")),
        )
        .args(
            APT_OPTIONS
                .iter()
                .map(|option| format!("--aptopt={option}")),
        )
        .args(
            debian_sources::proxy_options()
                .iter()
                .map(|option| format!("--aptopt={option}")),
        );
    if Path::new(KEYRING).exists() {
        command.arg(format!("--keyring={KEYRING}"));
    }
    command.arg(RELEASE).arg(root);
    if let Some(list) = sources {
        command.arg(list);
    }
    let mut on_line = |line: &str| {
        let step = line
            .strip_prefix("I: ")
            .and_then(|step| step.strip_suffix("..."));
        if let Some(step) = step.filter(|step| !step.contains('/')) {
            progress(step);
        }
    };
    process::run_producer(PROGRAM, FIX, command, &[0], &mut on_line, |mut stdout| {
        // Nothing of use comes here, but a closed pipe would end what writes to it.
        std::io::copy(&mut stdout, &mut std::io::sink())
            .map_err(ImageError::io("read the output of mmdebstrap for", root))?;
        Ok(())
    })
}
