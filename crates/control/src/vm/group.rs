//! VMs that are made together: all of them, or none.

use super::rows;
use super::service::{self as vms, Order, Profile, Vm};
use crate::Platform;
use crate::error::{Chain, Kind, Problem};
use crate::idempotency::Attempt;
use crate::session::service::{self as sessions, Session};
use crate::snapshot::service::{self as snapshots, Snapshot};
use futures::future::join_all;
use instavm_node_api::VmId;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// What is to be made.
pub(crate) struct Plan {
    pub profile: Profile,
    pub count: u32,
    /// What their disks start as, where that is not what the profile names; a hidden one is deleted when they are there.
    pub boot: Option<Snapshot>,
}

/// VMs that are being made.
pub(crate) struct Group {
    pub vms: Vec<Arc<Vm>>,
    done: JoinHandle<Result<Vec<Arc<Vm>>, Problem>>,
}

type Making = (Arc<Session>, vms::Provisioning);

impl Group {
    /// Waits until all of them execute code; 504 when that takes too long, while it goes on behind.
    pub(crate) async fn finished(self, platform: &Platform) -> Result<Vec<Arc<Vm>>, Problem> {
        match tokio::time::timeout(platform.settings.provision_wait, self.done).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Problem::internal("making the VMs", error)),
            Err(_) => Err(timed_out(&self.vms)),
        }
    }
}

fn timed_out(vms: &[Arc<Vm>]) -> Problem {
    let first = vms.first().map_or("", |vm| vm.id.0.as_str());
    let text = match vms.len() {
        0 | 1 => {
            format!("provisioning timed out: VM {first} is still being made; ask for it again")
        }
        count => format!(
            "provisioning timed out: {count} VMs, the first of them {first}, are still being made; ask for them again"
        ),
    };
    Problem::new(Kind::TimedOut, text)
}

/// Records the intent to make the VMs, each with a session of its own.
pub(crate) async fn begin(
    platform: &Platform,
    account_id: i64,
    plan: Plan,
    attempt: &Attempt,
) -> Result<Group, Problem> {
    let (platform_there, attempt) = (platform.clone(), attempt.clone());
    let task = async move { begin_here(platform_there, account_id, plan, attempt).await };
    platform.carry_out("making the VMs", task).await
}

async fn begin_here(
    platform: Platform,
    account_id: i64,
    plan: Plan,
    attempt: Attempt,
) -> Result<Group, Problem> {
    let mut making: Vec<Making> = Vec::new();
    for number in 0..plan.count {
        let order = Order {
            id: VmId(attempt.nonce.id("vm_", number)),
            profile: plan.profile.clone(),
            boot: plan.boot.as_ref().map(|snapshot| snapshot.id.clone()),
        };
        let session = attempt.nonce.uuid(number);
        match sessions::begin(&platform, account_id, session, order).await {
            Ok(begun) => making.push(begun),
            Err(problem) => {
                give_up(&platform, making, plan.boot).await;
                return Err(problem);
            }
        }
    }
    let vms = making.iter().map(|(_, making)| making.vm.clone()).collect();
    let tracker = platform.tracker.clone();
    let done = tracker.spawn(async move { finish(&platform, making, plan.boot).await });
    Ok(Group { vms, done })
}

/// Waits for all of them, and ends all of them when one cannot be made.
async fn finish(
    platform: &Platform,
    making: Vec<Making>,
    boot: Option<Snapshot>,
) -> Result<Vec<Arc<Vm>>, Problem> {
    let is_one = making.len() == 1;
    let (sessions, handles): (Vec<_>, Vec<_>) = making
        .into_iter()
        .map(|(session, making)| (session, making.done))
        .unzip();
    let results = join_all(handles).await;
    let made: Result<Vec<Arc<Vm>>, Problem> = results
        .into_iter()
        .map(|joined| joined.map_err(|error| Problem::internal("making the VM", error))?)
        .collect();
    match made {
        Ok(vms) => {
            if let Some(hidden) = boot.filter(|snapshot| snapshot.is_hidden) {
                snapshots::drop_hidden(platform, &hidden).await;
            }
            Ok(vms)
        }
        Err(problem) => {
            if !is_one {
                end_all(platform, &sessions).await;
            }
            if let Some(snapshot) = boot {
                snapshots::drop_hidden(platform, &snapshot).await;
            }
            Err(problem)
        }
    }
}

/// Waits for those that have begun, and ends them.
async fn give_up(platform: &Platform, making: Vec<Making>, boot: Option<Snapshot>) {
    let (sessions, handles): (Vec<_>, Vec<_>) = making
        .into_iter()
        .map(|(session, making)| (session, making.done))
        .unzip();
    // What became of them does not matter any more.
    join_all(handles).await;
    end_all(platform, &sessions).await;
    if let Some(snapshot) = boot {
        snapshots::drop_hidden(platform, &snapshot).await;
    }
}

async fn end_all(platform: &Platform, sessions: &[Arc<Session>]) {
    let endings = sessions.iter().map(|session| async move {
        session.forget_disk();
        sessions::kill(platform, session).await
    });
    for result in join_all(endings).await {
        if let Err(problem) = result {
            tracing::error!(error = %Chain(&problem), "ending a VM of a group failed");
        }
    }
}

/// The VMs that an earlier carrying out of the same request has made, if it made all of them; waits for those that are
/// being made. Those of one that made only some of them are ended.
pub(crate) async fn made_before(
    platform: &Platform,
    account_id: i64,
    count: u32,
    attempt: &Attempt,
) -> Result<Option<Vec<Arc<Vm>>>, Problem> {
    if !attempt.is_repeated {
        return Ok(None);
    }
    let mut found = Vec::new();
    for number in 0..count {
        let id = attempt.nonce.id("vm_", number);
        if rows::find(&platform.database, account_id, &id)
            .await?
            .is_some()
        {
            let id = attempt.nonce.uuid(number);
            found.push(sessions::find(platform, account_id, &id).await?);
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    let mut vms = Vec::new();
    let waiting = async {
        for session in &found {
            let _guard = session.changing().await;
            vms.extend(session.active_vm());
        }
    };
    let patience = platform.settings.provision_wait;
    if tokio::time::timeout(patience, waiting).await.is_err() {
        return Err(timed_out(&[]));
    }
    if vms.len() == count as usize {
        return Ok(Some(vms));
    }
    end_all(platform, &found).await;
    Err(Problem::new(
        Kind::Conflict,
        "the platform stopped while this request was carried out, or a VM that it made has ended; nothing of it is \
         left: send it again",
    ))
}
