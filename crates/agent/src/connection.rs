//! One connection of the node: one operation.

use crate::output::Outbox;
use crate::poller::Interest;
use instavm_agent_api::frame::{self, FrameError};
use serde::de::DeserializeOwned;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// While so many bytes wait to be sent, nothing more is read from what produces them.
pub(crate) const OUTBOX_LIMIT: usize = 1024 * 1024;
/// Reading goes on below this.
pub(crate) const OUTBOX_LOW: usize = OUTBOX_LIMIT / 2;
/// The longest frame before the peer has shown the token, and the longest control frame of an execution.
const SHORT_FRAME: usize = 256;

/// The longest frame with input for a terminal: 64 KiB and what is around them.
const INPUT_FRAME: usize = 64 * 1024 + 16;

/// Where a connection is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The peer has not shown the token.
    Stranger,
    /// The request is still to come.
    Asking,
    /// It waits for the end of an execution that ends with it.
    Executing(u64),
    /// It follows a detached execution, and has had so many bytes of it.
    Following { id: String, offset: u64 },
    /// It waits for the interpreter.
    Warming,
    /// It has a terminal; nothing is read from it while that takes no input.
    Terminal { pty: u64, full: bool },
    /// A child answers.
    Transfer { pid: i32 },
    /// What waits is still to be sent.
    Closing,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    inbox: Vec<u8>,
    received: usize,
    pub(crate) outbox: Outbox,
    pub(crate) phase: Phase,
    pub(crate) since: Instant,
    /// What the poller waits for now.
    pub(crate) interest: Interest,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Connection {
        Connection {
            socket,
            inbox: Vec::new(),
            received: 0,
            outbox: Outbox::default(),
            phase: Phase::Stranger,
            since: Instant::now(),
            interest: Interest::READ,
        }
    }

    /// Adds bytes that arrived.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.received += bytes.len();
        self.inbox.extend_from_slice(bytes);
    }

    /// Takes the next whole message out of what arrived.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(prefix) = self.inbox.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = frame::payload_length(*prefix)?;
        let longest = match self.phase {
            Phase::Asking => frame::MAX_PAYLOAD,
            Phase::Terminal { .. } => INPUT_FRAME,
            _ => SHORT_FRAME,
        };
        if length > longest {
            return Err(FrameError::TooLong(length));
        }
        let Some(payload) = self.inbox.get(4..4 + length) else {
            return Ok(None);
        };
        let message = frame::decode(payload)?;
        if self.inbox.len() == 4 + length {
            // Gives the memory of a long text back.
            self.inbox = Vec::new();
        } else {
            self.inbox.drain(..4 + length);
        }
        Ok(Some(message))
    }

    /// Takes everything that arrived and was not used, for somebody else to go on with.
    pub(crate) fn take_inbox(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.inbox)
    }

    /// Has so much gone through it that memory may be left over?
    pub(crate) fn used_much(&self) -> bool {
        self.received > OUTBOX_LIMIT || self.outbox.most() > OUTBOX_LOW / 2
    }

    /// May producers go on?
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX_LIMIT
    }

    /// What the poller should wait for.
    pub(crate) fn wanted(&self) -> Interest {
        match self.phase {
            Phase::Transfer { .. } => Interest::NONE,
            Phase::Terminal { full: true, .. } => Interest {
                read: false,
                write: !self.outbox.is_empty(),
            },
            Phase::Closing => Interest {
                read: false,
                write: true,
            },
            _ => Interest {
                read: true,
                write: !self.outbox.is_empty(),
            },
        }
    }
}
