//! Bytes on their way out: to the node, or to the interpreter.

use instavm_agent_api::frame;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde::Serialize;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

/// Small frames are sent together up to this size.
const MERGE: usize = 32 * 1024;

/// Bytes that a socket has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    parts: VecDeque<Vec<u8>>,
    sent_of_first: usize,
    length: usize,
    most: usize,
}

/// The other end of a socket is gone.
#[derive(Debug)]
pub(crate) struct PeerGone;

impl Outbox {
    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The most bytes that ever waited.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds bytes.
    pub(crate) fn push(&mut self, bytes: Vec<u8>) {
        self.length += bytes.len();
        self.most = self.most.max(self.length);
        match self.parts.back_mut() {
            Some(last) if last.len() + bytes.len() <= MERGE => last.extend_from_slice(&bytes),
            _ => self.parts.push_back(bytes),
        }
    }

    /// Adds a message as a frame. One that is too long for a frame cannot come from this program.
    pub(crate) fn push_message<T: Serialize>(&mut self, message: &T) {
        if let Ok(bytes) = frame::encode(message) {
            self.push(bytes);
        }
    }

    /// Sends as much as the socket takes now.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<(), PeerGone> {
        while let Some(first) = self.parts.front() {
            let rest = &first[self.sent_of_first..];
            match send(socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => {
                    self.length -= sent;
                    self.sent_of_first += sent;
                    if self.sent_of_first == first.len() {
                        self.parts.pop_front();
                        self.sent_of_first = 0;
                    }
                }
                Err(Errno::INTR) => {}
                // A socket without room, or a kernel without memory for it: later.
                Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(()),
                Err(_) => return Err(PeerGone),
            }
        }
        Ok(())
    }

    /// Takes everything out, for somebody else to send.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.length);
        for (index, part) in std::mem::take(&mut self.parts).into_iter().enumerate() {
            all.extend_from_slice(&part[if index == 0 { self.sent_of_first } else { 0 }..]);
        }
        self.sent_of_first = 0;
        self.length = 0;
        all
    }
}
