//! The warm pool: machines that are ready, interpreter loaded, before anybody asks.

use crate::machine::{Assembled, MachineError, Workshop, chain, lock};
use crate::record::Phase;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The pause after a failure, doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Machines that are ready.
#[derive(Debug)]
pub(crate) struct Pool {
    ready: Mutex<VecDeque<Assembled>>,
    size: usize,
    taken: Notify,
    /// Creates under way: the pool lets them go first.
    urgent: AtomicUsize,
    urgent_done: Notify,
}

/// Held by a create until its VM is handed out.
#[derive(Debug)]
pub(crate) struct Urgent<'a>(&'a Pool);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.urgent.fetch_sub(1, Ordering::AcqRel);
        self.0.urgent_done.notify_one();
    }
}

impl Pool {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            ready: Mutex::default(),
            size,
            taken: Notify::new(),
            urgent: AtomicUsize::new(0),
            urgent_done: Notify::new(),
        }
    }

    /// The configured size.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        lock(&self.ready).len()
    }

    /// Puts a machine in: a new one, or one of an earlier daemon.
    pub(crate) fn put(&self, machine: Assembled) {
        lock(&self.ready).push_back(machine);
    }

    /// Takes a machine that lives; those that have died meanwhile are returned for their removal.
    pub(crate) fn take(&self) -> (Option<Assembled>, Vec<Assembled>) {
        let mut dead = Vec::new();
        let mut ready = lock(&self.ready);
        while let Some(machine) = ready.pop_front() {
            self.taken.notify_one();
            if !machine.process.has_ended() {
                return (Some(machine), dead);
            }
            dead.push(machine);
        }
        (None, dead)
    }

    /// A create is under way; until the guard is dropped the pool does not refill.
    pub(crate) fn urgent(&self) -> Urgent<'_> {
        self.urgent.fetch_add(1, Ordering::AcqRel);
        Urgent(self)
    }

    /// Is more than one create under way?
    pub(crate) fn others_urgent(&self) -> bool {
        self.urgent.load(Ordering::Acquire) > 1
    }

    /// Keeps the pool full, one machine at a time, until `stop`.
    pub(crate) async fn refill(&self, workshop: Arc<Workshop>, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        while !stop.is_cancelled() {
            if self.ready() >= self.size {
                tokio::select! {
                    () = self.taken.notified() => {}
                    () = stop.cancelled() => {}
                }
            } else if self.urgent.load(Ordering::Acquire) > 0 {
                tokio::select! {
                    () = self.urgent_done.notified() => {}
                    () = stop.cancelled() => {}
                }
            } else if let Err(error) = self.add(&workshop).await {
                tracing::warn!(error = %chain(&error), "the pool cannot be refilled now");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
        }
    }

    async fn add(&self, workshop: &Workshop) -> Result<(), MachineError> {
        let mut machine = workshop.assemble(&workshop.pool_blueprint()).await?;
        machine.record.phase = Phase::Pooled;
        let warmed = match workshop.warm(&machine).await {
            Ok(()) => workshop.save(&machine.record),
            Err(error) => Err(error),
        };
        if let Err(error) = warmed {
            workshop
                .dismantle(&machine.record.machine, Some(machine.record.index))
                .await?;
            return Err(error);
        }
        self.put(machine);
        Ok(())
    }
}
