//! Things to do later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// What is due. The numbers may name things that are gone; then nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Connections that have not sent their request by now are cut.
    Handshakes,
    /// The next step of an execution's interrupt.
    Interrupt(u64),
    /// An execution whose caller is gone has had its time to end by itself.
    Kill(u64),
    /// The interpreter with this number may have trouble to start.
    Start(u64),
    /// A program that looks at the language of this execution has had its time.
    Check(u64),
    /// A file transfer whose peer is gone has had its time to end by itself.
    EndTransfer(u64),
    /// A terminal may have been without a connection for too long.
    Pty(u64),
    /// The program of a terminal that was closed has had its time to end by itself.
    EndPty(i32),
    /// Descriptors were exhausted; accept again.
    Accept,
}

/// Timers by their time.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Timer)>>,
}

impl Timers {
    pub(crate) fn add(&mut self, after: Duration, timer: Timer) {
        self.heap.push(Reverse((Instant::now() + after, timer)));
    }

    /// The time until the next timer is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        let Reverse((due, _)) = self.heap.peek()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Takes one timer that is due.
    pub(crate) fn pop_due(&mut self) -> Option<Timer> {
        let Reverse((due, timer)) = *self.heap.peek()?;
        if due > Instant::now() {
            return None;
        }
        self.heap.pop();
        Some(timer)
    }
}
