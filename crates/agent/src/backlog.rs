//! Output that waits for an execution to come with: what background threads and processes write in between.

use rustix::io::{Errno, pread, pwrite};
use std::os::fd::OwnedFd;

/// What is kept at most; then the oldest goes. The size of the file, which is written round and round.
const MOST: u64 = 64 * 1024 * 1024;
/// So much stays in memory.
const INLINE: usize = 64 * 1024;

/// The bytes of one stream, first in, first out.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    memory: Vec<u8>,
    file: Option<OwnedFd>,
    /// Where the oldest byte is.
    start: u64,
    length: u64,
    dropped: u64,
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds bytes; `new_file` gives a nameless file when there are too many for memory.
    pub(crate) fn push(&mut self, bytes: &[u8], new_file: impl FnOnce() -> Option<OwnedFd>) {
        if self.file.is_none() {
            if self.memory.len() + bytes.len() <= INLINE {
                self.memory.extend_from_slice(bytes);
                self.length += bytes.len() as u64;
                return;
            }
            let Some(file) = new_file() else {
                self.dropped += bytes.len() as u64;
                return;
            };
            self.file = Some(file);
            let kept = self
                .memory
                .split_off(usize::try_from(self.start).unwrap_or(0));
            (self.memory, self.start, self.length) = (Vec::new(), 0, 0);
            self.store(&kept);
        }
        self.store(bytes);
    }

    fn store(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(INLINE) {
            let size = piece.len() as u64;
            let excess = (self.length + size).saturating_sub(MOST);
            self.start = (self.start + excess) % MOST;
            self.length -= excess;
            self.dropped += excess;
            match self.write(piece) {
                Ok(()) => self.length += size,
                // The disk is full.
                Err(_) => self.dropped += size,
            }
        }
    }

    fn write(&self, mut bytes: &[u8]) -> rustix::io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let mut at = (self.start + self.length) % MOST;
        while !bytes.is_empty() {
            let room = usize::try_from(MOST - at).unwrap_or(usize::MAX);
            match pwrite(file, &bytes[..bytes.len().min(room)], at) {
                Ok(0) => return Err(Errno::NOSPC),
                Ok(written) => {
                    bytes = &bytes[written..];
                    at = (at + written as u64) % MOST;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes up to `most` of the oldest bytes; none only when there are none.
    pub(crate) fn take(&mut self, most: usize) -> Vec<u8> {
        let left = self.length.min(most as u64);
        let Some(file) = &self.file else {
            let start = usize::try_from(self.start).unwrap_or(usize::MAX);
            let end = start + usize::try_from(left).unwrap_or(0);
            let bytes = self
                .memory
                .get(start..end)
                .map(<[u8]>::to_vec)
                .unwrap_or_default();
            self.taken(bytes.len() as u64);
            return bytes;
        };
        let mut bytes = vec![0; usize::try_from(left.min(MOST - self.start)).unwrap_or(0)];
        let read = pread(file, &mut bytes, self.start).unwrap_or(0);
        bytes.truncate(read);
        // What cannot be read is gone.
        self.taken(if read == 0 { self.length } else { read as u64 });
        bytes
    }

    fn taken(&mut self, size: u64) {
        self.start = (self.start + size) % MOST;
        self.length -= size.min(self.length);
        if self.length == 0 {
            *self = Backlog {
                dropped: self.dropped,
                ..Backlog::default()
            };
        }
    }

    /// A line for a person when something had to go, once.
    pub(crate) fn note(&mut self) -> Option<String> {
        let dropped = std::mem::take(&mut self.dropped);
        (dropped > 0).then(|| {
            format!(
                "[instavm] {dropped} bytes of background output were dropped; {} MiB are kept, disk space permitting\n",
                MOST >> 20
            )
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    fn file() -> Option<OwnedFd> {
        Some(memfd_create("test", MemfdFlags::CLOEXEC).unwrap())
    }

    fn drain(backlog: &mut Backlog) -> Vec<u8> {
        let mut all = Vec::new();
        while !backlog.is_empty() {
            all.extend(backlog.take(10_007));
        }
        all
    }

    #[test]
    fn bytes_come_out_as_they_went_in() {
        for total in [10, INLINE, 3 * INLINE + 1] {
            let content: Vec<u8> = (0..=250u8).cycle().take(total).collect();
            let mut backlog = Backlog::default();
            for piece in content.chunks(4_999) {
                backlog.push(piece, file);
            }
            assert_eq!(backlog.take(3), content[..3]);
            backlog.push(b"end", file);
            let mut expected = content[3..].to_vec();
            expected.extend(b"end");
            assert!(drain(&mut backlog) == expected, "{total} bytes");
            assert_eq!(backlog.note(), None);
        }
    }

    #[test]
    fn the_oldest_goes_first_and_that_is_said() {
        let mut backlog = Backlog::default();
        let content: Vec<u8> = (0..=250u8).cycle().take(66 << 20).collect();
        for piece in content.chunks(65_000) {
            backlog.push(piece, file);
        }
        assert!(drain(&mut backlog) == content[2 << 20..]);
        assert!(
            backlog
                .note()
                .unwrap()
                .starts_with("[instavm] 2097152 bytes ")
        );
        assert_eq!(backlog.note(), None);
    }

    #[test]
    fn without_a_disk_the_newest_goes() {
        let mut backlog = Backlog::default();
        backlog.push(b"kept", || None);
        backlog.push(&[0; INLINE], || None);
        assert_eq!(drain(&mut backlog), b"kept");
        assert!(backlog.note().unwrap().contains("65536 bytes"));
    }
}
