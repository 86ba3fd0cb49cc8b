//! Executions: from their request to their last event.

use crate::backlog::Backlog;
use crate::connection::Phase;
use crate::interpreter::failure;
use crate::poller::{Interest, Source};
use crate::process::{Ended, signal, signal_group};
use crate::procfs;
use crate::serve::{Child, Server};
use crate::shell;
use crate::spool::End;
use crate::timers::Timer;
use crate::tree::{self, Tree};
use crate::worker::output_pipe;
use instavm_agent_api::{Event, Execute, Failure, Finished, Language, frame};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long an execution whose caller is gone has after its interrupt.
const GRACE: Duration = Duration::from_secs(2);
/// One step of an interrupt that takes more than one signal.
struct Step {
    /// Milliseconds after the step before.
    after: u64,
    /// Does the interpreter get the signal (again)?
    interpreter: bool,
    /// What the processes get that the execution has started and may be waiting for.
    children: Option<i32>,
}

const fn step(after: u64, interpreter: bool, children: Option<i32>) -> Step {
    Step {
        after,
        interpreter,
        children,
    }
}

/// Python ignores the signal while it waits in `os.system`, so it gets another one right after its child's end.
const STEPS: [Step; 8] = [
    step(0, true, None),
    step(100, true, None),
    step(50, false, Some(libc::SIGINT)),
    step(5, true, None),
    step(10, true, None),
    step(35, true, None),
    step(100, false, Some(libc::SIGKILL)),
    step(5, true, None),
];
/// The step that follows the last one, for as long as the execution goes on.
const STEPS_REPEAT_FROM: usize = 6;

/// Where output goes.
#[derive(Clone, Debug)]
pub(crate) enum Sink {
    /// To a connection.
    Connection(u64),
    /// To a detached execution's spool.
    Spool(String),
    /// Nowhere: the caller is gone.
    Gone,
}

/// How far an execution is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// It waits for the interpreter.
    Queued,
    /// The interpreter has it, and has begun or will.
    Python { begun: bool },
    /// A shell runs it.
    Shell { pid: i32 },
    /// It has ended; what it wrote before is still on its way.
    Draining(Finished),
}

/// One run of code.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) code: String,
    pub(crate) language: Option<Language>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) sink: Sink,
    pub(crate) stage: Stage,
    pub(crate) interrupted: bool,
    pub(crate) started: Instant,
    /// The same in the ticks of the process table.
    pub(crate) started_ticks: u64,
    /// The next of [`STEPS`].
    interrupt_step: usize,
    /// Its standard output and error, and what is left to read of them once it has ended.
    pub(crate) streams: [Option<u64>; 2],
    left: [u64; 2],
    /// Has the interpreter's output been connected with it?
    pub(crate) attached: bool,
    /// Output from before its start, which comes first.
    pub(crate) backlog: [Backlog; 2],
    /// The processes of its shell.
    tree: Option<Tree>,
}

/// Who gets what a pipe carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// An execution.
    Execution(u64),
    /// The interpreter between executions: kept for the next one.
    Interpreter,
    /// Nobody; background processes must not block on it, nor get a signal.
    Nobody,
}

/// The reading end of a pipe with output.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) pipe: OwnedFd,
    /// 0 for standard output, 1 for standard error.
    pub(crate) which: usize,
    pub(crate) owner: Owner,
    pub(crate) reading: bool,
}

/// What reading a stream once came to.
enum Pumped {
    Some,
    Empty,
    Full,
}

