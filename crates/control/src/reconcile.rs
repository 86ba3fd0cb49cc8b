//! Keeps records, memory and node in line: once at the start, then with every ending and from time to time.

use crate::Platform;
use crate::clock::Moment;
use crate::egress::refusals;
use crate::error::Chain;
use crate::execution::{rows as execution_rows, service as executions};
use crate::idempotency;
use crate::session::rows as session_rows;
use crate::share::{rows as share_rows, service as shares};
use crate::snapshot::{reconcile as snapshots, rows as snapshot_rows};
use crate::user::rows as user_rows;
use crate::vm::service::{self as vms, Vm, VmStatus};
use crate::vm::{rows as vm_rows, service::ending_word};
use crate::volume::reconcile as volumes;
use instavm_node_api::{Ending, VmId, VmInfo, VmState};
use instavm_store::StoreError;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::MissedTickBehavior;

/// Between two looks at whether another process has changed accounts.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two writings of when keys were used.
const FLUSH: u64 = 5;
/// Ticks between two comparisons with the node.
const COMPARE: u64 = 30;
/// Ticks between two clearings of old records, of which one is at the start.
const CLEAR: u64 = 3_600;
/// Records that are dropped in one go.
const CLEAR_AT_ONCE: u32 = 500;
/// How much earlier than planned an ending still counts as the planned one.
const EXPIRY_SLACK: Duration = Duration::from_secs(2);

/// Brings everything in line, and keeps it so.
pub(crate) async fn start(platform: &Platform) -> Result<(), StoreError> {
    // First of all, so that no ending is missed between the comparison and the following.
    let endings = platform.node.endings();
    let refusals = platform.node.refusals();
    let changes = user_rows::changes(&platform.database).await?;
    platform.reload_accounts().await?;
    adopt(platform).await?;
    snapshots::start(platform).await?;
    volumes::start(platform).await?;
    shares::start(platform).await?;
    for record in execution_rows::unfinished(&platform.database).await? {
        executions::follow(platform, record);
    }
    spawn(platform, follow_endings(platform.clone(), endings));
    spawn(platform, refusals::follow(platform.clone(), refusals));
    spawn(platform, tick(platform.clone(), changes));
    Ok(())
}

fn spawn(platform: &Platform, task: impl Future<Output = ()> + Send + 'static) {
    let stopping = platform.stopping.clone();
    platform.tracker.spawn(async move {
        let _ = stopping.run_until_cancelled(task).await;
    });
}

/// Takes in the VMs that records and node agree on; ends what only the node knows, and what only the records know.
async fn adopt(platform: &Platform) -> Result<(), StoreError> {
    let mut present: HashMap<VmId, VmInfo> = platform
        .node
        .list()
        .await
        .into_iter()
        .filter(|info| info.state == VmState::Active)
        .map(|info| (info.id.clone(), info))
        .collect();
    for vm in vm_rows::all_live(&platform.database).await? {
        match present.remove(&vm.id) {
            Some(info) => adopt_one(platform, vm, &info).await?,
            None => vms::note_end(platform, &lost(&vm)).await?,
        }
    }
    for id in present.into_keys() {
        tracing::warn!(vm = %id, "a VM without a record is ended");
        terminate(platform, &id).await;
    }
    Ok(())
}

async fn adopt_one(platform: &Platform, vm: Vm, info: &VmInfo) -> Result<(), StoreError> {
    let found = session_rows::find(&platform.database, vm.account_id, &vm.session_id).await?;
    let current = found.filter(|found| {
        found.vm_id.as_deref() == Some(vm.id.0.as_str()) && !found.session.state().killed
    });
    let Some(found) = current else {
        // Its end was asked for and not carried out.
        terminate(platform, &vm.id).await;
        let word = ending_word(Ending::Killed);
        return vms::note_end(platform, &vm.ended(VmStatus::Terminated, word)).await;
    };
    let session = platform.live.keep_session(found.session);
    if platform.live.admit(&vm.id, &session, usize::MAX).is_err() {
        return Ok(());
    }
    let active = Arc::new(vm.started(info));
    vm_rows::activate(&platform.database, &active).await?;
    let profile = session.state().profile;
    session.set_vm(active, profile);
    Ok(())
}

/// A VM that is on record and not on the node.
fn lost(vm: &Vm) -> Vm {
    if vm.status == VmStatus::Creating {
        return vm.ended(
            VmStatus::Failed,
            "the platform stopped while it was being made",
        );
    }
    vm.ended(VmStatus::Terminated, ending_word(ending_of(vm)))
}

