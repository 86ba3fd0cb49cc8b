//! Tar files: written with their digest, unpacked with everything that they carry.

use super::{Image, ImageError};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const BUFFER: usize = 1 << 20;
const TAR_FIX: &str = "install it with `apt-get install -y tar`";

/// The digest and the size of a stream of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) digest: String,
    pub(super) size_bytes: u64,
}

/// Writes a stream into a new file, synced to disk.
pub(super) fn write_file(mut from: impl Read, path: &Path) -> Result<Written, ImageError> {
    let mut file = File::create_new(path).map_err(ImageError::io("create", path))?;
    let written =
        copy_hashed(&mut from, &mut file).map_err(|failure| failure.into_error("write", path))?;
    file.sync_all().map_err(ImageError::io("sync", path))?;
    Ok(written)
}

/// Unpacks an image into an empty directory as root, with owners, modes, extended attributes and capabilities.
pub(super) fn unpack(image: &Image, target: &Path) -> Result<(), ImageError> {
    require_root()?;
    require_empty(target)?;
    let mut file = File::open(&image.path).map_err(ImageError::io("open", &image.path))?;
    // A file, not a pipe: a full disk makes tar complain about every file while nobody reads.
    let mut messages =
        tempfile::tempfile().map_err(ImageError::io("make a file in", std::env::temp_dir()))?;
    let stderr = messages
        .try_clone()
        .map_err(ImageError::io("make a file in", std::env::temp_dir()))?;
    let mut child = Command::new("tar")
        .arg("--extract")
        .args(["--file", "-", "--directory"])
        .arg(target)
        .args(["--numeric-owner", "--same-owner", "--preserve-permissions"])
        .args(["--xattrs", "--xattrs-include=*", "--warning=no-timestamp"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(|source| ImageError::Program {
            program: "tar",
            fix: TAR_FIX,
            source,
        })?;
    let copied = match child.stdin.take() {
        Some(mut stdin) => copy_hashed(&mut file, &mut stdin),
        None => Err(CopyFailure::Write(std::io::ErrorKind::BrokenPipe.into())),
    };
    let status = child
        .wait()
        .map_err(ImageError::io("wait for tar in", target))?;
    if !status.success() {
        return Err(ImageError::ProgramFailed {
            program: "tar",
            status: status.to_string(),
            output: first_line(&mut messages),
        });
    }
    let written = copied.map_err(|failure| failure.into_error("unpack", &image.path))?;
    if written.digest != image.digest {
        return Err(ImageError::Damaged {
            name: image.name.clone(),
            reason: format!("its digest is {}, not {}", written.digest, image.digest),
        });
    }
    Ok(())
}

fn first_line(messages: &mut File) -> String {
    let mut line = String::new();
    let read = messages
        .rewind()
        .and_then(|()| BufReader::new(messages).read_line(&mut line));
    match read {
        Ok(_) => line.trim().to_owned(),
        Err(error) => format!("its messages cannot be read: {error}"),
    }
}

/// Fails for anyone but root: others cannot keep the owners of files.
pub(super) fn require_root() -> Result<(), ImageError> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(ImageError::NotRoot)
    }
}

fn require_empty(target: &Path) -> Result<(), ImageError> {
    let mut entries = std::fs::read_dir(target).map_err(ImageError::io("list", target))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(ImageError::TargetNotEmpty(target.to_owned())),
    }
}

enum CopyFailure {
    Read(std::io::Error),
    Write(std::io::Error),
}

impl CopyFailure {
    fn into_error(self, operation: &'static str, path: &Path) -> ImageError {
        match self {
            CopyFailure::Read(source) => ImageError::io("read the content of", path)(source),
            CopyFailure::Write(source) => ImageError::io(operation, path)(source),
        }
    }
}

fn copy_hashed(from: &mut impl Read, to: &mut impl Write) -> Result<Written, CopyFailure> {
    let mut hasher = Sha256::new();
    let mut size_bytes = 0;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyFailure::Read(error)),
        };
        hasher.update(&buffer[..length]);
        to.write_all(&buffer[..length])
            .map_err(CopyFailure::Write)?;
        size_bytes += length as u64;
    }
    to.flush().map_err(CopyFailure::Write)?;
    let digest = format!("sha256:{:x}", hasher.finalize());
    Ok(Written { digest, size_bytes })
}
