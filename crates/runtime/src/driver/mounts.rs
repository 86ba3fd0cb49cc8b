//! Mounts in a machine that runs.
//!
//! A machine's own mount namespace is a copy of one that the host owns, which lives on by a descriptor of the machine's
//! first process and passes on what is mounted in it. So a mount that the node makes there appears inside as one from a
//! more privileged namespace: its flags are locked, and root inside cannot make a read-only one writable. Nothing is
//! kept on the host: with the machine's first process all of it ends.

mod holders;
mod view;

use super::{MachineRecord, boot_id};
use instavm_linux::mount::{self, MountPoint, Place};
use instavm_linux::{namespace, process};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use view::View;

/// Why something could not be mounted in a machine, or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The machine has ended.
    #[error("the VM has ended")]
    Ended,
    /// The machine was made by an older program, which does not offer this.
    #[error("the VM was started by an older version, which cannot mount while it runs")]
    TooOld,
    /// There is a mount already: at the path, above it, or below it.
    #[error("{0}")]
    Taken(String),
    /// Something in the machine uses the mount.
    #[error("in use by {}", list(.0))]
    Busy(Vec<Holder>),
    /// The path does not serve.
    #[error("{0}")]
    Unsuitable(String),
    /// The machine's disk has no room for the directories of the path.
    #[error("the VM's disk is full")]
    NoSpace,
    /// The system failed.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl MountError {
    /// An adapter for `map_err`.
    fn at(action: &'static str) -> impl Fn(io::Error) -> MountError {
        move |source| match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::SRCH) => MountError::Ended,
            _ => MountError::System { action, source },
        }
    }
}

/// What in a machine uses a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process: it has a file open there, runs a program from there, or stands there.
    Process {
        /// Its id, as seen inside.
        pid: i32,
        /// Its name: untrusted text.
        command: String,
    },
    /// A mount that was made inside: of the same files at another path, or on a directory of them.
    Mount {
        /// Its path inside: untrusted text.
        path: String,
    },
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Holder::Process { pid, command } => write!(f, "{command} (pid {pid})"),
            Holder::Mount { path } => write!(f, "the mount at {path}"),
        }
    }
}

fn list(holders: &[Holder]) -> String {
    /// More would help nobody.
    const NAMED: usize = 8;
    let named = holders.iter().take(NAMED).map(ToString::to_string);
    let named = named.collect::<Vec<_>>().join(", ");
    match holders.len() {
        0 => "the VM".to_owned(),
        count if count > NAMED => format!("{named} and {} more", count - NAMED),
        _ => named,
    }
}

/// The way to mount and unmount in a machine that runs. All calls block.
#[derive(Clone, Debug)]
pub struct Mounts {
    machine: MachineRecord,
}

/// A mount that the node has made in a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is now: somebody inside may have renamed a directory above it.
    pub target: PathBuf,
    /// What is mounted: a path in its file system.
    pub root: PathBuf,
    /// Nobody inside can write to it.
    pub read_only: bool,
}

impl Mounts {
    pub(super) fn of(record: &MachineRecord) -> Self {
        Self {
            machine: record.clone(),
        }
    }

    /// Mounts the directory `source` of the host at the absolute path `target` of the machine, where missing directories
    /// are made. Owners are mapped as on the root disk. With `read_only` nobody in the machine can write to it.
    ///
    /// Root of the machine may unmount it, as of any machine; [`Mounts::unmount`] is still to be called.
    ///
    /// # Errors
    /// [`MountError`]; nothing is mounted then.
    pub fn mount(&self, source: &Path, target: &str, read_only: bool) -> Result<(), MountError> {
        let target = checked(target)?;
        let machine = Alive::open(&self.machine)?;
        let outside = machine.outside()?;
        let users = machine
            .open_link("ns/user")
            .map_err(MountError::at("open the VM's user namespace"))?;
        let tree =
            mount::clone_tree(source).map_err(MountError::at("open what is to be mounted"))?;
        mount::map_ids(tree.as_fd(), users.as_fd())
            .and_then(|()| mount::restrict(tree.as_fd(), read_only))
            .map_err(MountError::at("map the owners of what is to be mounted"))?;
        let owner = machine.first_id()?;
        View::of(&outside, |view| {
            let place = view.prepare(&target, owner)?;
            let done = mount::attach_at(tree.as_fd(), place.directory.as_fd())
                .map_err(MountError::at("mount in the VM"))
                .and_then(|()| machine.check_sight(&tree, view, &target));
            if done.is_err() {
                view.take_back(&tree);
                place.remove_made();
            }
            done
        })
    }

