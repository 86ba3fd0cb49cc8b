//! The table of processes, as `/proc` shows it.

use crate::tree::Tree;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

/// Clock ticks in a second, as `/proc` counts: fixed in the kernel's interface.
const TICKS: u64 = 100;
/// What is read of an environment.
const LONGEST_ENVIRONMENT: u64 = 1024 * 1024;

/// `/proc`, opened before anybody in the VM could mount something over it.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    directory: Option<OwnedFd>,
}

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) session: i32,
    /// When it started, in ticks since the boot.
    pub(crate) started: u64,
    /// How often it had to wait for a page of a file or of swap.
    pub(crate) major_faults: u64,
}

impl ProcessTable {
    pub(crate) fn open() -> ProcessTable {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        ProcessTable {
            directory: open("/proc", flags, Mode::empty()).ok(),
        }
    }

    /// All processes; nothing where there is no `/proc`.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let Some(directory) = &self.directory else {
            return Vec::new();
        };
        let Ok(names) = Dir::read_from(directory) else {
            return Vec::new();
        };
        let pids = names
            .filter_map(Result::ok)
            .filter_map(|name| name.file_name().to_str().ok()?.parse::<i32>().ok());
        pids.filter_map(|pid| entry(directory, pid)).collect()
    }

    /// How often a process has had to wait for a page; none for one that is gone.
    pub(crate) fn major_faults(&self, pid: i32) -> u64 {
        let entry = self.directory.as_ref().and_then(|all| entry(all, pid));
        entry.map_or(0, |entry| entry.major_faults)
    }

    /// The descendants of a process that started no earlier than `since`.
    pub(crate) fn descendants(&self, root: i32, since: u64) -> Vec<i32> {
        let entries = self.entries();
        let family = with_descendants(&entries, HashSet::from([root]));
        let young = entries
            .iter()
            .filter(|entry| entry.started >= since && entry.pid != root);
        young
            .map(|entry| entry.pid)
            .filter(|pid| family.contains(pid))
            .collect()
    }

    /// The shell's processes: those of its session, those with its mark in their environment, those that were known to
    /// be its own before, and all their descendants.
    pub(crate) fn tree(&self, tree: &Tree) -> Vec<Entry> {
        let mut entries = self.entries();
        let ours = |entry: &&Entry| {
            let known = tree.known.get(&entry.pid) == Some(&entry.started);
            known || entry.session == tree.shell || self.has_variable(entry.pid, &tree.variable)
        };
        let known = entries.iter().filter(ours).map(|entry| entry.pid);
        let family = with_descendants(&entries, known.collect());
        // The agent itself is there when its own environment came from such a process.
        let me = std::process::id().cast_signed();
        entries.retain(|entry| family.contains(&entry.pid) && entry.pid > 1 && entry.pid != me);
        entries
    }

    fn has_variable(&self, pid: i32, variable: &str) -> bool {
        let Some(directory) = &self.directory else {
            return false;
        };
        let Some(file) = open_entry(directory, &format!("{pid}/environ")) else {
            return false;
        };
        let mut environment = Vec::new();
        // It may be gone, or may not be read: then it is none of those that are looked for.
        let _ = File::from(file)
            .take(LONGEST_ENVIRONMENT)
            .read_to_end(&mut environment);
        environment
            .split(|&byte| byte == 0)
            .any(|one| one == variable.as_bytes())
    }
}

/// The processes with all their descendants.
fn with_descendants(entries: &[Entry], mut family: HashSet<i32>) -> HashSet<i32> {
    // A child may be listed before its parent.
    loop {
        let before = family.len();
        let children = entries
            .iter()
            .filter(|entry| family.contains(&entry.parent))
            .map(|entry| entry.pid)
            .collect::<Vec<_>>();
        family.extend(children);
        if family.len() == before {
            return family;
        }
    }
}

/// Now, in the ticks of [`Entry::started`].
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * TICKS + now.tv_nsec.unsigned_abs() / (1_000_000_000 / TICKS)
}

fn open_entry(directory: &OwnedFd, path: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // Not through something mounted over a process's own directory, where the kernel lets us say so.
    let file = match openat2(directory, path, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
        Err(Errno::NOSYS | Errno::PERM) => openat(directory, path, flags, Mode::empty()),
        other => other,
    };
    file.ok()
}

fn entry(directory: &OwnedFd, pid: i32) -> Option<Entry> {
    let file = open_entry(directory, &format!("{pid}/stat"))?;
    let mut text = [0u8; 1024];
    let length = rustix::io::read(file, &mut text).ok()?;
    parse(pid, &text[..length])
}

/// The name is in parentheses and may hold anything, so fields are counted from its end.
fn parse(pid: i32, stat: &[u8]) -> Option<Entry> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    Some(Entry {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        major_faults: fields.get(9)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        let stat = b"7 (a) S 1 (b) R 3 4 5 0 -1 0 0 0 6 0 0 0 0 0 20 0 1 0 777 0 0";
        let expected = Entry {
            pid: 7,
            parent: 3,
            session: 5,
            started: 777,
            major_faults: 6,
        };
        assert_eq!(parse(7, stat), Some(expected));
    }

    #[test]
    fn this_process_is_in_the_table() {
        let me = std::process::id().cast_signed();
        let entry = ProcessTable::open()
            .entries()
            .into_iter()
            .find(|entry| entry.pid == me);
        let entry = entry.expect("an entry for this process");
        assert!(entry.started <= now());
    }
}
