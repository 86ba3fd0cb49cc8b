//! The loop: connections, signals, timers.

use crate::connection::{Connection, OUTBOX_LOW, Phase};
use crate::execution::{Execution, Stream};
use crate::interpreter::Interpreter;
use crate::language::Checks;
use crate::poller::{Happening, Interest, Poller, Source};
use crate::process::{self, Secret};
use crate::procfs::ProcessTable;
use crate::pty::Ptys;
use crate::spool::Spools;
use crate::timers::{Timer, Timers};
use instavm_agent_api::{
    Control, Event, Failure, FailureKind, GENERATION, Hello, Request, TOKEN_BYTES, WORKDIR, Welcome,
};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A connection that has not sent its request after this time is cut, at the latest after twice the time.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long nothing is accepted after descriptors were exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Ended children that are taken before others get their turn.
const REAP_AT_ONCE: usize = 256;
/// What is read at once.
const SCRATCH: usize = 64 * 1024;
/// Bytes of a followed spool that are read at once.
const SPOOL_CHUNK: usize = 256 * 1024;

/// What the agent needs to know.
pub struct ServeConfig {
    /// The secret that the node shows.
    pub token: [u8; TOKEN_BYTES],
    /// Where executions and relative paths start.
    pub workdir: PathBuf,
    /// Starts the Python interpreter at once, where there is one.
    pub warm: bool,
}

impl ServeConfig {
    /// The configuration of an agent inside a VM.
    pub fn new(token: [u8; TOKEN_BYTES]) -> ServeConfig {
        ServeConfig {
            token,
            workdir: PathBuf::from(WORKDIR),
            warm: false,
        }
    }
}

impl std::fmt::Debug for ServeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeConfig")
            .field("workdir", &self.workdir)
            .finish_non_exhaustive()
    }
}

/// A child that the agent started and waits for; every other one is only reaped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Child {
    /// The shell of an execution.
    Shell(u64),
    /// An interpreter, by its number.
    Worker(u64),
    /// What looks at the language of an execution.
    Check(u64),
    /// What answers a connection.
    Transfer(u64),
    /// The program of a terminal.
    Pty(u64),
}

/// Everything that the loop knows.
pub(crate) struct Server {
    pub(crate) secret: Secret,
    pub(crate) workdir: PathBuf,
    pub(crate) poller: Poller,
    listener: OwnedFd,
    signals: SignalFd,
    pub(crate) connections: HashMap<u64, Connection>,
    pub(crate) executions: HashMap<u64, Execution>,
    pub(crate) streams: HashMap<u64, Stream>,
    pub(crate) children: HashMap<i32, Child>,
    pub(crate) interpreter: Interpreter,
    pub(crate) checks: Checks,
    pub(crate) spools: Spools,
    pub(crate) ptys: Ptys,
    pub(crate) timers: Timers,
    pub(crate) processes: ProcessTable,
    /// The session's environment, and a number that changes with what the interpreter must know of the identity.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) identity_state: u64,
    /// `/dev/null` and `/dev/urandom`, opened before anybody in the VM could replace them.
    pub(crate) null: OwnedFd,
    pub(crate) random: Option<OwnedFd>,
    pub(crate) scratch: Vec<u8>,
    last_key: u64,
    is_init: bool,
    watching_handshakes: bool,
    /// A connection had much memory that may not have gone back to the kernel.
    memory_used: bool,
    reap_again: bool,
    stop: bool,
}

