//! What a machine needs of its root file system and an image may lack, as a last layer of its own.

use super::tree::{self, Tree};
use crate::trust::TrustAnchors;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Changes when what is added here changes: roots that were made before are made again.
pub(super) const FORM: u32 = 1;

/// Folders that the launcher mounts on: they must be folders, whatever the image has there.
const MOUNT_POINTS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("run", 0o755),
];
/// Folders that processes expect; where the image has something by the name, that stays.
const FOLDERS: &[(&str, u32)] = &[
    ("etc", 0o755),
    ("tmp", 0o1777),
    ("root", 0o700),
    ("app", 0o777),
    ("workspace", 0o777),
];
/// Where distributions keep the authorities that programs trust, as one file.
const BUNDLES: &[&str] = &[
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
];
/// Where a bundle is made of, on Debian, Ubuntu and Alpine.
const LOCAL_AUTHORITIES: &str = "usr/local/share/ca-certificates";
const LARGEST_BUNDLE: u64 = 32 << 20;

/// Adds what is missing.
pub(super) fn finish(root: &Path, anchors: &TrustAnchors) -> io::Result<()> {
    let tree = Tree::open(root)?;
    for &(name, mode) in MOUNT_POINTS {
        if tree::kind(tree.root(), name.as_bytes())? != Some(FileType::Directory) {
            tree.remove(tree.root(), name.as_bytes())?;
            make(&tree, name, mode)?;
        }
    }
    for &(name, mode) in FOLDERS {
        match tree::kind(tree.root(), name.as_bytes())? {
            None => make(&tree, name, mode)?,
            // A link may lead to a folder that is missing.
            Some(FileType::Symlink) => {
                let _ = tree.make_folder(name.as_bytes());
            }
            Some(_) => {}
        }
    }
    trust(&tree, anchors)
}

fn make(tree: &Tree, name: &str, mode: u32) -> io::Result<()> {
    let folder = tree.make_one(tree.root(), name.as_bytes(), mode)?;
    Ok(rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?)
}

/// Adds authorities to the bundles that the image has; an image without any trusts nobody, and goes on so.
fn trust(tree: &Tree, anchors: &TrustAnchors) -> io::Result<()> {
    if anchors.authorities().is_empty() {
        return Ok(());
    }
    for bundle in BUNDLES {
        let Some(mut file) = open_bundle(tree, bundle)? else {
            continue;
        };
        let mut text = Vec::new();
        (&file).take(LARGEST_BUNDLE).read_to_end(&mut text)?;
        for authority in anchors.authorities() {
            // Two of the names may mean one file.
            if memmem(&text, authority.trim().as_bytes()) {
                continue;
            }
            let separator = if text.last().is_none_or(|b| *b == b'\n') {
                ""
            } else {
                "\n"
            };
            let added = format!("{separator}{}\n", authority.trim());
            file.write_all(added.as_bytes())?;
            text.extend_from_slice(added.as_bytes());
        }
    }
    match tree.folder(LOCAL_AUTHORITIES.as_bytes()) {
        Ok(folder) => keep_sources(tree, &folder, anchors),
        Err(_) => Ok(()),
    }
}

/// Keeps the authorities where the bundle is made of, so that they are in the next one, too.
fn keep_sources(tree: &Tree, folder: &OwnedFd, anchors: &TrustAnchors) -> io::Result<()> {
    for (number, authority) in anchors.authorities().iter().enumerate() {
        let name = format!("host-{number}.crt");
        tree.remove(folder.as_fd(), name.as_bytes())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let mut file = File::from(rustix::fs::openat(folder, &name, flags, mode)?);
        file.write_all(authority.as_bytes())?;
        rustix::fs::fchmod(&file, mode)?;
    }
    Ok(())
}

/// Opens a bundle for adding to it, when there is one.
fn open_bundle(tree: &Tree, path: &str) -> io::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let found = rustix::fs::openat2(tree.root(), path, flags, Mode::empty(), resolve);
    let file = match found {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP | Errno::NXIO) => {
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

fn memmem(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}
