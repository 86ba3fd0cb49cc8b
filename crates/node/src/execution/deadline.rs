//! When an execution is interrupted, killed and given up, so that the answer comes before the caller's own timeout.

use std::time::Duration;

/// What is done to an execution that runs too long, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It is asked to stop: Python keeps its variables.
    Interrupt,
    /// What it started is killed.
    Kill,
    /// The answer goes out with the output so far, whatever the VM does.
    GiveUp,
}

/// The moments of the three stages, counted from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) interrupt: Duration,
    pub(crate) kill: Duration,
    pub(crate) give_up: Duration,
}

impl Schedule {
    /// The schedule for an answer before `timeout`. Short timeouts get short margins; a second is enough for all of
    /// it where there is one to spare.
    pub(crate) fn before(timeout: Duration) -> Self {
        let margin = |part: u32, most: u64| (timeout / part).min(Duration::from_millis(most));
        Self {
            interrupt: timeout.saturating_sub(margin(2, 1000)),
            kill: timeout.saturating_sub(margin(4, 400)),
            give_up: timeout.saturating_sub(margin(8, 150)),
        }
    }

    /// The stage after `done`, and its moment.
    pub(crate) fn next(&self, done: Option<Stage>) -> Option<(Stage, Duration)> {
        match done {
            None => Some((Stage::Interrupt, self.interrupt)),
            Some(Stage::Interrupt) => Some((Stage::Kill, self.kill)),
            Some(Stage::Kill) => Some((Stage::GiveUp, self.give_up)),
            Some(Stage::GiveUp) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_come_in_order_and_before_the_timeout() {
        for seconds in 1..=600 {
            let timeout = Duration::from_secs(seconds);
            let schedule = Schedule::before(timeout);
            assert!(schedule.interrupt < schedule.kill, "{seconds}");
            assert!(schedule.kill < schedule.give_up, "{seconds}");
            assert!(schedule.give_up < timeout, "{seconds}");
            assert!(schedule.interrupt >= timeout / 2, "{seconds}");
        }
    }
}
