//! The queue of links that are to go.
//!
//! Deleting a link costs the kernel an RCU grace period under a lock that every other link operation of the host waits
//! for; deleting many at once costs one. So links go in batches, with pauses as long as the work took, off the path of
//! whoever ended the VM.

use crate::conntrack::{self, ConntrackError, Flow};
use crate::link::{self, LinkError};
use crate::netlink::Worker;
use crate::plan::{Plan, Slot};
use rtnetlink::Handle;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Links that go in one step.
pub(crate) const BATCH: usize = 64;
/// How long a batch that failed waits before it is tried again, and the most that one pause takes.
const RETRY: Duration = Duration::from_secs(1);

/// Why links could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum ReapError {
    /// The link itself.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The connections that it leaves behind.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
}

#[derive(Debug, Default)]
struct Leaving {
    waiting: BTreeSet<u16>,
    going: BTreeSet<u16>,
}

#[derive(Debug, Default)]
struct Shared {
    leaving: Mutex<Leaving>,
    /// There is work.
    work: Notify,
    /// A batch is done.
    done: Notify,
}

impl Shared {
    fn leaving(&self) -> MutexGuard<'_, Leaving> {
        // Two sets of numbers are right after every single statement.
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue's handle.
#[derive(Clone, Debug)]
pub(crate) struct Reaper {
    shared: Arc<Shared>,
}

impl Reaper {
    /// Starts the task that works the queue off by `worker`. On `stop` it finishes what is queued and ends.
    pub(crate) fn start(
        plan: Plan,
        worker: Worker,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        tracker.spawn(work(plan, worker, shared.clone(), stop));
        Self { shared }
    }

    /// Queues a link.
    pub(crate) fn add(&self, index: u16) {
        self.shared.leaving().waiting.insert(index);
        self.shared.work.notify_one();
    }

    /// How many links are queued or being deleted.
    pub(crate) fn len(&self) -> usize {
        let leaving = self.shared.leaving();
        leaving.waiting.len() + leaving.going.len()
    }

    /// Waits until nothing is queued.
    pub(crate) async fn idle(&self) {
        while self.len() > 0 {
            let done = self.shared.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if self.len() > 0 {
                done.await;
            }
        }
    }

    /// Takes an index out of the queue, for somebody who needs it now; waits while it is being deleted. True when it
    /// was queued: then its link, if there is one, is the caller's to delete.
    pub(crate) async fn reclaim(&self, index: u16) -> bool {
        loop {
            let done = self.shared.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            {
                let mut leaving = self.shared.leaving();
                if !leaving.going.contains(&index) {
                    return leaving.waiting.remove(&index);
                }
            }
            done.await;
        }
    }
}

/// Deletes links and what the kernel remembers of their VMs' connections.
pub(crate) async fn take_down(
    handle: Handle,
    plan: Plan,
    indices: Vec<u16>,
) -> Result<(), ReapError> {
    let gone: BTreeSet<u16> = indices.iter().copied().collect();
    link::delete(handle, plan.slot(), indices).await?;
    forget(plan, move |index| gone.contains(&index)).await?;
    Ok(())
}

/// Removes the tracked connections of the VMs that `gone` names.
pub(crate) async fn forget(
    plan: Plan,
    gone: impl Fn(u16) -> bool + Send,
) -> Result<usize, ConntrackError> {
    let ends = move |flow: &Flow| {
        let ends = [flow.source, flow.destination].map(|address| plan.index_of(address));
        ends.into_iter().flatten().any(&gone)
    };
    conntrack::forget(ends).await
}

/// Deletes links, a batch at a time, and leaves tracked connections alone.
pub(crate) async fn delete_all(
    handle: Handle,
    slot: Slot,
    indices: Vec<u16>,
) -> Result<(), LinkError> {
    for batch in indices.chunks(BATCH) {
        link::delete(handle.clone(), slot, batch.to_vec()).await?;
    }
    Ok(())
}

async fn work(plan: Plan, worker: Worker, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let batch: Vec<u16> = {
            let mut leaving = shared.leaving();
            let batch: Vec<u16> = leaving.waiting.iter().copied().take(BATCH).collect();
            for index in &batch {
                leaving.waiting.remove(index);
            }
            leaving.going.extend(&batch);
            batch
        };
        if batch.is_empty() {
            if stop.is_cancelled() {
                return;
            }
            tokio::select! {
                () = shared.work.notified() => {}
                () = stop.cancelled() => {}
            }
            continue;
        }
        let started = Instant::now();
        let failed = reap(plan, &worker, batch.clone()).await.err();
        {
            let mut leaving = shared.leaving();
            leaving.going.clear();
            if failed.is_some() {
                leaving.waiting.extend(batch);
            }
        }
        shared.done.notify_waiters();
        if failed.is_some() && stop.is_cancelled() {
            return;
        }
        let pause = if failed.is_some() {
            RETRY
        } else {
            started.elapsed().min(RETRY)
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn reap(plan: Plan, worker: &Worker, batch: Vec<u16>) -> Result<(), ReapError> {
    let size = batch.len();
    let result = worker
        .run(move |handle| take_down(handle, plan, batch))
        .await;
    let result = result
        .map_err(LinkError::from)
        .map_err(ReapError::from)
        .flatten();
    if let Err(error) = &result {
        tracing::warn!(slot = plan.slot().number(), links = size, error = %chain(error), "deleting links failed");
    }
    result
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
