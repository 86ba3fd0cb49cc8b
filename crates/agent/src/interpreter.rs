//! The session's interpreter: its queue, its life and its replacement.
//!
//! What background threads and processes write between executions is kept, as far as a [`Backlog`] goes, and comes at
//! the beginning of the next execution; their pipe never blocks.

use crate::backlog::Backlog;
use crate::execution::{Owner, Stage};
use crate::poller::{Interest, Source};
use crate::process::{Ended, signal};
use crate::serve::{Child, Server};
use crate::shell;
use crate::spool::End;
use crate::timers::Timer;
use crate::worker::{self, Answer, Line, Worker};
use instavm_agent_api::{Event, Failure, FailureKind, Language};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// How often an interpreter that starts is looked at.
const LOOK_AT_START: Duration = Duration::from_millis(500);
/// An interpreter that is not ready after this time may be short of memory.
const LATE_START: Duration = Duration::from_secs(2);
/// It is when it has waited for so many pages: several times what its whole program has.
const THRASHING: u64 = 500;

/// The exit status of a program that is not there.
const NO_PROGRAM: i32 = 127;
/// What is told of what an interpreter that did not start has printed.
const LAST_WORDS: usize = 16 * 1024;

/// The session's interpreter.
#[derive(Debug, Default)]
pub(crate) struct Interpreter {
    pub(crate) worker: Option<Worker>,
    /// Executions that wait for it.
    pub(crate) queue: VecDeque<u64>,
    /// The execution that has it.
    pub(crate) current: Option<u64>,
    /// The number of that execution, in the words of the worker.
    pub(crate) sequence: u64,
    /// Connections that wait until it is ready.
    waiters: Vec<u64>,
    /// Why variables were lost while nothing ran, until somebody is told.
    lost: Option<String>,
    kept: [Backlog; 2],
}

impl Server {
    /// Answers when the interpreter is ready.
    pub(crate) fn warm(&mut self, connection: u64) {
        self.interpreter.waiters.push(connection);
        self.run_queue();
    }

    /// Starts the interpreter before anybody asks. Whoever asks later gets the reason when it does not start.
    pub(crate) fn start_ahead(&mut self) {
        let _ = self.start_worker();
    }

    /// Could an execution that comes now start at once?
    pub(crate) fn interpreter_is_idle(&self) -> bool {
        let Interpreter {
            worker,
            queue,
            current,
            ..
        } = &self.interpreter;
        worker.as_ref().is_some_and(|worker| worker.ready) && queue.is_empty() && current.is_none()
    }

    /// Gives the interpreter its next execution, starting it where needed.
    pub(crate) fn run_queue(&mut self) {
        let wanted = !self.interpreter.queue.is_empty() || !self.interpreter.waiters.is_empty();
        if self.interpreter.current.is_some() || !wanted {
            return;
        }
        match &self.interpreter.worker {
            None => {
                if let Err(error) = self.start_worker() {
                    self.fail_queue(&failure("start the Python interpreter", &error));
                }
            }
            Some(worker) if worker.ready => {
                for connection in std::mem::take(&mut self.interpreter.waiters) {
                    self.answer(connection, Event::Done);
                }
                if let Some(key) = self.interpreter.queue.pop_front() {
                    self.start_python(key);
                }
            }
            Some(_) => {}
        }
    }

    fn start_worker(&mut self) -> io::Result<()> {
        let environment = shell::environment(&[&self.environment]);
        let null = self.null()?;
        let workdir = &self.workdir;
        let (started, pipes) = worker::start(workdir, &environment, null, &self.secret)?;
        let number = self.new_key();
        let pid = started.pid;
        self.children.insert(pid, Child::Worker(number));
        let mut streams = [0; 2];
        for (which, pipe) in pipes.into_iter().enumerate() {
            streams[which] = self
                .add_stream(pipe, which, Owner::Interpreter)
                .unwrap_or(0);
        }
        let source = Source::Interpreter(number);
        if let Err(error) = self.poller.add(&started.control, source, Interest::READ) {
            signal(pid, libc::SIGKILL);
            return Err(error.into());
        }
        self.interpreter.worker = Some(Worker::new(number, started, streams));
        self.timers.add(LOOK_AT_START, Timer::Start(number));
        Ok(())
    }

