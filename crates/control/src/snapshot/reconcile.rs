//! Keeps the rows of snapshots and what the node has of them in line.

use super::service::{self, Snapshot, Status};
use super::{build, rows};
use crate::Platform;
use crate::clock::Moment;
use crate::error::{Chain, Problem};
use crate::vm::rows as vm_rows;
use instavm_node_api::{NodeError, SnapshotId};
use instavm_store::StoreError;
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::Instant;

/// How long the snapshot of clones is needed at most.
const HIDDEN_LIMIT: Duration = Duration::from_secs(3_600);
const NOT_KEPT: &str = "the VM's disk was not kept: the node has no such snapshot";

/// At the start: takes up what was under way, and compares.
pub(crate) async fn start(platform: &Platform) -> Result<(), StoreError> {
    for snapshot in rows::everything(&platform.database).await? {
        match snapshot.status {
            Status::Building => build::start(platform, with_log(platform, snapshot).await?).await,
            // The VM's end may still be on its way.
            Status::Creating if vm_rows::is_kept(&platform.database, &snapshot.id).await? => {
                follow(platform, snapshot.id);
            }
            // Clones that were being made are not made any more.
            _ if snapshot.is_hidden => service::drop_hidden(platform, &snapshot).await,
            Status::Creating => cut_off(platform, snapshot.id).await,
            _ => {}
        }
    }
    compare(platform).await
}

async fn with_log(platform: &Platform, snapshot: Snapshot) -> Result<Snapshot, StoreError> {
    Ok(rows::any(&platform.database, &snapshot.id.0)
        .await?
        .unwrap_or(snapshot))
}

/// From time to time: deletes what has no row, takes note of what is gone, and goes on with what failed before.
pub(crate) async fn compare(platform: &Platform) -> Result<(), StoreError> {
    // In this order: a row is there before what it stands for.
    let present: HashSet<SnapshotId> = match platform.node.snapshots().await {
        Ok(present) => present.into_iter().collect(),
        Err(error) => {
            tracing::error!(error = %Chain(&error), "the node does not say which snapshots it has");
            return Ok(());
        }
    };
    let promised = vm_rows::kept(&platform.database).await?;
    let known = rows::everything(&platform.database).await?;
    let ids: HashSet<&SnapshotId> = known.iter().map(|snapshot| &snapshot.id).collect();
    let stray = present
        .iter()
        .filter(|id| !ids.contains(id) && !promised.contains(id));
    for id in stray {
        tracing::warn!(snapshot = %id, "a snapshot without a record is deleted");
        if let Err(error) = platform.node.delete_snapshot(id).await {
            tracing::error!(snapshot = %id, error = %Chain(&error), "deleting a snapshot failed; again soon");
        }
    }
    for snapshot in &known {
        let is_present = present.contains(&snapshot.id);
        // What somebody is at is theirs.
        let Some(_guard) = platform.exclusive.try_hold(&snapshot.id.0) else {
            continue;
        };
        if let Err(problem) = settle(platform, snapshot, is_present).await {
            tracing::error!(snapshot = %snapshot.id, error = %Chain(&problem), "settling a snapshot failed; again soon");
        }
    }
    Ok(())
}

/// Clones whose snapshot is older than this are there, or were given up.
fn forgotten() -> Moment {
    Moment::now().minus(HIDDEN_LIMIT)
}

async fn settle(platform: &Platform, snapshot: &Snapshot, is_present: bool) -> Result<(), Problem> {
    // It may have changed since it was read.
    let Some(snapshot) = rows::any(&platform.database, &snapshot.id.0).await? else {
        return Ok(());
    };
    match snapshot.status {
        Status::Deleting => service::erase(platform, &snapshot.id).await,
        Status::Ready if snapshot.is_hidden && snapshot.created_at < forgotten() => {
            service::remove(platform, &snapshot).await
        }
        Status::Ready if !is_present => match platform.node.snapshot_size(&snapshot.id).await {
            Err(NodeError::NoSuchSnapshot) => {
                tracing::error!(snapshot = %snapshot.id, "a snapshot is gone from the node");
                let failed = snapshot.failed("its data is gone from the node");
                Ok(rows::update(&platform.database, &failed).await?)
            }
            other => other.map(drop).map_err(Problem::from),
        },
        _ => Ok(()),
    }
}

/// Waits until the node has a snapshot whose taking nobody awaits any more: that of a VM that has ended, or one that was
/// cut off.
pub(crate) fn follow(platform: &Platform, id: SnapshotId) {
    let platform = platform.clone();
    let tracker = platform.tracker.clone();
    tracker.spawn(async move {
        let stopping = platform.stopping.clone();
        // What is cut off here is taken up again at the next start.
        let _ = stopping.run_until_cancelled(arrive(&platform, &id)).await;
    });
}

async fn arrive(platform: &Platform, id: &SnapshotId) {
    let _guard = platform.exclusive.hold(&id.0).await;
    let deadline = Instant::now() + platform.settings.keep_patience;
    loop {
        let gone = (Instant::now() >= deadline).then_some(NOT_KEPT);
        match arrived(platform, id, gone).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(problem) => {
                tracing::warn!(snapshot = %id, error = %Chain(&problem), "a snapshot is not on record yet");
            }
        }
        tokio::time::sleep(platform.settings.retry_pause).await;
    }
}

/// Settles a snapshot that was being taken when the platform stopped: nobody takes it any more.
async fn cut_off(platform: &Platform, id: SnapshotId) {
    let guard = platform.exclusive.hold(&id.0).await;
    let why = "the platform stopped while it was taken: take it again";
    let settled = arrived(platform, &id, Some(why)).await;
    drop(guard);
    if let Err(problem) = settled {
        tracing::warn!(snapshot = %id, error = %Chain(&problem), "a snapshot is not on record yet");
        follow(platform, id);
    }
}

/// Looks whether the node has a snapshot, and completes its row; whether it is complete. What is not there has failed when
/// it will not come any more, with the reason given.
async fn arrived(
    platform: &Platform,
    id: &SnapshotId,
    gone: Option<&str>,
) -> Result<bool, Problem> {
    let Some(snapshot) = rows::any(&platform.database, &id.0).await? else {
        return Ok(true);
    };
    if snapshot.status != Status::Creating {
        return Ok(true);
    }
    let settled = match platform.node.snapshot_size(id).await {
        Ok(size) => snapshot.ready(size),
        Err(NodeError::NoSuchSnapshot) => match gone {
            Some(why) => snapshot.failed(why),
            None => return Ok(false),
        },
        Err(error) => return Err(error.into()),
    };
    rows::update(&platform.database, &settled).await?;
    Ok(true)
}

/// Completes the row of a snapshot that a VM's disk was kept as, at once if the node has it already.
pub(crate) async fn kept(platform: &Platform, id: &SnapshotId) {
    let guard = platform.exclusive.hold(&id.0).await;
    let complete = arrived(platform, id, None).await;
    drop(guard);
    if !matches!(complete, Ok(true)) {
        follow(platform, id.clone());
    }
}
