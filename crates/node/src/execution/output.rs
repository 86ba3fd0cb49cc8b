//! The output of an execution, within what one execution and all of them together may hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory that the output of all executions together may take.
#[derive(Debug)]
pub(crate) struct Budget {
    held: AtomicU64,
    limit: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            held: AtomicU64::new(0),
            limit,
        }
    }

    fn take(&self, bytes: u64) -> bool {
        let add = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.held
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add)
            .is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// What an execution has written.
#[derive(Debug)]
pub(crate) struct Output {
    budget: Arc<Budget>,
    /// The most bytes of one stream.
    limit: usize,
    taken: u64,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Something had to be left out.
    pub(crate) over: bool,
}

impl Output {
    pub(crate) fn new(budget: Arc<Budget>, limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            budget,
            limit,
            taken: 0,
            stdout: Vec::new(),
            stderr: Vec::new(),
            over: false,
        }
    }

    pub(crate) fn push_stdout(&mut self, bytes: &[u8]) {
        let room = self.room(self.stdout.len(), bytes.len());
        self.stdout.extend_from_slice(&bytes[..room]);
    }

    pub(crate) fn push_stderr(&mut self, bytes: &[u8]) {
        let room = self.room(self.stderr.len(), bytes.len());
        self.stderr.extend_from_slice(&bytes[..room]);
    }

    /// How many of `more` bytes may be kept of a stream that holds `held`. Once something was left out nothing more is
    /// kept, so that what is there is the beginning.
    fn room(&mut self, held: usize, more: usize) -> usize {
        let room = if self.over {
            0
        } else {
            more.min(self.limit.saturating_sub(held))
        };
        let bytes = room as u64;
        if room > 0 && !self.budget.take(bytes) {
            self.over = true;
            return 0;
        }
        self.taken += bytes;
        self.over |= room < more;
        room
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.budget.give_back(self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_keeps_its_beginning_up_to_the_limit() {
        let budget = Arc::new(Budget::new(1000));
        let mut output = Output::new(budget.clone(), 4);
        output.push_stdout(b"abc");
        assert!(!output.over);
        output.push_stdout(b"def");
        output.push_stdout(b"g");
        assert_eq!(output.stdout, b"abcd");
        assert!(output.over);
        drop(output);
        assert_eq!(budget.held.load(Ordering::Acquire), 0);
    }

    #[test]
    fn all_together_stay_within_the_budget() {
        let budget = Arc::new(Budget::new(5));
        let mut first = Output::new(budget.clone(), 100);
        let mut second = Output::new(budget.clone(), 100);
        first.push_stderr(b"1234");
        second.push_stderr(b"5678");
        assert!(second.over && second.stderr.is_empty());
        drop(first);
        let mut third = Output::new(budget, 100);
        third.push_stdout(b"12345");
        assert!(!third.over);
    }
}