impl Server {
    /// Takes on an execution.
    pub(crate) fn begin_execution(&mut self, connection: u64, execute: Execute) {
        let key = self.new_key();
        let sink = if execute.detached {
            if self.spools.get(&execute.id).is_some() {
                // The node asks again because it did not see the first answer.
                return self.answer(connection, Event::Done);
            }
            self.spools.create(&execute.id, key);
            Sink::Spool(execute.id.clone())
        } else {
            self.set_phase(connection, Phase::Executing(key));
            Sink::Connection(connection)
        };
        let mut execution = Execution {
            code: execute.code,
            language: execute.language,
            env: execute.env,
            sink,
            stage: Stage::Queued,
            interrupted: false,
            started: Instant::now(),
            started_ticks: 0,
            interrupt_step: 0,
            streams: [None; 2],
            left: [0; 2],
            attached: false,
            backlog: Default::default(),
            tree: None,
        };
        if execution.language != Some(Language::Bash)
            && let Some(script) = shell::cell(&execution.code)
        {
            execution.code = script.to_owned();
            execution.language = Some(Language::Bash);
        }
        let shell = execution.language == Some(Language::Bash);
        let check = execution.language.is_none() && !self.interpreter_is_idle();
        self.executions.insert(key, execution);
        if shell {
            if let Err(failure) = self.start_shell(key) {
                self.spools.remove(&execute.id);
                self.executions.remove(&key);
                return self.answer(connection, Event::Failed(failure));
            }
        } else {
            self.interpreter.queue.push_back(key);
        }
        if execute.detached {
            self.answer(connection, Event::Done);
        }
        if check {
            self.check_language(key);
        }
        self.run_queue();
    }

    /// Starts the shell of an execution.
    pub(crate) fn start_shell(&mut self, key: u64) -> Result<(), Failure> {
        let Some(execution) = self.executions.get_mut(&key) else {
            return Ok(());
        };
        let code = std::mem::take(&mut execution.code);
        let mut env = std::mem::take(&mut execution.env);
        let mark = tree::new_mark(key);
        env.insert(tree::MARK.to_owned(), mark.clone());
        let started = self.spawn_shell(&code, &env);
        let (pid, pipes) = started.map_err(|error| failure("start bash", &error))?;
        let mut streams = [None; 2];
        for (which, pipe) in pipes.into_iter().enumerate() {
            streams[which] = self.add_stream(pipe, which, Owner::Execution(key));
        }
        self.children.insert(pid, Child::Shell(key));
        if let Some(execution) = self.executions.get_mut(&key) {
            execution.streams = streams;
            execution.stage = Stage::Shell { pid };
            execution.tree = Some(Tree::new(pid, &mark));
            execution.started = Instant::now();
        }
        Ok(())
    }

    fn spawn_shell(
        &self,
        code: &str,
        env: &BTreeMap<String, String>,
    ) -> io::Result<(i32, [OwnedFd; 2])> {
        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let descriptors = vec![self.null()?, stdout_end, stderr_end];
        let environment = shell::environment(&[&self.environment, env]);
        let program = shell::program(code, &self.workdir, descriptors, &environment)?;
        Ok((program.spawn(&self.secret)?, [stdout, stderr]))
    }

    /// Waits for output; `None` when the poller has no room, and then the pipe is closed.
    pub(crate) fn add_stream(&mut self, pipe: OwnedFd, which: usize, owner: Owner) -> Option<u64> {
        let key = self.new_key();
        self.poller
            .add(&pipe, Source::Stream(key), Interest::READ)
            .ok()?;
        self.streams.insert(
            key,
            Stream {
                pipe,
                which,
                owner,
                reading: true,
            },
        );
        Some(key)
    }

    /// A pipe has something to read, or has come to its end.
    pub(crate) fn stream_ready(&mut self, key: u64) {
        let Some(stream) = self.streams.get(&key) else {
            return;
        };
        if let Owner::Execution(execution) = stream.owner {
            self.pump(execution, key);
            self.settle(execution);
        } else {
            self.read_unowned(key);
        }
    }

