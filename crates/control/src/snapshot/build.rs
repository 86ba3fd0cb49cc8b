//! Builds: one task each, which goes on after a restart.

use super::rows;
use super::service::{Snapshot, Status};
use crate::error::{Chain, Problem};
use crate::{Platform, Settings};
use instavm_node_api::{BuildProgress, NodeError, SnapshotBuilt, SnapshotId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Bytes of a build's log that are kept: its end.
const LOG_LIMIT: usize = 64 << 10;
/// Words of progress that are on their way.
const NEWS: usize = 64;

/// The builds that are under way.
#[derive(Debug)]
pub(crate) struct Builds {
    under_way: Mutex<HashMap<SnapshotId, Arc<Build>>>,
    slots: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Build {
    cancelled: CancellationToken,
    progress: Mutex<Progress>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    step: Option<&'static str>,
    log: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Builds {
    pub(crate) fn new(settings: &Settings) -> Builds {
        Builds {
            under_way: Mutex::default(),
            slots: Arc::new(Semaphore::new(settings.builds_at_once.max(1))),
        }
    }

    fn get(&self, id: &SnapshotId) -> Option<Arc<Build>> {
        lock(&self.under_way).get(id).cloned()
    }

    /// Adds what is known of a build that is under way.
    pub(crate) fn show(&self, snapshot: &mut Snapshot) {
        if snapshot.status != Status::Building {
            return;
        }
        if let Some(build) = self.get(&snapshot.id) {
            let progress = lock(&build.progress).clone();
            snapshot.step = progress.step.map(str::to_owned).or(snapshot.step.take());
            snapshot.log = progress.log;
        }
    }

    /// Cuts a build off. Whoever then holds the snapshot does so after the build has ended.
    pub(crate) fn cancel(&self, id: &SnapshotId) {
        if let Some(build) = self.get(id) {
            build.cancelled.cancel();
        }
    }
}

/// Begins a build that is on record.
pub(crate) async fn start(platform: &Platform, snapshot: Snapshot) {
    let guard = platform.exclusive.hold(&snapshot.id.0).await;
    let build = Arc::new(Build::default());
    lock(&platform.builds.under_way).insert(snapshot.id.clone(), build.clone());
    let platform = platform.clone();
    let tracker = platform.tracker.clone();
    tracker.spawn(async move {
        let id = snapshot.id.clone();
        let (cancelled, stopping) = (build.cancelled.clone(), platform.stopping.clone());
        // What is cut off by the platform's end is begun again at the next start.
        let work = cancelled.run_until_cancelled(run(&platform, snapshot, &build));
        let _ = stopping.run_until_cancelled(work).await;
        lock(&platform.builds.under_way).remove(&id);
        drop(guard);
    });
}

/// Builds until it is there, or has failed for good, and writes down which.
async fn run(platform: &Platform, mut snapshot: Snapshot, build: &Build) {
    // The slots are never closed.
    let _slot = platform.builds.slots.acquire().await;
    let mut finished = loop {
        match attempt(platform, &mut snapshot, build).await {
            Ok(built) => break done(snapshot, built),
            Err(Trouble::Final(why)) => break snapshot.failed(why),
            Err(Trouble::Passing(why)) if snapshot.attempts >= platform.settings.build_attempts => {
                break snapshot.failed(why);
            }
            Err(Trouble::Passing(why)) => {
                add(build, &format!("[instavm] {why}; it is begun again\n"));
                tokio::time::sleep(platform.settings.retry_pause).await;
            }
        }
    };
    finished.log = lock(&build.progress).log.clone();
    finished.step = finished
        .last_error
        .as_ref()
        .and(lock(&build.progress).step)
        .map(str::to_owned);
    while let Err(error) = rows::update(&platform.database, &finished).await {
        tracing::error!(snapshot = %finished.id, error = %Chain(&error), "recording a build's end failed; again soon");
        tokio::time::sleep(platform.settings.retry_pause).await;
    }
}

fn done(mut snapshot: Snapshot, built: SnapshotBuilt) -> Snapshot {
    snapshot.digest = Some(built.digest);
    snapshot.config = built.config;
    snapshot.ready(built.size_bytes)
}

/// Why a build did not get to its end.
enum Trouble {
    /// For a reason that stays.
    Final(String),
    /// It may work if it is done again.
    Passing(String),
}

async fn attempt(
    platform: &Platform,
    snapshot: &mut Snapshot,
    build: &Build,
) -> Result<SnapshotBuilt, Trouble> {
    let Some(request) = snapshot.build.clone() else {
        return Err(Trouble::Final(
            "what was to be built is not on record".to_owned(),
        ));
    };
    if snapshot.attempts >= platform.settings.build_attempts {
        return Err(Trouble::Final(format!(
            "the build was begun {} times and never came to its end",
            snapshot.attempts
        )));
    }
    snapshot.attempts += 1;
    rows::update(&platform.database, snapshot)
        .await
        .map_err(|error| Trouble::Passing(Problem::from(error).message))?;
    let (sender, receiver) = mpsc::channel(NEWS);
    let building = platform.node.build_snapshot(request, sender);
    let (built, ()) = tokio::join!(building, listen(platform, snapshot, build, receiver));
    built.map_err(|error| match error {
        error @ NodeError::Build { .. } => Trouble::Final(error.to_string()),
        error => {
            tracing::warn!(snapshot = %snapshot.id, error = %Chain(&error), "a build failed on the platform's side");
            Trouble::Passing(Problem::from(error).message)
        }
    })
}

/// Takes in what the node tells of a build. Each step is written down when it begins.
async fn listen(
    platform: &Platform,
    snapshot: &Snapshot,
    build: &Build,
    mut news: mpsc::Receiver<BuildProgress>,
) {
    while let Some(BuildProgress { step, log }) = news.recv().await {
        add(build, &log);
        let progress = {
            let mut progress = lock(&build.progress);
            if progress.step == Some(step) {
                continue;
            }
            progress.step = Some(step);
            progress.clone()
        };
        let shown = Snapshot {
            step: Some(step.to_owned()),
            log: progress.log,
            ..snapshot.clone()
        };
        if let Err(error) = rows::update(&platform.database, &shown).await {
            // Memory has it; the next step is another chance.
            tracing::warn!(snapshot = %snapshot.id, error = %Chain(&error), "recording a build's step failed");
        }
    }
}

/// Adds to a build's log, of which the end is kept.
fn add(build: &Build, text: &str) {
    let mut progress = lock(&build.progress);
    progress.log.push_str(&text.replace('\0', "\u{fffd}"));
    let log = &mut progress.log;
    if log.len() > LOG_LIMIT {
        let mut from = log.len() - LOG_LIMIT;
        while !log.is_char_boundary(from) {
            from += 1;
        }
        // From the beginning of a line, if one begins there.
        let from = log[from..].find('\n').map_or(from, |at| from + at + 1);
        log.drain(..from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_the_last_whole_lines_are_kept() {
        let build = Build::default();
        for number in 0..20_000 {
            add(&build, &format!("line {number} ä\n"));
        }
        let log = lock(&build.progress).log.clone();
        assert!(log.len() <= LOG_LIMIT && log.len() > LOG_LIMIT - 100);
        assert!(log.starts_with("line ") && log.ends_with("line 19999 ä\n"));
        add(&build, &"ä".repeat(LOG_LIMIT));
        assert!(lock(&build.progress).log.len() <= LOG_LIMIT);
    }
}