/// How a VM ended of which only its absence is known.
fn ending_of(vm: &Vm) -> Ending {
    let soon = Moment::now().plus(EXPIRY_SLACK);
    if vm.expires_at.is_some_and(|end| end <= soon) {
        Ending::Expired
    } else {
        Ending::Crashed
    }
}

async fn terminate(platform: &Platform, id: &VmId) {
    if let Err(error) = platform.node.terminate(id, Ending::Killed).await {
        tracing::error!(vm = %id, error = %Chain(&error), "ending a VM failed; again at the next comparison");
    }
}

async fn follow_endings(platform: Platform, mut endings: Receiver<(VmId, Ending)>) {
    loop {
        match endings.recv().await {
            Ok((vm, ending)) => vms::ended(&platform, &vm, ending).await,
            Err(RecvError::Lagged(_)) => compare(&platform).await,
            // The comparisons from time to time go on.
            Err(RecvError::Closed) => return,
        }
    }
}

/// Takes note of VMs that have ended unnoticed, and ends those that nobody knows.
async fn compare(platform: &Platform) {
    // In this order: a VM that comes or goes meanwhile is in neither list.
    let known: Vec<Arc<Vm>> = platform
        .live
        .vms()
        .into_iter()
        .filter_map(|(id, session)| session.state().vm.filter(|vm| vm.id == id))
        .filter(|vm| vm.status == VmStatus::Active)
        .collect();
    let present: HashSet<VmId> = platform
        .node
        .list()
        .await
        .into_iter()
        .map(|info| info.id)
        .collect();
    for vm in known.iter().filter(|vm| !present.contains(&vm.id)) {
        vms::ended(platform, &vm.id, ending_of(vm)).await;
    }
    for id in present.iter().filter(|id| !platform.live.has_vm(id)) {
        tracing::warn!(vm = %id, "a VM that nobody knows is ended");
        terminate(platform, id).await;
    }
}

/// Brings the records of snapshots and volumes in line with what the node has.
async fn compare_disks(platform: &Platform) {
    if let Err(error) = snapshots::compare(platform).await {
        tracing::error!(error = %Chain(&error), "comparing the snapshots failed; again soon");
    }
    if let Err(error) = volumes::compare(platform).await {
        tracing::error!(error = %Chain(&error), "comparing the volumes failed; again soon");
    }
}

async fn tick(platform: Platform, mut changes: i64) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for count in 1u64.. {
        ticks.tick().await;
        if let Err(error) = accounts(&platform, &mut changes).await {
            tracing::error!(error = %Chain(&error), "reading the accounts failed; again soon");
        }
        if count % FLUSH == 0
            && let Err(error) = platform.keys.flush(&platform.database).await
        {
            tracing::warn!(error = %Chain(&error), "writing down when keys were used failed");
        }
        if count % COMPARE == 0 {
            compare(&platform).await;
            compare_disks(&platform).await;
            platform.live.sweep();
        }
        if count % CLEAR == 1 {
            clear(&platform).await;
        }
    }
}

/// Reads accounts and keys anew when another process has changed them.
async fn accounts(platform: &Platform, seen: &mut i64) -> Result<(), StoreError> {
    let changes = user_rows::changes(&platform.database).await?;
    if changes != *seen {
        platform.reload_accounts().await?;
        *seen = changes;
    }
    Ok(())
}

/// Drops records that are older than they are kept for.
async fn clear(platform: &Platform) {
    let settings = &platform.settings;
    let before = Moment::now().minus(settings.execution_retention);
    if let Err(error) = execution_rows::drop_old(&platform.database, before).await {
        tracing::error!(error = %Chain(&error), "clearing old executions failed");
    }
    let before = Moment::now().minus(settings.record_retention);
    if let Err(error) = clear_vms(platform, before).await {
        tracing::error!(error = %Chain(&error), "clearing old VMs and sessions failed");
    }
}

/// A few at a time, so that nobody else waits for long.
async fn clear_vms(platform: &Platform, before: Moment) -> Result<(), StoreError> {
    while vm_rows::drop_old(&platform.database, before, CLEAR_AT_ONCE).await? > 0 {}
    while session_rows::drop_old(&platform.database, before, CLEAR_AT_ONCE).await? > 0 {}
    while share_rows::drop_old(&platform.database, before, CLEAR_AT_ONCE).await? > 0 {}
    while snapshot_rows::drop_old(&platform.database, before, CLEAR_AT_ONCE).await? > 0 {}
    let before = Moment::now().minus(platform.settings.request_retention);
    while idempotency::drop_old(&platform.database, before, CLEAR_AT_ONCE).await? > 0 {}
    Ok(())
}