    /// Reads once from a stream of an execution.
    fn pump(&mut self, execution_key: u64, key: u64) -> Pumped {
        let (Some(stream), Some(execution)) =
            (self.streams.get(&key), self.executions.get(&execution_key))
        else {
            return Pumped::Empty;
        };
        let which = stream.which;
        if !execution.backlog[which].is_empty() {
            let pumped = self.pump_backlog(execution_key, which);
            if matches!(pumped, Pumped::Full) {
                self.set_reading(key, false);
            }
            return pumped;
        }
        let mut most = self.scratch.len();
        if matches!(execution.stage, Stage::Draining(_)) {
            most = most.min(usize::try_from(execution.left[which]).unwrap_or(usize::MAX));
        }
        if most == 0 {
            return Pumped::Empty;
        }
        if !self.sink_has_room(execution) {
            self.set_reading(key, false);
            return Pumped::Full;
        }
        match rustix::io::read(&stream.pipe, &mut self.scratch[..most]) {
            Ok(0) => self.stream_ended(execution_key, key, which),
            Ok(length) => {
                if let Some(execution) = self.executions.get_mut(&execution_key) {
                    execution.left[which] = execution.left[which].saturating_sub(length as u64);
                }
                let bytes = self.scratch[..length].to_vec();
                self.deliver(execution_key, which, bytes);
                Pumped::Some
            }
            Err(Errno::AGAIN | Errno::INTR) => Pumped::Empty,
            Err(_) => self.stream_ended(execution_key, key, which),
        }
    }

    /// Hands on a piece of the output from before the execution.
    fn pump_backlog(&mut self, key: u64, which: usize) -> Pumped {
        let Some(execution) = self.executions.get(&key) else {
            return Pumped::Empty;
        };
        if !self.sink_has_room(execution) {
            return Pumped::Full;
        }
        let most = self.scratch.len();
        let bytes = self
            .executions
            .get_mut(&key)
            .map(|execution| execution.backlog[which].take(most))
            .unwrap_or_default();
        if bytes.is_empty() {
            return Pumped::Empty;
        }
        self.deliver(key, which, bytes);
        Pumped::Some
    }

    /// Hands on the output from before the execution, as far as its reader takes it.
    pub(crate) fn feed_backlog(&mut self, key: u64) {
        for which in 0..2 {
            while let Pumped::Some = self.pump_backlog(key, which) {}
        }
    }

    fn stream_ended(&mut self, execution: u64, key: u64, which: usize) -> Pumped {
        self.drop_stream(key);
        if let Some(execution) = self.executions.get_mut(&execution) {
            execution.streams[which] = None;
            execution.left[which] = 0;
        }
        Pumped::Empty
    }

    pub(crate) fn drop_stream(&mut self, key: u64) {
        if let Some(stream) = self.streams.remove(&key) {
            self.poller.remove(&stream.pipe);
        }
    }

    pub(crate) fn set_reading(&mut self, key: u64, reading: bool) {
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        if stream.reading != reading {
            stream.reading = reading;
            let interest = Interest {
                read: reading,
                write: false,
            };
            // Changing what is already waited for needs no memory, so it cannot fail.
            let _ = self
                .poller
                .change(&stream.pipe, Source::Stream(key), interest);
        }
    }

    fn sink_has_room(&self, execution: &Execution) -> bool {
        match execution.sink {
            Sink::Connection(key) => self.connections.get(&key).is_none_or(|c| c.has_room()),
            Sink::Spool(_) | Sink::Gone => true,
        }
    }

    /// Hands output to whoever is to have it.
    pub(crate) fn deliver(&mut self, key: u64, which: usize, bytes: Vec<u8>) {
        let Some(execution) = self.executions.get(&key) else {
            return;
        };
        let event = match which {
            0 => Event::Stdout(bytes),
            _ => Event::Stderr(bytes),
        };
        match execution.sink.clone() {
            Sink::Connection(connection) => self.send(connection, &event),
            Sink::Spool(id) => {
                // Output comes in pieces of the scratch buffer's size, which always fit into a frame.
                let frame = frame::encode(&event).unwrap_or_default();
                self.spools.append(&id, &frame);
                self.feed_followers(&id);
            }
            Sink::Gone => {}
        }
    }

