//! The output of an execution, within what one execution and all of them together may hold.

use bytes::Bytes;
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

/// What one stream of an execution has written. What is held counts against the budget until the last clone of what
/// it was turned into is dropped.
#[derive(Debug)]
struct Stream {
    budget: Arc<Budget>,
    held: Vec<u8>,
}

impl Stream {
    fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            held: Vec::new(),
        }
    }
}

impl AsRef<[u8]> for Stream {
    fn as_ref(&self) -> &[u8] {
        &self.held
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.budget.give_back(self.held.len() as u64);
    }
}

/// What an execution has written.
#[derive(Debug)]
pub(crate) struct Output {
    /// The most bytes of one stream.
    limit: usize,
    stdout: Stream,
    stderr: Stream,
    /// Something had to be left out.
    pub(crate) over: bool,
}

impl Output {
    pub(crate) fn new(budget: &Arc<Budget>, limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let (stdout, stderr) = (Stream::new(budget.clone()), Stream::new(budget.clone()));
        Self {
            limit,
            stdout,
            stderr,
            over: false,
        }
    }

    pub(crate) fn push_stdout(&mut self, bytes: &[u8]) {
        Self::push(&mut self.stdout, self.limit, &mut self.over, bytes);
    }

    pub(crate) fn push_stderr(&mut self, bytes: &[u8]) {
        Self::push(&mut self.stderr, self.limit, &mut self.over, bytes);
    }

    /// Standard output and standard error.
    pub(crate) fn into_streams(self) -> (Bytes, Bytes) {
        (
            Bytes::from_owner(self.stdout),
            Bytes::from_owner(self.stderr),
        )
    }

    /// Keeps what there is room for. Once something was left out nothing more is kept, so that what is there is the
    /// beginning.
    fn push(stream: &mut Stream, limit: usize, over: &mut bool, bytes: &[u8]) {
        let room = bytes.len().min(limit.saturating_sub(stream.held.len()));
        if *over || !stream.budget.take(room as u64) {
            *over = true;
            return;
        }
        stream.held.extend_from_slice(&bytes[..room]);
        *over = room < bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_keeps_its_beginning_up_to_the_limit() {
        let budget = Arc::new(Budget::new(1000));
        let mut output = Output::new(&budget, 4);
        output.push_stdout(b"abc");
        assert!(!output.over);
        output.push_stdout(b"def");
        output.push_stdout(b"g");
        assert!(output.over);
        let (stdout, stderr) = output.into_streams();
        assert_eq!((&stdout[..], &stderr[..]), (&b"abcd"[..], &b""[..]));
        let part = stdout.slice(1..);
        drop((stdout, stderr));
        assert_eq!(budget.held.load(Ordering::Acquire), 4);
        drop(part);
        assert_eq!(budget.held.load(Ordering::Acquire), 0);
    }

    #[test]
    fn all_together_stay_within_the_budget() {
        let budget = Arc::new(Budget::new(5));
        let mut first = Output::new(&budget, 100);
        let mut second = Output::new(&budget, 100);
        first.push_stderr(b"1234");
        second.push_stderr(b"5678");
        assert!(second.over && second.into_streams().1.is_empty());
        drop(first);
        let mut third = Output::new(&budget, 100);
        third.push_stdout(b"12345");
        assert!(!third.over);
    }
}