    /// Takes the mount of `source` at `target` out of the machine; one that is not there is no error, nor is a machine
    /// that has ended. When it returns well nothing in the machine has `source` by that mount any more.
    ///
    /// # Errors
    /// [`MountError::Busy`] with who uses it.
    pub fn unmount(&self, source: &Path, target: &str) -> Result<(), MountError> {
        let target = checked(target)?;
        match self.try_unmount(source, &target) {
            Err(MountError::Ended) => Ok(()),
            other => other,
        }
    }

    fn try_unmount(&self, source: &Path, target: &Path) -> Result<(), MountError> {
        let machine = Alive::open(&self.machine)?;
        let outside = machine.outside()?;
        let source = Source::of(source).map_err(MountError::at("open what is mounted"))?;
        let all = View::of(&outside, |view| view.mounts_of(&source))?;
        let Some(wanted) = choose(&all, target)? else {
            // It may be that root inside has moved a copy elsewhere while it was unmounted.
            return free(machine.holders(&source, None, &all)?);
        };
        let others: Vec<MountPoint> = all.iter().filter(|p| p.id != wanted.id).cloned().collect();
        free(machine.holders(&source, Some(&wanted), &others)?)?;
        match View::of(&outside, |view| view.unmount(&wanted)) {
            Err(MountError::Busy(_)) => {
                return Err(MountError::Busy(machine.holders(
                    &source,
                    Some(&wanted),
                    &others,
                )?));
            }
            other => other?,
        }
        free(machine.holders(&source, None, &others)?)
    }

    /// What the node has mounted in the machine.
    ///
    /// # Errors
    /// [`MountError::Ended`].
    pub fn list(&self) -> Result<Vec<Mounted>, MountError> {
        let outside = Alive::open(&self.machine)?.outside()?;
        let points = View::of(&outside, |view| view.mounts())?;
        let mounted = |point: MountPoint| Mounted {
            target: point.target,
            root: point.root,
            read_only: point.options.split(',').any(|option| option == "ro"),
        };
        Ok(points.into_iter().map(mounted).collect())
    }
}

fn free(holders: Vec<Holder>) -> Result<(), MountError> {
    if holders.is_empty() {
        Ok(())
    } else {
        Err(MountError::Busy(holders))
    }
}

/// Which of the mounts of one source is meant by its path: the one that is there, or the only one, which must then have
/// been moved with a directory above it.
fn choose(all: &[MountPoint], target: &Path) -> Result<Option<MountPoint>, MountError> {
    let at_target = all.iter().rfind(|point| point.target == target);
    match (at_target, all) {
        (Some(point), _) => Ok(Some(point.clone())),
        (None, []) => Ok(None),
        (None, [only]) => Ok(Some(only.clone())),
        (None, several) => {
            let paths: Vec<String> = several
                .iter()
                .map(|p| p.target.display().to_string())
                .collect();
            let message = format!(
                "{} was renamed in the VM; the volume is now at {}",
                target.display(),
                paths.join(", ")
            );
            Err(MountError::Unsuitable(message))
        }
    }
}

/// The path of a mount: absolute, plain, not the root.
fn checked(target: &str) -> Result<PathBuf, MountError> {
    let path = Path::new(target);
    let mut parts = path.components();
    let plain = parts.next() == Some(Component::RootDir)
        && path.parent().is_some()
        && !target.contains('\0')
        && parts.all(|part| matches!(part, Component::Normal(_)))
        && !target.contains("/./")
        && !target.ends_with("/.");
    if plain {
        Ok(path.to_owned())
    } else {
        let message =
            format!("{target:?} is no path to mount at: absolute, without . and .., and not /");
        Err(MountError::Unsuitable(message))
    }
}

/// What is mounted, as mounts of it are known by.
#[derive(Debug)]
struct Source {
    place: Place,
    /// The device of its file system, and its path there, as lists of mounts show them.
    device: String,
    root: PathBuf,
}

impl Source {
    fn of(path: &Path) -> io::Result<Self> {
        let path = std::fs::canonicalize(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())?;
        let place = mount::place(&directory)?;
        let points = mount::mount_points()?;
        let own = points.into_iter().find(|point| point.id == place.mount);
        let own = own.ok_or(io::ErrorKind::NotFound)?;
        let below = path.strip_prefix(&own.target).map_err(io::Error::other)?;
        Ok(Self {
            place,
            device: own.device,
            root: own.root.join(below),
        })
    }

    /// Does a mount show it, or a part of it?
    fn is_seen_by(&self, point: &MountPoint) -> bool {
        point.device == self.device && point.root.starts_with(&self.root)
    }
}

/// A machine's first process, by its directory below `/proc`: that of another process never takes its place.
#[derive(Debug)]
struct Alive {
    pid: i32,
    process: OwnedFd,
}