    /// A connection has room again: reads on for its execution.
    pub(crate) fn resume(&mut self, key: u64) {
        let Some(execution) = self.executions.get(&key) else {
            return;
        };
        let streams = execution.streams;
        self.feed_backlog(key);
        for stream in streams.into_iter().flatten() {
            self.set_reading(stream, true);
        }
        self.settle(key);
    }

    /// A shell has ended. When it was interrupted, what it left in the background ends with it: a script that was stopped
    /// has not handed anything over on purpose.
    pub(crate) fn shell_ended(&mut self, key: u64, ended: &Ended) {
        if let Some(execution) = self.executions.get_mut(&key)
            && execution.interrupted
            && let Some(tree) = &mut execution.tree
        {
            tree.kill(&self.processes);
        }
        self.execution_ended(key, Language::Bash, ended.code(), ended.cpu_micros, None);
    }

    /// An execution has ended: what it wrote up to now still goes out, what background processes write later does not.
    pub(crate) fn execution_ended(
        &mut self,
        key: u64,
        language: Language,
        exit_code: i32,
        cpu_micros: u64,
        state_lost: Option<String>,
    ) {
        let Some(execution) = self.executions.get_mut(&key) else {
            return;
        };
        for (left, stream) in execution.left.iter_mut().zip(execution.streams) {
            let stream = stream.and_then(|stream| self.streams.get(&stream));
            let waiting = stream.map(|stream| rustix::io::ioctl_fionread(&stream.pipe));
            *left = waiting.and_then(Result::ok).unwrap_or(0);
        }
        execution.stage = Stage::Draining(Finished {
            language,
            exit_code,
            wall_micros: u64::try_from(execution.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            cpu_micros,
            interrupted: execution.interrupted,
            state_lost,
        });
        self.settle(key);
    }

    /// Reads what an ended execution has left, as far as its reader takes it, and finishes it.
    fn settle(&mut self, key: u64) {
        loop {
            let Some(execution) = self.executions.get(&key) else {
                return;
            };
            let Stage::Draining(finished) = &execution.stage else {
                return;
            };
            if let Some(which) = (0..2).find(|&which| !execution.backlog[which].is_empty()) {
                if matches!(self.pump_backlog(key, which), Pumped::Full) {
                    return;
                }
                continue;
            }
            let open = (0..2).find(|&which| execution.left[which] > 0);
            let Some(which) = open else {
                let end = End::Finished(finished.clone());
                return self.finish(key, end);
            };
            let Some(stream) = execution.streams[which] else {
                self.clear_left(key, which);
                continue;
            };
            match self.pump(key, stream) {
                Pumped::Some => {}
                Pumped::Full => return,
                // Somebody else has read from the pipe.
                Pumped::Empty => self.clear_left(key, which),
            }
        }
    }

    fn clear_left(&mut self, key: u64, which: usize) {
        if let Some(execution) = self.executions.get_mut(&key) {
            execution.left[which] = 0;
        }
    }

    /// Sends an execution's last event and lets go of it.
    pub(crate) fn finish(&mut self, key: u64, end: End) {
        let Some(execution) = self.executions.remove(&key) else {
            return;
        };
        for stream in execution.streams.into_iter().flatten() {
            self.release_stream(stream);
        }
        match execution.sink {
            Sink::Connection(connection) => self.answer(connection, end.into()),
            Sink::Spool(id) => {
                self.spools.finish(&id, end);
                self.feed_followers(&id);
            }
            Sink::Gone => {}
        }
        if self.interpreter.current == Some(key) {
            self.interpreter.current = None;
            self.run_queue();
        }
    }

    fn release_stream(&mut self, key: u64) {
        let kept = self
            .interpreter
            .worker
            .as_ref()
            .is_some_and(|w| w.streams.contains(&key));
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.owner = if kept {
                Owner::Interpreter
            } else {
                Owner::Nobody
            };
        }
        self.set_reading(key, true);
    }