/// Serves the node on a listening Unix socket. As PID 1 of a VM it does not return; elsewhere SIGTERM and SIGINT end it.
///
/// The caller must have no other thread, and must be where it is to stay: root, working directory and namespaces.
pub fn serve(listener: OwnedFd, config: ServeConfig) -> ExitCode {
    let warm = config.warm;
    let outcome = Server::new(listener, config).and_then(|mut server| {
        if warm {
            server.start_ahead();
        }
        server.run()
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "instavm-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Server {
    fn new(listener: OwnedFd, config: ServeConfig) -> io::Result<Server> {
        // SAFETY: sets parameters of the allocator before anything large is allocated: freed memory goes back to the kernel.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 256 * 1024);
        }
        let mut mask = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGPIPE,
        ] {
            mask.add(signal);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        let poller = Poller::new()?;
        poller.add(&listener, Source::Listener, Interest::READ)?;
        poller.add(&signals, Source::Signals, Interest::READ)?;
        let device = |path, flags| open(path, flags | OFlags::CLOEXEC, Mode::empty());
        Ok(Server {
            secret: Secret::new(config.token),
            workdir: config.workdir,
            poller,
            listener,
            signals,
            connections: HashMap::new(),
            executions: HashMap::new(),
            streams: HashMap::new(),
            children: HashMap::new(),
            interpreter: Interpreter::default(),
            checks: Checks::default(),
            spools: Spools::open(),
            ptys: Ptys::open(),
            timers: Timers::default(),
            processes: ProcessTable::open(),
            environment: BTreeMap::new(),
            identity_state: 0,
            null: device("/dev/null", OFlags::RDONLY)?,
            random: device("/dev/urandom", OFlags::WRONLY).ok(),
            scratch: vec![0; SCRATCH],
            last_key: 0,
            is_init: std::process::id() == 1,
            watching_handshakes: false,
            memory_used: false,
            reap_again: false,
            stop: false,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        while !self.stop {
            let timeout = if self.reap_again {
                Some(Duration::ZERO)
            } else {
                self.timers.next()
            };
            for happening in self.poller.wait(timeout)? {
                self.handle(happening);
            }
            if self.reap_again {
                self.reap();
            }
            while let Some(timer) = self.timers.pop_due() {
                self.timer_due(timer);
            }
            if self.memory_used && self.connections.is_empty() {
                self.memory_used = false;
                // SAFETY: gives free memory back to the kernel; nothing of it is in use.
                unsafe { libc::malloc_trim(0) };
            }
        }
        Ok(())
    }

    fn handle(&mut self, happening: Happening) {
        match happening.source {
            Source::Listener => self.accept(),
            Source::Signals => self.take_signals(),
            Source::Connection(key) => self.connection_ready(key, happening.hung_up),
            Source::Stream(key) => self.stream_ready(key),
            Source::Interpreter(number) => self.worker_ready(number),
            Source::Pty(key) => self.pty_ready(key, happening.hung_up),
        }
    }

    /// A number that was never used.
    pub(crate) fn new_key(&mut self) -> u64 {
        self.last_key += 1;
        self.last_key
    }

    /// Standard input for a child.
    pub(crate) fn null(&self) -> io::Result<OwnedFd> {
        self.null.try_clone()
    }

    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = info.ssi_signo.cast_signed();
            let asks_to_end = number == libc::SIGTERM || number == libc::SIGINT;
            // Processes of the VM must not end it: PID 1 takes no orders by signal.
            self.stop |= asks_to_end && !self.is_init;
        }
        self.reap();
    }

    fn reap(&mut self) {
        self.reap_again = true;
        for _ in 0..REAP_AT_ONCE {
            let Some(ended) = process::reap() else {
                self.reap_again = false;
                return;
            };
            match self.children.remove(&ended.pid) {
                Some(Child::Shell(key)) => self.shell_ended(key, &ended),
                Some(Child::Worker(number)) => self.worker_ended(number, &ended),
                Some(Child::Check(key)) => self.check_ended(key, &ended),
                Some(Child::Transfer(connection)) => self.close(connection),
                Some(Child::Pty(key)) => self.pty_ended(key, &ended),
                None => {}
            }
        }
    }

    fn timer_due(&mut self, timer: Timer) {
        match timer {
            Timer::Handshakes => self.cut_silent_connections(),
            Timer::Interrupt(key) => self.interrupt_python(key),
            Timer::Kill(key) => self.kill(key),
            Timer::Start(number) => self.watch_start(number),
            Timer::Check(key) => self.end_check(key),
            Timer::EndTransfer(key) => self.end_transfer(key),
            Timer::Pty(key) => self.end_lonely_pty(key),
            Timer::EndPty(pid) => self.end_pty_program(pid),
            Timer::Accept => {
                // What is in the set can be changed without memory.
                let _ = self
                    .poller
                    .change(&self.listener, Source::Listener, Interest::READ);
            }
        }
    }

    fn accept(&mut self) {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.listener, flags) {
                Ok(socket) => self.add_connection(socket),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // Descriptors or memory are exhausted: try again when some may have come back.
                    let _ = self
                        .poller
                        .change(&self.listener, Source::Listener, Interest::NONE);
                    return self.timers.add(ACCEPT_PAUSE, Timer::Accept);
                }
            }
        }
    }

    fn add_connection(&mut self, socket: OwnedFd) {
        let key = self.new_key();
        if self
            .poller
            .add(&socket, Source::Connection(key), Interest::READ)
            .is_ok()
        {
            self.connections.insert(key, Connection::new(socket));
            if !self.watching_handshakes {
                self.watching_handshakes = true;
                self.timers.add(HANDSHAKE, Timer::Handshakes);
            }
        }
    }

    /// Cuts the connections that have had their time and not sent a request.
    fn cut_silent_connections(&mut self) {
        let silent =
            |connection: &Connection| matches!(connection.phase, Phase::Stranger | Phase::Asking);
        let late = |connection: &Connection| connection.since.elapsed() >= HANDSHAKE;
        let late = self
            .connections
            .iter()
            .filter(|(_, c)| silent(c) && late(c));
        for key in late.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.close(key);
        }
        self.watching_handshakes = self.connections.values().any(silent);
        if self.watching_handshakes {
            self.timers.add(HANDSHAKE, Timer::Handshakes);
        }
    }

    fn connection_ready(&mut self, key: u64, hung_up: bool) {
        let Some(connection) = self.connections.get(&key) else {
            return;
        };
        if let Phase::Transfer { .. } = connection.phase {
            if hung_up {
                self.transfer_hung_up(key);
            }
            return;
        }
        self.flush(key);
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if connection.phase == Phase::Closing {
            if hung_up {
                self.close(key);
            }
            return;
        }
        match rustix::io::read(&connection.socket, &mut self.scratch[..]) {
            Ok(0) => self.close(key),
            Ok(length) => {
                connection.receive(&self.scratch[..length]);
                self.take_messages(key);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close(key),
        }
    }

    /// Works through what a connection has received.
    pub(crate) fn take_messages(&mut self, key: u64) {
        while let Some(connection) = self.connections.get_mut(&key) {
            let taken = match &connection.phase {
                Phase::Stranger => connection.next::<Hello>().map(|m| m.map(Message::Hello)),
                Phase::Asking => connection
                    .next::<Request>()
                    .map(|m| m.map(Message::Request)),
                Phase::Terminal { full: true, .. } => return,
                Phase::Executing(_)
                | Phase::Following { .. }
                | Phase::Warming
                | Phase::Terminal { .. } => connection
                    .next::<Control>()
                    .map(|m| m.map(Message::Control)),
                Phase::Transfer { .. } | Phase::Closing => return,
            };
            match taken {
                Ok(Some(Message::Hello(hello))) => self.greet(key, &hello),
                Ok(Some(Message::Request(request))) => self.begin(key, request),
                Ok(Some(Message::Control(control))) => self.control(key, &control),
                Ok(None) => return,
                Err(_) => return self.close(key),
            }
        }
    }

    fn greet(&mut self, key: u64, hello: &Hello) {
        if !self.secret.matches(&hello.token) {
            return self.close(key);
        }
        self.send(
            key,
            &Welcome {
                generation: GENERATION,
            },
        );
        self.set_phase(key, Phase::Asking);
    }

    fn begin(&mut self, key: u64, request: Request) {
        match request {
            Request::Ping => self.answer(key, Event::Done),
            Request::Rejoin(rejoin) => self.rejoin(key, rejoin),
            Request::WarmInterpreter => {
                self.set_phase(key, Phase::Warming);
                self.warm(key);
            }
            Request::Execute(execute) => self.begin_execution(key, execute),
            Request::Attach { id } => self.follow(key, id),
            Request::Forget { id } => {
                self.spools.forget(&id);
                self.answer(key, Event::Done);
            }
            Request::ReadFile { path } => self.read_file(key, path),
            Request::WriteFile { path, mode } => self.write_file(key, path, mode),
            Request::OpenPty(open) => self.open_pty(key, open),
            Request::AttachPty { id } => self.attach_pty(key, &id),
            Request::ResizePty { id, cols, rows } => self.resize_pty(key, &id, cols, rows),
            Request::ClosePty { id } => self.close_pty(key, &id),
            Request::Ptys => {
                let all = Event::Ptys(self.ptys.states());
                self.answer(key, all);
            }
        }
    }

    fn control(&mut self, key: u64, control: &Control) {
        if let Some(Phase::Terminal { pty, .. }) = self.connections.get(&key).map(|c| &c.phase) {
            return self.control_pty(*pty, key, control);
        }
        let execution = match self
            .connections
            .get(&key)
            .map(|connection| &connection.phase)
        {
            Some(Phase::Executing(execution)) => Some(*execution),
            Some(Phase::Following { id, .. }) => {
                self.spools.get(id).and_then(|spool| spool.execution)
            }
            _ => None,
        };
        match (control, execution) {
            (Control::Interrupt, Some(execution)) => self.interrupt(execution),
            (Control::Kill, Some(execution)) => self.kill(execution),
            (Control::Interrupt | Control::Kill, None) => {}
            (Control::Data(_) | Control::End | Control::Resize { .. }, _) => self.close(key),
        }
    }

    fn follow(&mut self, key: u64, id: String) {
        let Some(spool) = self.spools.get_mut(&id) else {
            let message = format!("no execution with the id {id}");
            return self.answer(
                key,
                Event::Failed(Failure {
                    kind: FailureKind::NotFound,
                    message,
                }),
            );
        };
        spool.followers.push(key);
        self.set_phase(key, Phase::Following { id, offset: 0 });
        self.feed(key);
    }

    /// There is more of a detached execution.
    pub(crate) fn feed_followers(&mut self, id: &str) {
        let followers = self.spools.get(id).map(|spool| spool.followers.clone());
        for key in followers.unwrap_or_default() {
            self.feed(key);
        }
    }

    /// Gives a follower what it has not had, as far as it takes it.
    fn feed(&mut self, key: u64) {
        loop {
            let Some(connection) = self.connections.get_mut(&key) else {
                return;
            };
            let Phase::Following { id, offset } = &mut connection.phase else {
                return;
            };
            let Some(spool) = self.spools.get_mut(id) else {
                return self.close(key);
            };
            if connection.outbox.len() >= OUTBOX_LOW {
                self.flush_once(key);
                if self
                    .connections
                    .get(&key)
                    .is_some_and(|c| c.outbox.len() >= OUTBOX_LOW)
                {
                    return;
                }
                continue;
            }
            let Ok(bytes) = spool.read(*offset, SPOOL_CHUNK) else {
                return self.close(key);
            };
            if bytes.is_empty() {
                let Some(end) = spool.end.clone() else {
                    return self.flush_once(key);
                };
                spool.followers.retain(|follower| *follower != key);
                connection.outbox.push(spool.note.clone());
                return self.answer(key, end.into());
            }
            *offset += bytes.len() as u64;
            connection.outbox.push(bytes);
        }
    }

    pub(crate) fn set_phase(&mut self, key: u64, phase: Phase) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.phase = phase;
        }
    }

    /// Sends a message.
    pub(crate) fn send<T: serde::Serialize>(&mut self, key: u64, message: &T) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.outbox.push_message(message);
            self.flush_once(key);
        }
    }

    /// Sends the last event of an operation.
    pub(crate) fn answer(&mut self, key: u64, event: Event) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.outbox.push_message(&event);
            connection.phase = Phase::Closing;
            self.flush_once(key);
        }
    }

    /// Sends what a connection takes, and lets what waited for its room go on.
    fn flush(&mut self, key: u64) {
        let full_before = self
            .connections
            .get(&key)
            .is_some_and(|c| c.outbox.len() >= OUTBOX_LOW);
        self.flush_once(key);
        let Some(connection) = self.connections.get(&key) else {
            return;
        };
        let room = connection.outbox.len() < OUTBOX_LOW;
        match connection.phase {
            Phase::Executing(execution) if full_before && room => self.resume(execution),
            Phase::Following { .. } if room => self.feed(key),
            Phase::Terminal { pty, .. } if full_before && room => self.watch_pty(pty),
            _ => {}
        }
    }

    /// Sends what a connection takes; closes one that is done.
    pub(crate) fn flush_once(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let gone = connection.outbox.flush(connection.socket.as_fd()).is_err();
        if gone || (connection.phase == Phase::Closing && connection.outbox.is_empty()) {
            return self.close(key);
        }
        let wanted = connection.wanted();
        if connection.interest != wanted {
            connection.interest = wanted;
            // What is in the set can be changed without memory.
            let _ = self
                .poller
                .change(&connection.socket, Source::Connection(key), wanted);
        }
    }

    /// Ends a connection and what lives only as long as it.
    pub(crate) fn close(&mut self, key: u64) {
        let Some(connection) = self.connections.remove(&key) else {
            return;
        };
        self.poller.remove(&connection.socket);
        self.memory_used |= connection.used_much();
        match connection.phase {
            Phase::Executing(execution) => self.caller_gone(execution),
            Phase::Following { id, .. } => {
                if let Some(spool) = self.spools.get_mut(&id) {
                    spool.followers.retain(|follower| *follower != key);
                }
            }
            Phase::Transfer { pid } => {
                if self.children.remove(&pid).is_some() {
                    process::signal(pid, libc::SIGKILL);
                }
            }
            Phase::Terminal { pty, .. } => self.leave_pty(pty, key),
            Phase::Stranger | Phase::Asking | Phase::Warming | Phase::Closing => {}
        }
    }
}

/// What a connection may have received.
enum Message {
    Hello(Hello),
    Request(Request),
    Control(Control),
}
