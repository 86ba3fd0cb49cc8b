//! Terminals: programs on pseudo-terminals, whose other end connections of the node take turns to hold.
//!
//! What a program writes goes to the connection, as fast as that takes it; while there is none, into a backlog of limited
//! size. A terminal whose backlog or connection is full is not read, so its program waits, as on any slow terminal.

use crate::connection::{OUTBOX_LOW, Phase};
use crate::interpreter::failure;
use crate::poller::{Interest, Source};
use crate::process::{Ended, Program, signal, signal_group};
use crate::serve::{Child, Server};
use crate::shell;
use crate::timers::Timer;
use instavm_agent_api::{Control, Event, Failure, FailureKind, OpenPty, PtyState};
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Terminals of a VM at once.
const MOST: usize = 64;
/// What is kept of a program's output while nobody is attached.
const BACKLOG: usize = 256 * 1024;
/// What is read at once, and the longest piece that a frame carries.
const PIECE: usize = 32 * 1024;
/// Input that a program has not taken yet; above it, nothing more is read from the connection.
const INPUT: usize = 64 * 1024;
/// How long a terminal that lost its connection waits for another one, and one that has ended is remembered.
const LONELY: Duration = Duration::from_secs(60);
/// How long a program may go on after the hangup of its terminal was closed.
const GRACE: Duration = Duration::from_secs(2);

/// One terminal.
#[derive(Debug)]
struct Pty {
    id: String,
    /// The node's end; `None` once the program's end is closed and everything was read.
    master: Option<OwnedFd>,
    pid: i32,
    size: (u16, u16),
    created_micros: i64,
    exit_code: Option<i32>,
    backlog: VecDeque<u8>,
    input: VecDeque<u8>,
    attached: Option<u64>,
    /// Since when nobody is attached who was.
    lonely_since: Option<Instant>,
    interest: Interest,
}

/// All terminals, by a number that is never used twice.
#[derive(Debug, Default)]
pub(crate) struct Ptys {
    all: BTreeMap<u64, Pty>,
    /// The folder of the kernel's terminals, opened before anybody in the VM could put something else there.
    folder: Option<OwnedFd>,
}

impl Ptys {
    pub(crate) fn open() -> Ptys {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ptys {
            all: BTreeMap::new(),
            folder: open("/dev/pts", flags, Mode::empty()).ok(),
        }
    }

    fn key(&self, id: &str) -> Option<u64> {
        let found = self.all.iter().find(|(_, pty)| pty.id == id);
        found.map(|(key, _)| *key)
    }

    /// What the node is told of them.
    pub(crate) fn states(&self) -> Vec<PtyState> {
        let states = self.all.values().map(|pty| PtyState {
            id: pty.id.clone(),
            cols: pty.size.0,
            rows: pty.size.1,
            exit_code: pty.exit_code,
            attached: pty.attached.is_some(),
            created_micros: pty.created_micros,
        });
        states.collect()
    }

    /// Both ends of a new terminal.
    fn pair(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let folder = self.folder.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let master = openat(folder, "ptmx", flags, Mode::empty())?;
        unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        Ok((master, slave))
    }
}

