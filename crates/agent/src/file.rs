//! File transfers, as a forked child makes them: everything here may block.

use crate::place;
use instavm_agent_api::frame::{self, CHUNK};
use instavm_agent_api::{Control, Event, Failure, FailureKind};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is read of a file that does not tell its size.
const LARGEST_UNSIZED: u64 = 16 * 1024 * 1024;
/// Some of the kernel's files are read in whole words only, so the limit is a round number too.
const PAGE: u64 = 4096;
/// How long the rest of a refused upload is taken, so that the peer reads the answer.
const LINGER: Duration = Duration::from_secs(2);
/// What a frame has around its content.
const FRAME_OVERHEAD: usize = 64;
const PERMISSIONS: u32 = 0o7777;

/// Sends one event.
pub(crate) fn send(stream: &mut UnixStream, event: &Event) -> io::Result<()> {
    stream.write_all(&frame::encode(event).map_err(io::Error::other)?)
}

/// Answers a request to read a file.
pub(crate) fn read(stream: &mut UnixStream, workdir: &Path, path: &str) -> io::Result<()> {
    let (mut file, about) = match place::open_to_read(workdir, path) {
        Ok(opened) => opened,
        Err(failure) => return send(stream, &Event::Failed(failure)),
    };
    let mode = about.mode() & PERMISSIONS;
    if about.len() == 0 || place::is_of_the_kernel(&file) {
        return read_unsized(stream, &mut file, path, mode);
    }
    let size = about.len();
    send(stream, &Event::File { size, mode })?;
    keep_large_buffers();
    send_content(stream, &mut file, path, size)
}

/// A file that does not tell its size, as the kernel's own: its content is there only once it is read.
fn read_unsized(stream: &mut UnixStream, file: &mut File, path: &str, mode: u32) -> io::Result<()> {
    let mut content = Vec::new();
    if let Err(error) = file.take(LARGEST_UNSIZED + PAGE).read_to_end(&mut content) {
        return send(stream, &Event::Failed(system_failure("read", path, &error)));
    }
    let size = content.len() as u64;
    if size > LARGEST_UNSIZED {
        let message = format!(
            "{path} does not tell its size, and is larger than {} MiB",
            LARGEST_UNSIZED >> 20
        );
        return send(
            stream,
            &Event::Failed(refuse(FailureKind::Unsuitable, message)),
        );
    }
    send(stream, &Event::File { size, mode })?;
    send_content(stream, &mut content.as_slice(), path, size)
}

/// Sends exactly so many bytes and the end.
fn send_content(
    stream: &mut UnixStream,
    file: &mut impl Read,
    path: &str,
    size: u64,
) -> io::Result<()> {
    let mut left = size;
    let mut chunk = Vec::new();
    while left > 0 {
        chunk.resize(usize::try_from(left).unwrap_or(CHUNK).min(CHUNK), 0);
        if let Err(error) = file.read_exact(&mut chunk) {
            let failure = match error.kind() {
                ErrorKind::UnexpectedEof => refuse(
                    FailureKind::Internal,
                    format!("{path} became shorter while it was read"),
                ),
                _ => system_failure("read", path, &error),
            };
            return send(stream, &Event::Failed(failure));
        }
        left -= chunk.len() as u64;
        let event = Event::Data(chunk);
        send(stream, &event)?;
        let Event::Data(used) = event else {
            return Ok(());
        };
        chunk = used;
    }
    send(stream, &Event::Done)
}

/// Buffers of a chunk's size stay in the heap: fresh pages for each would take longer than their content.
fn keep_large_buffers() {
    // SAFETY: sets a parameter of the allocator; the process has one thread.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 4 * 1024 * 1024) };
}

/// Answers a request to write a file; `received` is what has already arrived of its content.
pub(crate) fn write(
    stream: &mut UnixStream,
    received: Vec<u8>,
    workdir: &Path,
    path: &str,
    mode: u32,
) -> io::Result<()> {
    keep_large_buffers();
    let mut content = Content {
        received,
        at: 0,
        stream,
    };
    let written = Replacement::begin(workdir, path, mode)
        .and_then(|mut replacement| {
            replacement
                .fill(&mut content)
                .map(|size| (replacement, size))
        })
        .and_then(|(replacement, size)| replacement.publish(path).map(|()| size));
    match written {
        Ok(size) => send(content.stream, &Event::Written { size }),
        Err(failure) => {
            send(content.stream, &Event::Failed(failure))?;
            content.linger();
            Ok(())
        }
    }
}

/// The frames of an upload.
struct Content<'a> {
    received: Vec<u8>,
    at: usize,
    stream: &'a mut UnixStream,
}

impl Content<'_> {
    fn next(&mut self) -> io::Result<Control> {
        let mut prefix = [0; 4];
        self.read_exact(&mut prefix)?;
        let length = frame::payload_length(prefix).map_err(io::Error::other)?;
        if length > CHUNK + FRAME_OVERHEAD {
            return Err(io::Error::other("a frame of the upload is too long"));
        }
        let mut payload = vec![0; length];
        self.read_exact(&mut payload)?;
        frame::decode(&payload).map_err(io::Error::other)
    }

    /// Takes the rest of a refused upload for a while: a peer that only writes would otherwise never see why.
    fn linger(&mut self) {
        let deadline = Instant::now() + LINGER;
        let mut sink = vec![0; CHUNK];
        // A peer that is gone needs no patience.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let wait = left.max(Duration::from_millis(1));
            let read = self
                .stream
                .set_read_timeout(Some(wait))
                .and_then(|()| self.stream.read(&mut sink));
            if !matches!(read, Ok(length) if length > 0) {
                return;
            }
        }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.received.len() {
            return self.stream.read(buffer);
        }
        let read = (&self.received[self.at..]).read(buffer)?;
        self.at += read;
        Ok(read)
    }
}