    /// Gives an interpreter up that cannot start because the VM has no memory for its program: the kernel reads the same
    /// pages again and again, which may go on for minutes.
    pub(crate) fn watch_start(&mut self, number: u64) {
        let worker = self.interpreter.worker.as_ref();
        let Some(worker) = worker.filter(|worker| worker.number == number && !worker.ready) else {
            return;
        };
        let late = worker.started.elapsed() >= LATE_START;
        if late && self.processes.major_faults(worker.pid) >= THRASHING {
            return signal(worker.pid, libc::SIGKILL);
        }
        self.timers.add(LOOK_AT_START, Timer::Start(number));
    }

    fn start_python(&mut self, key: u64) {
        let (Some(execution), Some(worker)) = (
            self.executions.get_mut(&key),
            self.interpreter.worker.as_mut(),
        ) else {
            return;
        };
        if worker.identity != self.identity_state {
            worker.set_identity(self.identity_state, &self.environment, &self.workdir);
        }
        self.interpreter.sequence += 1;
        let detect = execution.language.is_none();
        worker.execute(self.interpreter.sequence, detect, &execution.code);
        worker.executions += 1;
        self.interpreter.current = Some(key);
        self.mark_started(key);
        if !detect {
            self.attach(key);
        }
        self.flush_worker();
    }

