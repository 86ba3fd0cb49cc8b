//! What the lookups of VMs gave, on disk: so that names which a VM has looked up go on after a restart of the daemon.
//!
//! A file for each VM, a line for each address: `name address seconds`, the last being the time until which it counts.
//! Lines are added before the VM hears the answer; a reader takes the latest of each. What cannot be read is skipped: the
//! VM looks the name up again. A loss of power takes the VMs along, so nothing is forced to the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The largest file that is read: more than all that a VM may have on record takes.
const LARGEST: u64 = 32 << 20;
/// What a file may grow by before it is written anew.
const SLACK: u64 = 256 << 10;

/// A line: name, address, and until when it counts.
pub(super) type Line<'a> = (&'a str, Ipv4Addr, SystemTime);

/// The file of one VM.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    /// The size from which on it is written anew.
    limit: u64,
}

impl Journal {
    pub(super) fn new(folder: &Path, index: u16) -> Self {
        Self {
            path: folder.join(index.to_string()),
            file: None,
            size: 0,
            limit: SLACK,
        }
    }

    /// What the file says; nothing when there is none.
    pub(super) fn read(&mut self) -> Vec<(String, Ipv4Addr, SystemTime)> {
        let Ok(file) = File::open(&self.path) else {
            return Vec::new();
        };
        self.size = file.metadata().map_or(0, |file| file.len());
        let lines = BufReader::new(file.take(LARGEST)).lines();
        lines
            .map_while(Result::ok)
            .filter_map(|line| parse(&line))
            .collect()
    }

    /// Adds lines.
    pub(super) fn add<'a>(&mut self, lines: impl Iterator<Item = Line<'a>>) -> io::Result<()> {
        let text = written(lines);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open(OpenOptions::new().append(true), &self.path)?),
        };
        file.write_all(text.as_bytes())?;
        self.size += text.len() as u64;
        Ok(())
    }

    /// Whether most of it is out of date.
    pub(super) fn is_long(&self) -> bool {
        self.size > self.limit
    }

    /// Writes it anew: a reader sees the old one or the new one.
    pub(super) fn replace<'a>(&mut self, lines: impl Iterator<Item = Line<'a>>) -> io::Result<()> {
        let text = written(lines);
        let draft = self.path.with_extension("draft");
        self.file = None;
        // Should it fail, it is not tried again at each line.
        self.limit = self.size + SLACK;
        open(OpenOptions::new().write(true).truncate(true), &draft)?.write_all(text.as_bytes())?;
        std::fs::rename(&draft, &self.path)?;
        self.size = text.len() as u64;
        self.limit = 2 * self.size + SLACK;
        Ok(())
    }

    /// Removes it.
    pub(super) fn remove(&mut self) {
        (self.file, self.size, self.limit) = (None, 0, SLACK);
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the names of an earlier VM stay");
        }
    }
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.create(true).mode(0o600).open(path)
}

fn written<'a>(lines: impl Iterator<Item = Line<'a>>) -> String {
    lines
        .map(|(name, address, until)| {
            let until = until.duration_since(UNIX_EPOCH).unwrap_or_default();
            format!("{name} {address} {}\n", until.as_secs())
        })
        .collect()
}

fn parse(line: &str) -> Option<(String, Ipv4Addr, SystemTime)> {
    let mut words = line.split(' ');
    let (name, address, until) = (words.next()?, words.next()?, words.next()?);
    let until = UNIX_EPOCH.checked_add(Duration::from_secs(until.parse().ok()?))?;
    let whole = words.next().is_none() && !name.is_empty();
    whole.then_some((name.to_owned(), address.parse().ok()?, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    fn later() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    #[test]
    fn lines_come_back_and_what_is_none_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(folder.path(), 3);
        assert!(journal.read().is_empty());
        let lines = [("a.test", ONE, later()), ("b.test", ONE, later())];
        journal.add(lines.into_iter().take(1)).unwrap();
        journal.add(lines.into_iter().skip(1)).unwrap();
        let path = folder.path().join("3");
        let torn = "c.test 198.18.0.1\nd.test x 5\ne.test 198.18.0.1 18446744073709551615\nf 198.1";
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(torn.as_bytes()).unwrap();
        let read = Journal::new(folder.path(), 3).read();
        let names: Vec<&str> = read.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["a.test", "b.test"]);
        assert_eq!(read[0], ("a.test".to_owned(), ONE, later()));
        journal.remove();
        assert!(!path.exists());
    }

    #[test]
    fn it_is_written_anew_when_it_is_long() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(folder.path(), 0);
        while !journal.is_long() {
            journal
                .add((0..100).map(|_| ("a.test", ONE, later())))
                .unwrap();
        }
        journal
            .replace([("a.test", ONE, later())].into_iter())
            .unwrap();
        assert!(!journal.is_long());
        journal.add([("b.test", ONE, later())].into_iter()).unwrap();
        assert_eq!(Journal::new(folder.path(), 0).read().len(), 2);
    }
}