impl Alive {
    fn open(record: &MachineRecord) -> Result<Self, MountError> {
        let path = format!("/proc/{}", record.pid);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::SRCH) => return Err(MountError::Ended),
            other => other.map_err(|e| MountError::at("look at the VM")(e.into()))?,
        };
        let boot = boot_id().map_err(MountError::at("read the boot's id"))?;
        let same = process::stat_of(&process)
            .is_some_and(|stat| stat.start_ticks == record.start_ticks && stat.state != 'Z');
        if !same || boot != record.boot_id {
            return Err(MountError::Ended);
        }
        Ok(Self {
            pid: record.pid,
            process,
        })
    }

    /// Opens what a link of the process stands for.
    fn open_link(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(
            &self.process,
            name,
            flags,
            Mode::empty(),
        )?)
    }

    /// The mount namespace that the machine's own is a copy of.
    fn outside(&self) -> Result<OwnedFd, MountError> {
        let failed = MountError::at("find the VM's outer mount namespace");
        let own = self.link("ns/mnt").map_err(&failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.process, "fd", flags, Mode::empty());
        let folder = folder.map_err(|e| failed(e.into()))?;
        let entries = rustix::fs::Dir::new(folder).map_err(|e| failed(e.into()))?;
        for entry in entries.flatten() {
            let name = format!("fd/{}", entry.file_name().to_string_lossy());
            let is_other = |link: &PathBuf| {
                link.as_os_str().as_encoded_bytes().starts_with(b"mnt:") && *link != own
            };
            if !self.link(&name).is_ok_and(|link| is_other(&link)) {
                continue;
            }
            let found = self.open_link(&name).map_err(&failed)?;
            if is_ours(found.as_fd()).map_err(&failed)? {
                return Ok(found);
            }
        }
        Err(MountError::TooOld)
    }

    fn link(&self, name: &str) -> io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(&self.process, name, Vec::new())?;
        Ok(PathBuf::from(
            String::from_utf8_lossy(target.as_bytes()).into_owned(),
        ))
    }

    /// The first of the ids that the machine's are mapped to.
    fn first_id(&self) -> Result<u32, MountError> {
        let failed = MountError::at("read the VM's map of users");
        let map = self.open_link("uid_map").map_err(&failed)?;
        let text = io::read_to_string(std::fs::File::from(map)).map_err(&failed)?;
        let mut fields = text.split_whitespace();
        match (fields.next(), fields.next().and_then(|id| id.parse().ok())) {
            (Some("0"), Some(base)) => Ok(base),
            _ => Err(failed(io::Error::other("it does not begin with user 0"))),
        }
    }

    /// Is what was just mounted what is seen inside at its path? Something that was mounted inside may hide it.
    fn check_sight(&self, tree: &OwnedFd, view: &View, target: &Path) -> Result<(), MountError> {
        let failed = MountError::at("look at the mount from inside");
        let wanted = mount::place(tree).map_err(&failed)?;
        let group = view
            .all()?
            .into_iter()
            .find(|point| point.id == wanted.mount);
        let group = group.and_then(|point| point.group);
        let hidden = || {
            let path = target.display();
            MountError::Unsuitable(format!(
                "{path} is hidden by something that the VM has mounted"
            ))
        };
        let inside = self.open_inside(target).map_err(|_| hidden())?;
        let seen = mount::place(&inside).map_err(&failed)?;
        let points = mount::mount_points_of(&self.process).map_err(&failed)?;
        let ours = points
            .iter()
            .any(|point| point.id == seen.mount && point.master.is_some() && point.master == group);
        let same = (seen.device, seen.number) == (wanted.device, wanted.number);
        if ours && same { Ok(()) } else { Err(hidden()) }
    }

    /// Opens a directory as the machine's first process sees it.
    fn open_inside(&self, path: &Path) -> io::Result<OwnedFd> {
        use rustix::fs::ResolveFlags;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.process, "root", flags, Mode::empty())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(
            root,
            path,
            flags,
            Mode::empty(),
            resolve,
        )?)
    }
}

/// Is it a mount namespace that this process's own rights rule?
fn is_ours(found: BorrowedFd<'_>) -> io::Result<bool> {
    if namespace::kind(found)? != namespace::MOUNTS {
        return Ok(false);
    }
    let own = std::fs::File::open("/proc/self/ns/user")?;
    let owner = match namespace::owner(found) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
        other => other?,
    };
    let (own, owner) = (rustix::fs::fstat(own)?, rustix::fs::fstat(owner)?);
    Ok((own.st_dev, own.st_ino) == (owner.st_dev, owner.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        for good in ["/data", "/a/b c", "/a/", "//a"] {
            assert!(checked(good).is_ok(), "{good}");
        }
        for bad in [
            "", "/", "//", "data", "/a/../b", "/..", "/a/./b", "/.", "/a\0",
        ] {
            assert!(checked(bad).is_err(), "{bad:?}");
        }
    }
}
