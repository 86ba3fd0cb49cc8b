//! Ending everything that a shell has started, wherever it has gone in the table of processes.

use crate::process::signal;
use crate::procfs::ProcessTable;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// The variable by which a shell's processes are known: `setsid` does not take it away.
pub(crate) const MARK: &str = "INSTAVM_EXECUTION_ID";
/// The search ends when nothing new is found, or after this time: whoever forks all the time must not hold up the agent.
const LONGEST: Duration = Duration::from_secs(1);

/// What a shell's processes are known by.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The shell, which leads a session.
    pub(crate) shell: i32,
    /// `NAME=value` in the environment of all, unless they took it out.
    pub(crate) variable: String,
    /// Those that were its own when it was last looked, with the time of their start.
    pub(crate) known: HashMap<i32, u64>,
}

impl Tree {
    pub(crate) fn new(shell: i32, mark: &str) -> Tree {
        Tree {
            shell,
            variable: format!("{MARK}={mark}"),
            known: HashMap::new(),
        }
    }

    /// Looks for processes that are not known yet.
    pub(crate) fn look(&mut self, processes: &ProcessTable) -> Vec<i32> {
        let entries = processes.tree(self).into_iter();
        entries
            .filter(|entry| self.known.insert(entry.pid, entry.started) != Some(entry.started))
            .map(|entry| entry.pid)
            .collect()
    }

    /// Kills them all. Everything is stopped first, so that nothing can get ahead by forking.
    pub(crate) fn kill(&mut self, processes: &ProcessTable) {
        let started = Instant::now();
        let mut found: HashSet<i32> = processes.tree(self).iter().map(|entry| entry.pid).collect();
        let mut new: Vec<i32> = found.iter().copied().collect();
        while !new.is_empty() && started.elapsed() < LONGEST {
            for &pid in &new {
                signal(pid, libc::SIGSTOP);
            }
            new = self.look(processes);
            new.retain(|&pid| found.insert(pid));
        }
        for pid in found {
            signal(pid, libc::SIGKILL);
        }
    }
}

/// A mark that no other execution has. The number is enough within a VM; the rest keeps clones apart.
pub(crate) fn new_mark(number: u64) -> String {
    let mut random = [0u8; 12];
    // SAFETY: the buffer is valid for its length. Without random bytes, early in a machine's life, the number alone has
    // to do.
    unsafe {
        libc::getrandom(
            random.as_mut_ptr().cast(),
            random.len(),
            libc::GRND_NONBLOCK,
        )
    };
    let mut mark = format!("{number}-");
    for byte in random {
        // Writing to a string cannot fail.
        let _ = write!(mark, "{byte:02x}");
    }
    mark
}
