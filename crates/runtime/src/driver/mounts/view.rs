//! The mount namespace that a machine's own is a copy of, as seen from within.

use super::{MountError, Source};
use instavm_linux::mount::{self, MountPoint};
use instavm_linux::{namespace, process};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// What belongs to the kernel in every machine; nothing of a user's is mounted there.
const KERNELS: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A thread that lives in the namespace.
pub(super) struct View {
    /// This thread's directory in the host's `/proc`.
    thread: OwnedFd,
}

/// A directory to mount at.
pub(super) struct Target {
    pub(super) directory: OwnedFd,
    /// The directories that were made for it: each with the one that it is in, the innermost last.
    made: Vec<(OwnedFd, OsString)>,
}

impl Target {
    /// Removes what was made for it.
    pub(super) fn remove_made(self) {
        for (parent, name) in self.made.into_iter().rev() {
            // What is in use already stays.
            let _ = rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR);
        }
    }
}

impl View {
    /// Does something in a namespace, on a thread of its own that ends with it.
    pub(super) fn of<T: Send>(
        outside: &OwnedFd,
        action: impl FnOnce(&View) -> Result<T, MountError> + Send,
    ) -> Result<T, MountError> {
        let failed = MountError::at("enter the VM's outer mount namespace");
        let body = || {
            let thread = rustix::fs::open("/proc/thread-self", DIRECTORY, Mode::empty());
            let view = View {
                thread: thread.map_err(|e| failed(e.into()))?,
            };
            // Root, working directory and file mask are shared with all threads of the process until then.
            namespace::leave(namespace::ROOT)
                .and_then(|()| namespace::enter(outside.as_fd(), namespace::MOUNTS))
                .map_err(&failed)?;
            rustix::process::umask(Mode::from_raw_mode(0o022));
            action(&view)
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, body);
            let thread = thread.map_err(MountError::at("start a thread"))?;
            thread.join().unwrap_or_else(|_| {
                let error = io::Error::other("it panicked");
                Err(MountError::at("work in the VM's outer mount namespace")(
                    error,
                ))
            })
        })
    }

    /// All mounts of the namespace.
    pub(super) fn all(&self) -> Result<Vec<MountPoint>, MountError> {
        mount::mount_points_of(&self.thread).map_err(MountError::at("list the VM's mounts"))
    }

    /// The mounts that a node has made.
    pub(super) fn mounts(&self) -> Result<Vec<MountPoint>, MountError> {
        let launched = |target: &Path| {
            target == Path::new("/") || KERNELS.iter().any(|kernels| target.starts_with(kernels))
        };
        let mut points = self.all()?;
        points.retain(|point| !launched(&point.target));
        Ok(points)
    }

    /// Those of one source.
    pub(super) fn mounts_of(&self, source: &Source) -> Result<Vec<MountPoint>, MountError> {
        let mut points = self.mounts()?;
        points.retain(|point| point.device == source.device && point.root == source.root);
        Ok(points)
    }

    /// Where a directory that is open is.
    fn path_of(&self, directory: &OwnedFd) -> Result<PathBuf, MountError> {
        let name = format!("fd/{}", directory.as_raw_fd());
        let path = rustix::fs::readlinkat(&self.thread, name, Vec::new());
        let path = path.map_err(|e| MountError::at("tell where a directory is")(e.into()))?;
        Ok(OsString::from_vec(path.into_bytes()).into())
    }

    /// Opens the directory to mount at, making it where it is missing, as the VM's root. It lies on the root disk, where
    /// links may lead to it, and nothing is mounted on it, above it or below it.
    pub(super) fn prepare(&self, target: &Path, owner: u32) -> Result<Target, MountError> {
        let failed = MountError::at("open the directory to mount at");
        let mut so_far = PathBuf::from("/");
        let root = rustix::fs::open("/", DIRECTORY, Mode::empty());
        let root = root.map_err(|e| failed(e.into()))?;
        let disk = mount::place(&root).map_err(&failed)?;
        let mut place = Target {
            directory: root,
            made: Vec::new(),
        };
        for part in target.components() {
            let Component::Normal(name) = part else {
                continue;
            };
            so_far.push(name);
            let step = self.step(&mut place, name, &so_far, owner).and_then(|()| {
                let here = mount::place(&place.directory).map_err(&failed)?;
                if here.mount == disk.mount {
                    Ok(())
                } else {
                    Err(self.foreign(&so_far, &place))
                }
            });
            if let Err(error) = step {
                place.remove_made();
                return Err(error);
            }
        }
        match self.check(&place, target, disk) {
            Ok(()) => Ok(place),
            Err(error) => {
                place.remove_made();
                Err(error)
            }
        }
    }

    fn check(&self, place: &Target, target: &Path, disk: mount::Place) -> Result<(), MountError> {
        let here = mount::place(&place.directory).map_err(MountError::at("look at a directory"))?;
        if here == disk {
            let message = format!("{} leads to the root of the VM", target.display());
            return Err(MountError::Unsuitable(message));
        }
        let path = self.path_of(&place.directory)?;
        let below = self
            .mounts()?
            .into_iter()
            .find(|point| point.target.starts_with(&path));
        match below {
            None => Ok(()),
            Some(point) => Err(MountError::Taken(format!(
                "a volume is mounted below {}, at {}",
                target.display(),
                point.target.display()
            ))),
        }
    }

    /// One part of the path further, making the directory where it is missing.
    fn step(
        &self,
        place: &mut Target,
        name: &OsStr,
        so_far: &Path,
        owner: u32,
    ) -> Result<(), MountError> {
        let open = |parent: &OwnedFd| {
            rustix::fs::openat2(
                parent,
                name,
                DIRECTORY,
                Mode::empty(),
                ResolveFlags::NO_MAGICLINKS,
            )
        };
        let unsuitable = |error: Errno| unsuitable(so_far, error);
        let next = match open(&place.directory) {
            Err(Errno::NOENT) => {
                let mode = Mode::from_raw_mode(0o755);
                let make = || rustix::fs::mkdirat(&place.directory, name, mode);
                match process::as_file_owner(owner, make) {
                    Ok(()) => {
                        let parent = place.directory.try_clone();
                        let parent = parent.map_err(MountError::at("keep a directory open"))?;
                        place.made.push((parent, name.to_owned()));
                    }
                    // Somebody inside was quicker; or it is a link to nothing, and opening it will say so.
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(unsuitable(error)),
                }
                open(&place.directory).map_err(unsuitable)?
            }
            other => other.map_err(unsuitable)?,
        };
        place.directory = next;
        Ok(())
    }

    /// The reason why a directory that is not on the root disk does not serve.
    fn foreign(&self, so_far: &Path, place: &Target) -> MountError {
        let path = self
            .path_of(&place.directory)
            .unwrap_or_else(|_| so_far.to_owned());
        let kernels = KERNELS.iter().any(|kernels| path.starts_with(kernels));
        if kernels {
            let message = format!("{} is a part of the VM's own file systems", path.display());
            return MountError::Unsuitable(message);
        }
        MountError::Taken(format!(
            "a volume is mounted at {} already",
            so_far.display()
        ))
    }

    /// Unmounts; nothing of it is left when it returns well.
    pub(super) fn unmount(&self, point: &MountPoint) -> Result<(), MountError> {
        let there = |points: Vec<MountPoint>| points.iter().any(|other| other.id == point.id);
        match rustix::mount::unmount(&point.target, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => return Err(MountError::Busy(Vec::new())),
            // Somebody inside has renamed a directory above it, or removed the one that it was mounted on.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(MountError::at("unmount in the VM")(error.into())),
        }
        if there(self.all()?) {
            let error = io::Error::other("its path changed meanwhile");
            return Err(MountError::at("unmount in the VM")(error));
        }
        Ok(())
    }

    /// Undoes a mount that was just made.
    pub(super) fn take_back(&self, tree: &OwnedFd) {
        // It was there a moment ago, and nobody else can unmount in this namespace. If it is not found it is gone.
        let Ok(target) = self.path_of(tree) else {
            return;
        };
        let _ = rustix::mount::unmount(&target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

fn unsuitable(path: &Path, error: Errno) -> MountError {
    let path = path.display();
    match error {
        Errno::NOSPC | Errno::DQUOT => MountError::NoSpace,
        Errno::NOTDIR => MountError::Unsuitable(format!("{path} is no directory")),
        Errno::NOENT => MountError::Unsuitable(format!("{path} is a link that leads to nothing")),
        Errno::LOOP => MountError::Unsuitable(format!("{path} is a link that leads nowhere")),
        Errno::NAMETOOLONG => MountError::Unsuitable(format!("{path} is too long")),
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            MountError::Unsuitable(format!("the VM does not let {path} be made"))
        }
        other => MountError::at("open the directory to mount at")(other.into()),
    }
}
