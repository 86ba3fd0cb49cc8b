//! Finding the language of a text while the interpreter is busy, so that a shell's starts at once.
//!
//! The text waits for the interpreter in any case; a program of a few milliseconds looks at it meanwhile. That one does
//! not know the session's names: only what is no Python at all is taken for a shell's.

use crate::execution::Stage;
use crate::process::{Ended, signal};
use crate::serve::{Child, Server};
use crate::shell;
use crate::spool::End;
use crate::timers::Timer;
use crate::worker;
use std::collections::VecDeque;
use std::time::Duration;

/// A program that takes longer is ended; its text stays with the interpreter.
const LONGEST: Duration = Duration::from_secs(10);

/// The texts to look at, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    waiting: VecDeque<u64>,
    /// The execution whose text is looked at, and the program.
    running: Option<(u64, i32)>,
}

impl Server {
    /// Has the text of a queued execution looked at.
    pub(crate) fn check_language(&mut self, key: u64) {
        self.checks.waiting.push_back(key);
        self.next_check();
    }

    fn next_check(&mut self) {
        while self.checks.running.is_none() {
            let Some(key) = self.checks.waiting.pop_front() else {
                return;
            };
            let Some(execution) = self.executions.get(&key) else {
                continue;
            };
            if !matches!(execution.stage, Stage::Queued) {
                continue;
            }
            let environment = shell::environment(&[&self.environment, &execution.env]);
            let started = worker::start_check(
                &execution.code,
                &self.workdir,
                &environment,
                &self.null,
                &self.secret,
            );
            // Without the program the interpreter will look.
            if let Ok(pid) = started {
                self.children.insert(pid, Child::Check(key));
                self.checks.running = Some((key, pid));
                self.timers.add(LONGEST, Timer::Check(key));
            }
        }
    }

    /// A program has had its time.
    pub(crate) fn end_check(&mut self, key: u64) {
        if let Some((running, pid)) = self.checks.running
            && running == key
        {
            signal(pid, libc::SIGKILL);
        }
    }

    /// A program has looked at its text.
    pub(crate) fn check_ended(&mut self, key: u64, ended: &Ended) {
        self.checks.running = None;
        let queued = self
            .executions
            .get(&key)
            .is_some_and(|execution| matches!(execution.stage, Stage::Queued));
        if queued && worker::is_for_a_shell(ended) {
            self.interpreter.queue.retain(|&waiting| waiting != key);
            if let Err(failure) = self.start_shell(key) {
                self.finish(key, End::Failed(failure));
            }
        }
        self.next_check();
    }
}