    /// Connects an execution that is Python for certain with the interpreter's output, and gives it what waits of that.
    pub(crate) fn attach(&mut self, key: u64) {
        let Some(execution) = self.executions.get_mut(&key) else {
            return;
        };
        if std::mem::replace(&mut execution.attached, true) {
            return;
        }
        if let Some(worker) = &self.interpreter.worker {
            execution.streams = worker.streams.map(Some);
            for stream in worker.streams {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.owner = Owner::Execution(key);
                }
            }
        }
        let mut notes = String::new();
        for (mine, kept) in execution.backlog.iter_mut().zip(&mut self.interpreter.kept) {
            notes.extend(kept.note());
            if mine.is_empty() {
                *mine = std::mem::take(kept);
            }
        }
        if !notes.is_empty() {
            self.deliver(key, 1, notes.into_bytes());
        }
        self.feed_backlog(key);
    }

    fn flush_worker(&mut self) {
        let Some(worker) = &mut self.interpreter.worker else {
            return;
        };
        // A worker that is gone is noticed when it is reaped.
        let open = worker.flush().is_ok();
        let write = open && !worker.outbox.is_empty();
        let source = Source::Interpreter(worker.number);
        let interest = Interest { read: true, write };
        // Changing what is already waited for needs no memory; after the socket's end it is waited for no more.
        let _ = self.poller.change(&worker.control, source, interest);
    }

    /// The interpreter has said something, or can be told more.
    pub(crate) fn worker_ready(&mut self, number: u64) {
        let Some(worker) = self
            .interpreter
            .worker
            .as_mut()
            .filter(|w| w.number == number)
        else {
            return;
        };
        let (answers, line) = worker.answers();
        if line == Line::Closed {
            // It ends by itself, or has lost its socket to the code and ends with the execution.
            self.poller.remove(&worker.control);
        } else if !worker.outbox.is_empty() {
            self.flush_worker();
        }
        for answer in answers {
            self.take_answer(answer);
        }
        if line == Line::Nonsense {
            self.replace_worker();
        }
    }

    fn take_answer(&mut self, answer: Answer) {
        if answer == Answer::Ready {
            if let Some(worker) = &mut self.interpreter.worker {
                worker.ready = true;
            }
            return self.run_queue();
        }
        let current = self.interpreter.current.filter(|key| {
            self.executions
                .get(key)
                .is_some_and(|e| matches!(e.stage, Stage::Python { .. }))
        });
        let expected = self.interpreter.sequence;
        match (answer, current) {
            (Answer::Begun { sequence }, Some(key)) if sequence == expected => {
                self.python_begins(key)
            }
            (
                Answer::Finished {
                    sequence,
                    exit_code,
                    cpu_micros,
                },
                Some(key),
            ) if sequence == expected => {
                if let Some(worker) = &mut self.interpreter.worker {
                    worker.cpu_micros += cpu_micros;
                }
                let lost = self.interpreter.lost.take();
                self.attach(key);
                self.execution_ended(key, Language::Python, exit_code, cpu_micros, lost);
            }
            (Answer::Python { sequence }, Some(key)) if sequence == expected => self.attach(key),
            (Answer::Shell { sequence }, Some(key)) if sequence == expected => {
                self.hand_to_shell(key)
            }
            _ => self.replace_worker(),
        }
    }

    fn python_begins(&mut self, key: u64) {
        if let Some(execution) = self.executions.get_mut(&key) {
            execution.stage = Stage::Python { begun: true };
            if execution.language.is_some() {
                execution.code = String::new();
            }
        }
    }

    /// Takes back an execution that an interpreter has died with before it began; the next one gets it.
    fn take_back(&mut self, key: u64) -> bool {
        let Some(execution) = self.executions.get_mut(&key) else {
            return false;
        };
        if execution.interrupted || !matches!(execution.stage, Stage::Python { begun: false }) {
            return false;
        }
        execution.stage = Stage::Queued;
        execution.attached = false;
        let streams = std::mem::take(&mut execution.streams);
        for stream in streams.into_iter().flatten() {
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.owner = Owner::Nobody;
            }
            self.set_reading(stream, true);
        }
        self.interpreter.current = None;
        self.interpreter.queue.push_front(key);
        true
    }

    /// A text whose language was open is for a shell: it leaves the interpreter's queue.
    fn hand_to_shell(&mut self, key: u64) {
        self.interpreter.current = None;
        let interrupted = self.executions.get(&key).is_some_and(|e| e.interrupted);
        match self.start_shell(key) {
            Ok(()) if interrupted => self.interrupt(key),
            Ok(()) => {}
            Err(failure) => self.finish(key, End::Failed(failure)),
        }
        self.run_queue();
    }

    /// Ends an interpreter whose control socket carries what it did not say.
    fn replace_worker(&mut self) {
        if let Some(worker) = &mut self.interpreter.worker {
            worker.ended_because = Some("the code wrote to the interpreter's control socket");
            signal(worker.pid, libc::SIGKILL);
            self.poller.remove(&worker.control);
        }
    }

    /// The interpreter's process has ended.
    pub(crate) fn worker_ended(&mut self, number: u64, ended: &Ended) {
        if self
            .interpreter
            .worker
            .as_ref()
            .is_none_or(|worker| worker.number != number)
        {
            return;
        }
        // Its last answer may still be in the socket.
        self.worker_ready(number);
        let Some(worker) = self.interpreter.worker.take() else {
            return;
        };
        self.poller.remove(&worker.control);
        for key in worker.streams {
            self.abandon_stream(key);
        }
        let reason = worker::reason(ended, worker.ended_because);
        if !worker.ready {
            return self.start_failed(ended);
        }
        let current = self.interpreter.current.filter(|key| {
            self.executions
                .get(key)
                .is_some_and(|e| matches!(e.stage, Stage::Python { .. }))
        });
        let taken_back = current.is_some_and(|key| self.take_back(key));
        if let Some(key) = current.filter(|_| !taken_back) {
            self.attach(key);
            let cpu = ended.cpu_micros.saturating_sub(worker.cpu_micros);
            self.execution_ended(key, Language::Python, ended.code(), cpu, Some(reason));
        } else if worker.executions > u64::from(taken_back) {
            self.interpreter.lost = Some(reason);
        }
        self.run_queue();
    }

    /// What waits in a dead interpreter's pipe is kept; what background processes write later is not.
    fn abandon_stream(&mut self, key: u64) {
        let waiting = self
            .streams
            .get(&key)
            .filter(|stream| stream.owner == Owner::Interpreter);
        let waiting = waiting.and_then(|stream| rustix::io::ioctl_fionread(&stream.pipe).ok());
        let mut left = waiting.unwrap_or(0);
        while left > 0 {
            let read = self.read_unowned(key);
            left = if read == 0 {
                0
            } else {
                left.saturating_sub(read as u64)
            };
        }
        if let Some(stream) = self.streams.get_mut(&key)
            && stream.owner == Owner::Interpreter
        {
            stream.owner = Owner::Nobody;
        }
    }

    /// Reads once from a pipe that belongs to no execution; gives how much.
    pub(crate) fn read_unowned(&mut self, key: u64) -> usize {
        let Some(stream) = self.streams.get(&key) else {
            return 0;
        };
        match rustix::io::read(&stream.pipe, &mut self.scratch[..]) {
            Ok(0) => self.drop_stream(key),
            Ok(length) => {
                if stream.owner == Owner::Interpreter {
                    let kept = &mut self.interpreter.kept[stream.which];
                    kept.push(&self.scratch[..length], || self.spools.nameless_file());
                }
                return length;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.drop_stream(key),
        }
        0
    }

    /// The interpreter has ended before it was ready. Its own last words tell why, unless it was killed.
    fn start_failed(&mut self, ended: &Ended) {
        if ended.signal().is_some() {
            return self.fail_queue(&start_failure(ended));
        }
        let missing = ended.code() == NO_PROGRAM;
        let failure = if missing {
            no_python()
        } else {
            start_failure(ended)
        };
        for connection in std::mem::take(&mut self.interpreter.waiters) {
            self.answer(connection, Event::Failed(failure.clone()));
        }
        let words = self.interpreter.kept[1].take(LAST_WORDS);
        self.interpreter.kept = Default::default();
        for key in std::mem::take(&mut self.interpreter.queue) {
            let open = self
                .executions
                .get(&key)
                .is_some_and(|e| e.language.is_none());
            if missing && open {
                if let Err(failure) = self.start_shell(key) {
                    self.finish(key, End::Failed(failure));
                }
                continue;
            }
            self.deliver(key, 1, words.clone());
            self.deliver(key, 1, format!("{}\n", failure.message).into_bytes());
            self.execution_ended(
                key,
                Language::Python,
                ended.code().max(1),
                ended.cpu_micros,
                None,
            );
        }
    }

    fn fail_queue(&mut self, failure: &Failure) {
        for connection in std::mem::take(&mut self.interpreter.waiters) {
            self.answer(connection, Event::Failed(failure.clone()));
        }
        for key in std::mem::take(&mut self.interpreter.queue) {
            self.finish(key, End::Failed(failure.clone()));
        }
    }
}

