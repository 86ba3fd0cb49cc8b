//! The rules of sessions.

use super::rows;
use crate::Platform;
use crate::clock::Moment;
use crate::error::{Kind, Problem};
use crate::vm::rows as vm_rows;
use crate::vm::service::{self as vms, Order, Profile, Vm, VmStatus};
use instavm_node_api::VmId;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OwnedMutexGuard;

/// A session: one handle on one VM at a time.
#[derive(Debug)]
pub(crate) struct Session {
    pub id: String,
    pub account_id: i64,
    pub created_at: Moment,
    state: Mutex<State>,
    /// Held while its VM is being made or ended.
    changing: Arc<tokio::sync::Mutex<()>>,
}

/// What changes of a session.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Its user ended it: it gets no further VM by itself.
    pub killed: bool,
    /// What its VMs are made as.
    pub profile: Profile,
    /// The VM that it has, or had last.
    pub vm: Option<Arc<Vm>>,
}

impl State {
    /// The VM that executes code now.
    pub(crate) fn active_vm(&self) -> Option<Arc<Vm>> {
        self.vm
            .clone()
            .filter(|vm| vm.status == VmStatus::Active && !self.killed)
    }
}

impl Session {
    pub(crate) fn new(id: String, account_id: i64, created_at: Moment, state: State) -> Session {
        Session {
            id,
            account_id,
            created_at,
            state: Mutex::new(state),
            changing: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is now.
    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    /// The VM that executes code now.
    pub(crate) fn active_vm(&self) -> Option<Arc<Vm>> {
        self.lock().active_vm()
    }

    /// Gives it a new VM; it lives again if it was killed.
    pub(crate) fn set_vm(&self, vm: Arc<Vm>, profile: Profile) {
        let mut state = self.lock();
        state.killed = false;
        state.profile = profile;
        state.vm = Some(vm);
    }

    /// Lets its VM's disk go with the VM.
    pub(crate) fn forget_disk(&self) {
        let mut state = self.lock();
        if let Some(vm) = &state.vm {
            state.vm = Some(Arc::new(Vm {
                keep_as: None,
                ..Vm::clone(vm)
            }));
        }
    }

    /// Changes what its next VM is made as.
    pub(crate) fn set_profile(&self, profile: Profile) {
        self.lock().profile = profile;
    }

    /// Changes its VM if it is still this one in a status that fits; returns the changed one.
    pub(crate) fn change_vm(
        &self,
        id: &VmId,
        fits: impl FnOnce(VmStatus) -> bool,
        change: impl FnOnce(&Vm) -> Vm,
    ) -> Option<Arc<Vm>> {
        let mut state = self.lock();
        let vm = state.vm.as_ref().filter(|vm| vm.id == *id)?;
        if !fits(vm.status) {
            return None;
        }
        let changed = Arc::new(change(vm));
        state.vm = Some(changed.clone());
        Some(changed)
    }

    /// Waits until nothing else makes or ends its VM.
    pub(crate) async fn changing(&self) -> OwnedMutexGuard<()> {
        self.changing.clone().lock_owned().await
    }
}

/// A session of the caller's account: from memory, or from its row.
pub(crate) async fn find(
    platform: &Platform,
    account_id: i64,
    id: &str,
) -> Result<Arc<Session>, Problem> {
    // Some callers write UUIDs in capitals, or without the dashes.
    let id = uuid::Uuid::try_parse(id)
        .map_err(|_| not_found())?
        .to_string();
    if let Some(session) = platform.live.session(&id) {
        if session.account_id == account_id {
            return Ok(session);
        }
        return Err(not_found());
    }
    let found = rows::find(&platform.database, account_id, &id)
        .await?
        .ok_or_else(not_found)?;
    let mut state = found.session.state();
    if let Some(vm_id) = &found.vm_id {
        state.vm = vm_rows::find(&platform.database, account_id, vm_id)
            .await?
            .map(settled);
    }
    let session = Session::new(
        found.session.id,
        account_id,
        found.session.created_at,
        state,
    );
    Ok(platform.live.keep_session(session))
}

/// Every VM that lives is in memory, so one that only its row says to live has ended unrecorded.
fn settled(vm: Vm) -> Arc<Vm> {
    if vm.status.is_live() {
        Arc::new(vm.ended(VmStatus::Terminated, "crashed"))
    } else {
        Arc::new(vm)
    }
}

fn not_found() -> Problem {
    Problem::new(
        Kind::NotFound,
        "session not found: it does not exist, or belongs to another account",
    )
}

/// Starts a session; its VM is being made.
pub(crate) async fn begin(
    platform: &Platform,
    account_id: i64,
    id: String,
    order: Order,
) -> Result<(Arc<Session>, vms::Provisioning), Problem> {
    let state = State {
        killed: false,
        profile: order.profile.clone(),
        vm: None,
    };
    let session = Session::new(id, account_id, Moment::now(), state);
    let session = platform.live.keep_session(session);
    let guard = session.changing().await;
    let provisioning = vms::provision(platform, session.clone(), order, guard, true).await?;
    Ok((session, provisioning))
}

/// The session's VM, made anew when the last one expired or crashed. Concurrent callers share one new VM.
pub(crate) async fn usable_vm(
    platform: &Platform,
    session: &Arc<Session>,
) -> Result<Arc<Vm>, Problem> {
    if let Some(vm) = session.active_vm() {
        return Ok(vm);
    }
    let guard = session.changing().await;
    let state = session.state();
    if let Some(vm) = state.active_vm() {
        return Ok(vm);
    }
    if state.killed {
        return Err(Problem::new(
            Kind::NotFound,
            "session not found: it was ended by kill; start a new one",
        ));
    }
    let provisioning = vms::provision(
        platform,
        session.clone(),
        Order::next(state.profile),
        guard,
        false,
    )
    .await?;
    provisioning
        .finished(platform.settings.provision_wait)
        .await
}

/// The session's VM if it runs; 409 otherwise.
pub(crate) fn running_vm(session: &Session) -> Result<Arc<Vm>, Problem> {
    session.active_vm().ok_or_else(|| {
        let why = match session.state().vm {
            Some(vm) if vm.status == VmStatus::Creating => "is still being made",
            _ => "has ended; the next execution starts a new one unless the session was killed",
        };
        Problem::new(Kind::Conflict, format!("the session's VM {why}"))
    })
}

/// Ends a session and its VM by its user's wish. Ending it again changes nothing.
pub(crate) async fn kill(platform: &Platform, session: &Arc<Session>) -> Result<(), Problem> {
    let task = {
        let (platform, session) = (platform.clone(), session.clone());
        let tracker = platform.tracker.clone();
        tracker.spawn(async move {
            let _guard = session.changing().await;
            rows::kill(&platform.database, session.account_id, &session.id).await?;
            let vm = {
                let mut state = session.lock();
                state.killed = true;
                state.vm.clone().filter(|vm| vm.status.is_live())
            };
            match vm {
                Some(vm) => vms::terminate(&platform, &vm.id).await,
                None => Ok(()),
            }
        })
    };
    task.await
        .map_err(|error| Problem::internal("ending the session", error))?
}

/// The account's sessions with a living VM whose metadata has all of `wanted`, newest first.
pub(crate) fn sandboxes(
    platform: &Platform,
    account_id: i64,
    wanted: &instavm_api::Metadata,
    limit: usize,
) -> Vec<Arc<Session>> {
    let mut sessions: Vec<_> = platform
        .live
        .vms()
        .into_iter()
        .map(|(_, session)| session)
        .filter(|session| session.account_id == account_id)
        .filter(|session| crate::bounds::contains(&session.lock().profile.metadata, wanted))
        .collect();
    sessions.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    sessions.truncate(limit);
    sessions
}