    /// Interrupts an execution.
    pub(crate) fn interrupt(&mut self, key: u64) {
        let Some(execution) = self.executions.get_mut(&key) else {
            return;
        };
        match execution.stage {
            Stage::Queued => self.cancel_queued(key),
            Stage::Draining(_) => {}
            Stage::Shell { pid } => {
                execution.interrupted = true;
                if let Some(tree) = &mut execution.tree {
                    // Once their parents are gone some of them might not be found any more.
                    tree.look(&self.processes);
                }
                signal_group(pid, libc::SIGINT);
            }
            Stage::Python { .. } => {
                execution.interrupted = true;
                if execution.interrupt_step == 0 {
                    self.interrupt_python(key);
                }
            }
        }
    }

    /// One step of an interrupt: the signal again and again, then what the code has started and waits for.
    pub(crate) fn interrupt_python(&mut self, key: u64) {
        let Some(execution) = self.executions.get_mut(&key) else {
            return;
        };
        let (Stage::Python { .. }, Some(worker)) = (&execution.stage, &self.interpreter.worker)
        else {
            return;
        };
        let step = &STEPS[execution.interrupt_step];
        if step.interpreter {
            worker.interrupt(self.interpreter.sequence);
        }
        if let Some(number) = step.children {
            for pid in self
                .processes
                .descendants(worker.pid, execution.started_ticks)
            {
                signal(pid, number);
            }
        }
        let next = execution.interrupt_step + 1;
        let next = if next < STEPS.len() {
            next
        } else {
            STEPS_REPEAT_FROM
        };
        execution.interrupt_step = next;
        self.timers.add(
            Duration::from_millis(STEPS[next].after),
            Timer::Interrupt(key),
        );
    }

    /// Ends an execution for certain.
    pub(crate) fn kill(&mut self, key: u64) {
        let Some(execution) = self.executions.get_mut(&key) else {
            return;
        };
        match execution.stage {
            Stage::Queued => self.cancel_queued(key),
            Stage::Draining(_) => {}
            Stage::Shell { .. } => {
                execution.interrupted = true;
                if let Some(tree) = &mut execution.tree {
                    tree.kill(&self.processes);
                }
            }
            Stage::Python { .. } => {
                execution.interrupted = true;
                let since = execution.started_ticks;
                if let Some(worker) = &mut self.interpreter.worker {
                    worker.ended_because =
                        Some("the execution was killed, and the interpreter with it");
                    for pid in self.processes.descendants(worker.pid, since) {
                        signal(pid, libc::SIGKILL);
                    }
                    signal(worker.pid, libc::SIGKILL);
                }
            }
        }
    }

    /// Ends an execution that has not started.
    fn cancel_queued(&mut self, key: u64) {
        self.interpreter.queue.retain(|&queued| queued != key);
        let language = self
            .executions
            .get(&key)
            .and_then(|execution| execution.language);
        let finished = Finished {
            language: language.unwrap_or(Language::Python),
            exit_code: 130,
            wall_micros: 0,
            cpu_micros: 0,
            interrupted: true,
            state_lost: None,
        };
        self.finish(key, End::Finished(finished));
    }

    /// The caller of an execution is gone.
    pub(crate) fn caller_gone(&mut self, key: u64) {
        let Some(execution) = self.executions.get_mut(&key) else {
            return;
        };
        execution.sink = Sink::Gone;
        self.interrupt(key);
        self.timers.add(GRACE, Timer::Kill(key));
        self.resume(key);
    }

    /// Marks the start of an execution in the interpreter.
    pub(crate) fn mark_started(&mut self, key: u64) {
        if let Some(execution) = self.executions.get_mut(&key) {
            execution.stage = Stage::Python { begun: false };
            execution.started = Instant::now();
            execution.started_ticks = procfs::now();
        }
    }
}
