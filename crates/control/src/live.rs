//! What is in memory: sessions by id, and the VMs that live or are being made.

use crate::error::{Kind, Problem};
use crate::session::service::Session;
use instavm_node_api::VmId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Sessions and VMs in memory. Every VM that lives or is being made is here; sessions without one may be dropped and
/// loaded again from their rows.
#[derive(Debug, Default)]
pub(crate) struct Live {
    sessions: RwLock<HashMap<String, Arc<Session>>>,
    vms: Mutex<Vms>,
}

#[derive(Debug, Default)]
struct Vms {
    by_id: HashMap<VmId, Arc<Session>>,
    per_account: HashMap<i64, usize>,
}

impl Live {
    pub(crate) fn session(&self, id: &str) -> Option<Arc<Session>> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(id).cloned()
    }

    /// Puts a session there unless one with its id is there already; returns the one that is.
    pub(crate) fn keep_session(&self, session: Session) -> Arc<Session> {
        let mut sessions = self
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        sessions
            .entry(session.id.clone())
            .or_insert_with(|| Arc::new(session))
            .clone()
    }

    /// Drops the sessions that have no VM and that nobody holds.
    pub(crate) fn sweep(&self) {
        let mut sessions = self
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Nobody can get hold of one meanwhile: that takes this lock.
        sessions.retain(|_, session| Arc::strong_count(session) > 1);
    }

    pub(crate) fn session_count(&self) -> usize {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.len()
    }

    /// Takes a VM in, unless its account has `limit` of them.
    pub(crate) fn admit(
        &self,
        vm: &VmId,
        session: &Arc<Session>,
        limit: usize,
    ) -> Result<(), Problem> {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        let count = vms.per_account.entry(session.account_id).or_default();
        if *count >= limit {
            return Err(Problem::new(
                Kind::TooMany,
                format!(
                    "this account has {count} VMs and the limit is {limit}: end some, or wait until they expire"
                ),
            ));
        }
        *count += 1;
        vms.by_id.insert(vm.clone(), session.clone());
        Ok(())
    }

    /// Lets a VM go; returns its session when it was there.
    pub(crate) fn release(&self, vm: &VmId) -> Option<Arc<Session>> {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        let session = vms.by_id.remove(vm)?;
        if let Some(count) = vms.per_account.get_mut(&session.account_id) {
            *count -= 1;
            if *count == 0 {
                vms.per_account.remove(&session.account_id);
            }
        }
        Some(session)
    }

    pub(crate) fn has_vm(&self, vm: &VmId) -> bool {
        let vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        vms.by_id.contains_key(vm)
    }

    /// All VMs with their sessions.
    pub(crate) fn vms(&self) -> Vec<(VmId, Arc<Session>)> {
        let vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        vms.by_id
            .iter()
            .map(|(id, session)| (id.clone(), session.clone()))
            .collect()
    }
}
