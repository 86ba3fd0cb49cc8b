//! The output of detached executions, kept until it is forgotten.
//!
//! What is kept are the frames as a connection would have sent them, so that following one is copying bytes. Short
//! output stays in memory; more goes into a nameless file on the VM's disk.

use instavm_agent_api::{Event, Failure, Finished, frame};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open, openat};
use rustix::process::{Resource, getrlimit};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

/// Most executions that are kept; then the one that finished first goes.
const MOST: usize = 10_000;
/// Output up to this size stays in memory.
const INLINE: usize = 1024;

/// The last event of an execution.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Finished(Finished),
    Failed(Failure),
}

impl From<End> for Event {
    fn from(end: End) -> Event {
        match end {
            End::Finished(finished) => Event::Finished(finished),
            End::Failed(failure) => Event::Failed(failure),
        }
    }
}

/// What is kept of one execution.
#[derive(Debug)]
pub(crate) struct Spool {
    memory: Vec<u8>,
    file: Option<OwnedFd>,
    /// Bytes of whole frames.
    length: u64,
    lost: bool,
    /// A frame that comes after everything else.
    pub(crate) note: Vec<u8>,
    /// The execution, while it has not ended.
    pub(crate) execution: Option<u64>,
    pub(crate) end: Option<End>,
    /// Connections that follow it.
    pub(crate) followers: Vec<u64>,
}

impl Spool {
    /// Up to `most` bytes from an offset on; nothing at the end of what there is.
    pub(crate) fn read(&self, offset: u64, most: usize) -> rustix::io::Result<Vec<u8>> {
        let Some(file) = &self.file else {
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(self.memory.len());
            let end = start.saturating_add(most).min(self.memory.len());
            return Ok(self.memory[start..end].to_vec());
        };
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(most)];
        let read = rustix::io::pread(file, &mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&mut self, mut bytes: &[u8]) -> rustix::io::Result<()> {
        let Some(file) = &self.file else {
            self.memory.extend_from_slice(bytes);
            self.length += bytes.len() as u64;
            return Ok(());
        };
        let mut at = self.length;
        while !bytes.is_empty() {
            let written = rustix::io::pwrite(file, bytes, at)?;
            at += written as u64;
            bytes = &bytes[written..];
        }
        // Only whole frames count: one that did not fit is as if it had never come.
        self.length = at;
        Ok(())
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Spools {
    spools: HashMap<String, Spool>,
    /// By age; names that are gone are skipped.
    order: VecDeque<String>,
    directory: Option<OwnedFd>,
    files: usize,
    most_files: usize,
}

impl Spools {
    /// The directory is opened now, before anybody in the VM can mount something over it.
    pub(crate) fn open() -> Spools {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directories = ["/var/tmp", "/tmp"].into_iter();
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
        Spools {
            spools: HashMap::new(),
            order: VecDeque::new(),
            directory: directories
                .filter_map(|path| open(path, flags, Mode::empty()).ok())
                .next(),
            files: 0,
            most_files: usize::try_from(descriptors / 4).unwrap_or(usize::MAX),
        }
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Spool> {
        self.spools.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut Spool> {
        self.spools.get_mut(id)
    }

    /// Begins to keep an execution.
    pub(crate) fn create(&mut self, id: &str, execution: u64) {
        if self.spools.len() >= MOST {
            self.drop_oldest(|_| true);
        }
        let spool = Spool {
            memory: Vec::new(),
            file: None,
            length: 0,
            lost: false,
            note: Vec::new(),
            execution: Some(execution),
            end: None,
            followers: Vec::new(),
        };
        self.spools.insert(id.to_owned(), spool);
        self.order.push_back(id.to_owned());
    }

    /// Forgets an execution that has ended; one that runs stays.
    pub(crate) fn forget(&mut self, id: &str) {
        if self.spools.get(id).is_some_and(|spool| spool.end.is_some()) {
            self.remove(id);
        }
    }

    pub(crate) fn remove(&mut self, id: &str) {
        if let Some(spool) = self.spools.remove(id) {
            self.files -= usize::from(spool.file.is_some());
        }
        // Forgotten names would pile up in a VM that lives long.
        if self.order.len() > 2 * MOST || self.spools.is_empty() {
            let spools = &self.spools;
            self.order.retain(|id| spools.contains_key(id));
        }
    }

    /// Adds a frame to what is kept.
    pub(crate) fn append(&mut self, id: &str, frame: &[u8]) {
        let Some(spool) = self.spools.get(id) else {
            return;
        };
        if spool.lost {
            return;
        }
        let to_file = spool.file.is_none() && spool.memory.len() + frame.len() > INLINE;
        let file = if to_file { self.new_file() } else { None };
        let Some(spool) = self.spools.get_mut(id) else {
            return;
        };
        if to_file {
            let Some(file) = file else {
                spool.lost = true;
                return;
            };
            let memory = std::mem::take(&mut spool.memory);
            spool.length = 0;
            spool.file = Some(file);
            self.files += 1;
            spool.lost = spool.write(&memory).is_err();
        }
        if !spool.lost {
            spool.lost = spool.write(frame).is_err();
        }
    }

    /// Keeps how an execution ended, and says so when output was lost.
    pub(crate) fn finish(&mut self, id: &str, end: End) {
        let Some(spool) = self.spools.get_mut(id) else {
            return;
        };
        spool.execution = None;
        if spool.lost {
            let note = b"\n[the rest of the output is lost: the VM's disk is full]\n".to_vec();
            // A full disk takes no note, so it is kept beside what it is about.
            spool.note = frame::encode(&Event::Stderr(note)).unwrap_or_default();
        }
        spool.end = Some(end);
    }

    fn new_file(&mut self) -> Option<OwnedFd> {
        if self.files >= self.most_files {
            self.drop_oldest(|spool| spool.file.is_some());
        }
        self.nameless_file()
    }

    /// A file without a name on the VM's disk; in memory where there is no such.
    pub(crate) fn nameless_file(&self) -> Option<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let on_disk = self
            .directory
            .as_ref()
            .map(|directory| openat(directory, ".", flags, Mode::RUSR | Mode::WUSR));
        match on_disk {
            Some(Ok(file)) => Some(file),
            _ => memfd_create("spool", MemfdFlags::CLOEXEC).ok(),
        }
    }

    /// Drops the oldest execution that has ended, that nobody follows, and that fits.
    fn drop_oldest(&mut self, fits: impl Fn(&Spool) -> bool) {
        let spools = &self.spools;
        let idle = |spool: &Spool| spool.end.is_some() && spool.followers.is_empty() && fits(spool);
        let oldest = self
            .order
            .iter()
            .find(|id| spools.get(*id).is_some_and(idle))
            .cloned();
        if let Some(id) = oldest {
            self.order.retain(|other| *other != id);
            self.remove(&id);
        }
    }
}