/// Why there is no interpreter in a VM without the program.
fn no_python() -> Failure {
    Failure {
        kind: FailureKind::NotFound,
        message: "this VM has no python3: install it, or run shell commands".to_owned(),
    }
}

/// Why an interpreter did not start.
fn start_failure(ended: &Ended) -> Failure {
    // Nobody else kills what has only just begun, as a rule.
    if ended.signal() == Some(libc::SIGKILL) {
        return Failure {
            kind: FailureKind::Exhausted,
            message: "the Python interpreter did not start: the VM is out of memory; free some (files on tmpfs count) or \
                      end the VM"
                .to_owned(),
        };
    }
    Failure {
        kind: FailureKind::Internal,
        message: format!(
            "the Python interpreter did not start: exit status {}",
            ended.code()
        ),
    }
}

/// The failure of a step that an error of the system ended.
pub(crate) fn failure(step: &str, error: &io::Error) -> Failure {
    let (kind, why) = match error.raw_os_error() {
        Some(libc::EAGAIN) => (
            FailureKind::Exhausted,
            "the VM has reached its limit of processes",
        ),
        Some(libc::ENOMEM) => (FailureKind::Exhausted, "the VM has no memory left"),
        Some(libc::EMFILE | libc::ENFILE) => (
            FailureKind::Exhausted,
            "the VM has reached its limit of open files",
        ),
        _ if error.kind() == io::ErrorKind::InvalidInput => (
            FailureKind::Unsuitable,
            "the text has a NUL character in it",
        ),
        _ => {
            let message = format!("cannot {step}: {error}");
            return Failure {
                kind: FailureKind::Internal,
                message,
            };
        }
    };
    Failure {
        kind,
        message: format!("cannot {step}: {why}"),
    }
}
