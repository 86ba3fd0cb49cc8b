//! What the loop waits for.

use rustix::event::epoll;
use rustix::io::Result;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// A thing that the loop waits for. Numbers are never used twice, so an event for something that is gone finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Somebody connects.
    Listener,
    /// Signals have arrived.
    Signals,
    /// A connection of the node.
    Connection(u64),
    /// A pipe with a child's output.
    Stream(u64),
    /// The interpreter's control socket, by the interpreter's number.
    Interpreter(u64),
    /// The node's end of a terminal.
    Pty(u64),
}

const KIND_SHIFT: u32 = 60;

impl Source {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Source::Listener => (0, 0),
            Source::Signals => (1, 0),
            Source::Connection(number) => (2, number),
            Source::Stream(number) => (3, number),
            Source::Interpreter(number) => (4, number),
            Source::Pty(number) => (5, number),
        };
        (kind << KIND_SHIFT) | number
    }

    fn decode(data: u64) -> Source {
        let number = data & ((1 << KIND_SHIFT) - 1);
        match data >> KIND_SHIFT {
            0 => Source::Listener,
            1 => Source::Signals,
            2 => Source::Connection(number),
            3 => Source::Stream(number),
            4 => Source::Interpreter(number),
            _ => Source::Pty(number),
        }
    }
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Interest {
    pub(crate) const NONE: Interest = Interest {
        read: false,
        write: false,
    };
    pub(crate) const READ: Interest = Interest {
        read: true,
        write: false,
    };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, self.read);
        flags.set(epoll::EventFlags::OUT, self.write);
        flags
    }
}

/// Something happened. A broken or closed peer counts as readable and writable and as hung up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Happening {
    pub(crate) source: Source,
    pub(crate) hung_up: bool,
}

/// An `epoll` set.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    pub(crate) fn new() -> Result<Poller> {
        Ok(Poller {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(64),
        })
    }

    pub(crate) fn add(&self, fd: impl AsFd, source: Source, interest: Interest) -> Result<()> {
        let data = epoll::EventData::new_u64(source.encode());
        epoll::add(&self.epoll, fd, data, interest.flags())
    }

    pub(crate) fn change(&self, fd: impl AsFd, source: Source, interest: Interest) -> Result<()> {
        let data = epoll::EventData::new_u64(source.encode());
        epoll::modify(&self.epoll, fd, data, interest.flags())
    }

    /// Must come before the descriptor is closed: a forked child may still hold the same description.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // It fails only for what is not in the set, which is what is wanted.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits and gives what happened; nothing after the timeout or a signal.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<Happening>> {
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        self.events.clear();
        let buffer = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let happenings = self.events.iter().map(|event| {
            // The event is packed, so its fields are copied out.
            let (data, flags) = (event.data, event.flags);
            Happening {
                source: Source::decode(data.u64()),
                hung_up: flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR),
            }
        });
        Ok(happenings.collect())
    }
}