impl Pty {
    fn resize(&mut self, cols: u16, rows: u16) {
        let Some(master) = &self.master else { return };
        let size = Winsize {
            ws_col: cols,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        if tcsetwinsize(master, size).is_ok() {
            self.size = (cols, rows);
        }
    }

    /// Gives the program as much of its input as the terminal takes.
    fn write_input(&mut self) {
        while let (Some(master), (first, _)) = (&self.master, self.input.as_slices()) {
            if first.is_empty() {
                return;
            }
            match rustix::io::write(master, first) {
                Ok(written) => drop(self.input.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.input.clear(),
            }
        }
    }
}

fn fails(kind: FailureKind, message: String) -> Event {
    Event::Failed(Failure { kind, message })
}

impl Server {
    /// Opens a terminal.
    pub(crate) fn open_pty(&mut self, connection: u64, open: OpenPty) {
        let event = if self.ptys.key(&open.id).is_some() {
            fails(
                FailureKind::Exists,
                format!("there is a terminal {} already", open.id),
            )
        } else if self.ptys.all.len() >= MOST {
            fails(
                FailureKind::Exhausted,
                format!("the VM has {MOST} terminals, the most; close some"),
            )
        } else {
            match self.start_pty(open) {
                Ok(()) => Event::Done,
                Err(error) => Event::Failed(failure("open a terminal", &error)),
            }
        };
        self.answer(connection, event);
    }

    fn start_pty(&mut self, open: OpenPty) -> io::Result<()> {
        let (master, slave) = self.ptys.pair()?;
        let (name, arguments) = open
            .program
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let descriptors = vec![slave.try_clone()?, slave.try_clone()?, slave];
        let terminal = BTreeMap::from([("TERM".to_owned(), "xterm-256color".to_owned())]);
        let environment = shell::environment(&[&terminal, &self.environment, &open.env]);
        let program = Program::new(name, &arguments, &self.workdir, descriptors)?
            .environment(environment.into_iter())
            .with_terminal();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut pty = Pty {
            id: open.id,
            master: Some(master),
            pid: 0,
            size: (0, 0),
            created_micros: now.map_or(0, |now| i64::try_from(now.as_micros()).unwrap_or(0)),
            exit_code: None,
            backlog: VecDeque::new(),
            input: VecDeque::new(),
            attached: None,
            lonely_since: None,
            interest: Interest::READ,
        };
        pty.resize(open.cols, open.rows);
        let key = self.new_key();
        if let Some(master) = &pty.master {
            self.poller.add(master, Source::Pty(key), Interest::READ)?;
        }
        pty.pid = program.spawn(&self.secret)?;
        self.children.insert(pty.pid, Child::Pty(key));
        self.ptys.all.insert(key, pty);
        Ok(())
    }

    /// Gives a terminal to a connection.
    pub(crate) fn attach_pty(&mut self, connection: u64, id: &str) {
        let Some(key) = self.ptys.key(id) else {
            let message = format!("no terminal with the id {id}");
            return self.answer(connection, fails(FailureKind::NotFound, message));
        };
        if let Some(before) = self
            .ptys
            .all
            .get_mut(&key)
            .and_then(|pty| pty.attached.take())
        {
            self.close(before);
        }
        let Some(pty) = self.ptys.all.get_mut(&key) else {
            return;
        };
        pty.attached = Some(connection);
        pty.lonely_since = None;
        let backlog = Vec::from(std::mem::take(&mut pty.backlog));
        let phase = Phase::Terminal {
            pty: key,
            full: false,
        };
        self.set_phase(connection, phase);
        for piece in backlog.chunks(PIECE) {
            self.send(connection, &Event::Stdout(piece.to_vec()));
        }
        self.watch_pty(key);
        self.tell_end(key);
    }

    /// Something arrived on, or can be written to, the node's end of a terminal.
    pub(crate) fn pty_ready(&mut self, key: u64, hung_up: bool) {
        let Some(pty) = self.ptys.all.get_mut(&key) else {
            return;
        };
        pty.write_input();
        // After a hangup there is little left, and the poller would tell of it until it is read.
        if pty.interest.read || hung_up || pty.exit_code.is_some() {
            self.read_pty(key);
        }
        self.watch_pty(key);
        self.tell_end(key);
    }

    fn read_pty(&mut self, key: u64) {
        let Some(pty) = self.ptys.all.get_mut(&key) else {
            return;
        };
        let Some(master) = &pty.master else { return };
        match rustix::io::read(master, &mut self.scratch[..PIECE]) {
            Ok(length) if length > 0 => {
                let piece = &self.scratch[..length];
                match pty.attached {
                    Some(connection) => {
                        let event = Event::Stdout(piece.to_vec());
                        self.send(connection, &event);
                    }
                    None => pty.backlog.extend(piece),
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The program's end is closed by all who had it.
            Ok(_) | Err(_) => {
                self.poller.remove(master);
                pty.master = None;
            }
        }
    }

    /// Waits for what can go on: output while somebody or the backlog takes it, room while there is input.
    pub(crate) fn watch_pty(&mut self, key: u64) {
        let Some(pty) = self.ptys.all.get_mut(&key) else {
            return;
        };
        let read = match pty.attached {
            None => pty.backlog.len() < BACKLOG,
            Some(connection) => self
                .connections
                .get(&connection)
                .is_some_and(|connection| connection.outbox.len() < OUTBOX_LOW),
        };
        let interest = Interest {
            read,
            write: !pty.input.is_empty(),
        };
        if let Some(master) = &pty.master
            && pty.interest != interest
        {
            pty.interest = interest;
            // What is in the set can be changed without memory.
            let _ = self.poller.change(master, Source::Pty(key), interest);
        }
        let full = pty.input.len() >= INPUT && pty.master.is_some();
        self.hold_input(key, full);
    }

    /// Stops or goes on reading what is typed.
    fn hold_input(&mut self, key: u64, full: bool) {
        let attached = self.ptys.all.get(&key).and_then(|pty| pty.attached);
        let Some(connection) = attached else { return };
        let phase = Phase::Terminal { pty: key, full };
        let changed = self
            .connections
            .get(&connection)
            .is_some_and(|connection| connection.phase != phase);
        if changed {
            self.set_phase(connection, phase);
            self.flush_once(connection);
            if !full {
                self.take_messages(connection);
            }
        }
    }

    /// What the connection of a terminal says.
    pub(crate) fn control_pty(&mut self, key: u64, connection: u64, control: &Control) {
        let Some(pty) = self.ptys.all.get_mut(&key) else {
            return self.close(connection);
        };
        match control {
            Control::Data(bytes) => {
                if pty.master.is_some() {
                    pty.input.extend(bytes);
                    pty.write_input();
                }
                self.watch_pty(key);
            }
            Control::Resize { cols, rows } => pty.resize(*cols, *rows),
            Control::Interrupt | Control::Kill | Control::End => self.close(connection),
        }
    }

    /// The program of a terminal has ended. What it wrote before is still there to be read.
    pub(crate) fn pty_ended(&mut self, key: u64, ended: &Ended) {
        if let Some(pty) = self.ptys.all.get_mut(&key) {
            pty.exit_code = Some(ended.code());
            if pty.attached.is_none() {
                pty.lonely_since = Some(Instant::now());
                self.timers.add(LONELY, Timer::Pty(key));
            }
            self.pty_ready(key, false);
        }
    }

    /// Tells a connection of the end, once it has had everything.
    fn tell_end(&mut self, key: u64) {
        let Some(pty) = self.ptys.all.get_mut(&key) else {
            return;
        };
        if let (Some(exit_code), None, Some(connection)) =
            (pty.exit_code, &pty.master, pty.attached)
        {
            pty.attached = None;
            pty.lonely_since = Some(Instant::now());
            self.timers.add(LONELY, Timer::Pty(key));
            self.answer(connection, Event::Exited { exit_code });
        }
    }

    /// A connection that had a terminal is gone.
    pub(crate) fn leave_pty(&mut self, key: u64, connection: u64) {
        if let Some(pty) = self.ptys.all.get_mut(&key)
            && pty.attached == Some(connection)
        {
            pty.attached = None;
            pty.lonely_since = Some(Instant::now());
            self.timers.add(LONELY, Timer::Pty(key));
            self.watch_pty(key);
        }
    }

    /// Hangs up a terminal that nobody came back to.
    pub(crate) fn end_lonely_pty(&mut self, key: u64) {
        let lonely = self.ptys.all.get(&key).and_then(|pty| pty.lonely_since);
        if lonely.is_some_and(|since| since.elapsed() >= LONELY) {
            self.remove_pty(key);
        }
    }

    /// Changes the size of a terminal.
    pub(crate) fn resize_pty(&mut self, connection: u64, id: &str, cols: u16, rows: u16) {
        let key = self.ptys.key(id);
        let event = match key.and_then(|key| self.ptys.all.get_mut(&key)) {
            Some(pty) => {
                pty.resize(cols, rows);
                Event::Done
            }
            None => fails(
                FailureKind::NotFound,
                format!("no terminal with the id {id}"),
            ),
        };
        self.answer(connection, event);
    }

    /// Hangs a terminal up and forgets it.
    pub(crate) fn close_pty(&mut self, connection: u64, id: &str) {
        if let Some(key) = self.ptys.key(id) {
            self.remove_pty(key);
        }
        self.answer(connection, Event::Done);
    }

    fn remove_pty(&mut self, key: u64) {
        let Some(pty) = self.ptys.all.remove(&key) else {
            return;
        };
        if let Some(attached) = pty.attached {
            self.close(attached);
        }
        if pty.exit_code.is_none() {
            let foreground = pty.master.as_ref().and_then(|end| tcgetpgrp(end).ok());
            if let Some(group) = foreground {
                signal_group(group.as_raw_nonzero().get(), libc::SIGHUP);
            }
            signal_group(pty.pid, libc::SIGHUP);
            self.timers.add(GRACE, Timer::EndPty(pty.pid));
        }
        if let Some(master) = &pty.master {
            self.poller.remove(master);
        }
    }

    /// Ends a program that went on after its terminal was closed.
    pub(crate) fn end_pty_program(&mut self, pid: i32) {
        // One that has ended is no child any more, and its number may be another's.
        if matches!(self.children.get(&pid), Some(Child::Pty(_))) {
            signal_group(pid, libc::SIGKILL);
            signal(pid, libc::SIGKILL);
        }
    }
}