/// New content for a path, nameless or under a name of its own until it is whole.
#[derive(Debug)]
pub(crate) struct Replacement {
    target: PathBuf,
    file: File,
    /// The name of the unfinished file, where the file system has no nameless ones. Removed when this is dropped.
    temporary: Option<PathBuf>,
}

impl Replacement {
    /// Prepares to replace or create the file that the path leads to.
    pub(crate) fn begin(workdir: &Path, path: &str, mode: u32) -> Result<Replacement, Failure> {
        let (target, old) = place::destination(workdir, path)?;
        let denied = |error: io::Error| system_failure("write", path, &error);
        let parent = target.parent().unwrap_or(Path::new("/"));
        let (file, temporary) = unfinished_file(parent).map_err(denied)?;
        let replacement = Replacement {
            file,
            temporary,
            target,
        };
        if let Some(old) = &old {
            // Where the owner cannot be kept, the writer's is as good.
            let _ = fchown(&replacement.file, Some(old.uid()), Some(old.gid()));
        }
        let mode = old.map_or(mode, |old| old.mode()) & PERMISSIONS;
        replacement
            .file
            .set_permissions(PermissionsExt::from_mode(mode))
            .map_err(denied)?;
        Ok(replacement)
    }

    /// Adds bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn fill(&mut self, content: &mut Content<'_>) -> Result<u64, Failure> {
        let mut size = 0;
        loop {
            match content.next() {
                Ok(Control::Data(bytes)) => {
                    self.add(&bytes).map_err(|error| {
                        system_failure("write", &self.target.to_string_lossy(), &error)
                    })?;
                    size += bytes.len() as u64;
                }
                Ok(Control::End) => return Ok(size),
                Ok(Control::Interrupt | Control::Kill | Control::Resize { .. }) => {
                    return Err(refuse(
                        FailureKind::Internal,
                        "the upload was cancelled".to_owned(),
                    ));
                }
                Err(error) => {
                    let message = format!("the upload broke off: {error}");
                    return Err(refuse(FailureKind::Internal, message));
                }
            }
        }
    }

    /// Puts the new content in its place.
    pub(crate) fn publish(mut self, path: &str) -> Result<(), Failure> {
        let failed = |error: io::Error| system_failure("write", path, &error);
        if self.temporary.is_none() {
            self.temporary = Some(self.give_name().map_err(failed)?);
        }
        let Some(temporary) = &self.temporary else {
            return Ok(());
        };
        match std::fs::rename(temporary, &self.target) {
            Ok(()) => {
                self.temporary = None;
                Ok(())
            }
            // A file that something is mounted on keeps its place and gets the content.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                self.overwrite().map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn give_name(&self) -> io::Result<PathBuf> {
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        let from = CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        for attempt in 0..u32::MAX {
            let name = temporary_name(parent, attempt);
            let to = CString::new(name.as_os_str().as_bytes())?;
            let (here, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
            // SAFETY: both paths are valid C strings.
            if unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), follow) } == 0 {
                return Ok(name);
            }
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::AlreadyExists {
                return Err(error);
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    fn overwrite(&self) -> io::Result<()> {
        let Some(temporary) = &self.temporary else {
            return Ok(());
        };
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut target = OpenOptions::new()
            .write(true)
            .truncate(true)
            .custom_flags(flags)
            .open(&self.target)?;
        io::copy(&mut File::open(temporary)?, &mut target).map(|_| ())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // It may never have come to be.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

fn temporary_name(parent: &Path, attempt: u32) -> PathBuf {
    parent.join(format!(".instavm-{}-{attempt}", std::process::id()))
}

/// A nameless file in a directory, which leaves nothing behind whatever happens; one with a name where there are none.
fn unfinished_file(parent: &Path) -> io::Result<(File, Option<PathBuf>)> {
    let nameless = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(parent);
    match nameless {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT)
            ) => {}
        other => return other.map(|file| (file, None)),
    }
    for attempt in 0..u32::MAX {
        let name = temporary_name(parent, attempt);
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&name)
        {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => return other.map(|file| (file, Some(name))),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

pub(crate) fn refuse(kind: FailureKind, message: String) -> Failure {
    Failure { kind, message }
}

/// What an error of the system means for a file.
pub(crate) fn system_failure(operation: &str, path: &str, error: &io::Error) -> Failure {
    let (kind, why) = match error.raw_os_error() {
        Some(libc::ENOENT) => (FailureKind::NotFound, "no such file or directory"),
        Some(libc::EISDIR) => (
            FailureKind::Unsuitable,
            "it is a directory, not a regular file",
        ),
        Some(libc::ENOTDIR | libc::EEXIST) => (
            FailureKind::Unsuitable,
            "a part of the path is not a directory",
        ),
        Some(libc::ENXIO | libc::ENODEV) => (FailureKind::Unsuitable, "it is not a regular file"),
        Some(libc::ELOOP) => (
            FailureKind::Unsuitable,
            "too many symbolic links, or one of the kernel's own",
        ),
        Some(libc::ENAMETOOLONG) => (FailureKind::Unsuitable, "the name is too long"),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
            (FailureKind::NoSpace, "the VM's disk is full")
        }
        Some(libc::EROFS) => (FailureKind::Denied, "the file system is read-only"),
        Some(libc::EACCES | libc::EPERM) => (FailureKind::Denied, "permission denied"),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => (
            FailureKind::Exhausted,
            "the VM has no memory or descriptors left",
        ),
        _ => {
            let message = format!("cannot {operation} {path}: {error}");
            return refuse(FailureKind::Internal, message);
        }
    };
    refuse(kind, format!("cannot {operation} {path}: {why}"))
}
