//! One share: who may pass, what is open, how it ends.

use super::upstream::Pool;
use super::{Ended, Share};
use instavm_node_api::VmId;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How long after its making a share that has not answered yet is taken for one whose app is starting.
const STARTING: Duration = Duration::from_secs(120);

/// One share.
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) account_id: i64,
    pub(super) vm: VmId,
    pub(super) port: u16,
    pub(super) pool: Pool,
    /// Requests at once.
    pub(super) requests: Arc<Semaphore>,
    created_at: SystemTime,
    is_public: AtomicBool,
    /// The app has answered a request.
    answered: AtomicBool,
    /// The port of its own, if it has one, and what listens there: that holds on to the share, so not the other way.
    slot: OnceLock<(u16, Weak<Slot>)>,
    ended: OnceLock<Ended>,
    /// Cancelled when it ends: cuts everything that is open.
    over: CancellationToken,
    /// Cancelled when it becomes private: cuts what strangers have open.
    open_door: Mutex<CancellationToken>,
}

/// A port that is listened on, and the share that it stands for. The port of a share that has ended may be given to another
/// one; connections that are open stay with the share that they were made to.
pub(super) struct Slot {
    port: u16,
    entry: Mutex<Arc<Entry>>,
    /// Cancelled when nobody is to listen any more.
    closed: CancellationToken,
}

impl Slot {
    pub(super) fn new(port: u16, entry: &Arc<Entry>) -> Arc<Self> {
        let slot = Arc::new(Self {
            port,
            entry: Mutex::new(entry.clone()),
            closed: CancellationToken::new(),
        });
        entry.slot.get_or_init(|| (port, Arc::downgrade(&slot)));
        slot
    }

    /// Gives the port to another share.
    pub(super) fn give(self: &Arc<Self>, entry: &Arc<Entry>) {
        *self.entry.lock().unwrap_or_else(PoisonError::into_inner) = entry.clone();
        entry.slot.get_or_init(|| (self.port, Arc::downgrade(self)));
    }

    /// The share that it stands for now.
    pub(super) fn entry(&self) -> Arc<Entry> {
        let entry = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
        entry.clone()
    }

    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Entry {
    pub(super) fn new(share: Share, requests: usize) -> Self {
        let over = CancellationToken::new();
        Self {
            id: share.id,
            account_id: share.account_id,
            vm: share.vm,
            port: share.port,
            pool: Pool::default(),
            requests: Arc::new(Semaphore::new(requests)),
            created_at: share.created_at,
            is_public: AtomicBool::new(share.is_public),
            answered: AtomicBool::new(false),
            slot: OnceLock::new(),
            ended: OnceLock::new(),
            open_door: Mutex::new(over.child_token()),
            over,
        }
    }

    pub(super) fn listen_port(&self) -> Option<u16> {
        self.slot.get().map(|(port, _)| *port)
    }

    /// What listens for it.
    pub(super) fn slot(&self) -> Option<Arc<Slot>> {
        self.slot.get().and_then(|(_, slot)| slot.upgrade())
    }

    pub(super) fn is_public(&self) -> bool {
        self.is_public.load(Ordering::Acquire)
    }

    pub(super) fn set_public(&self, is_public: bool) {
        let was = self.is_public.swap(is_public, Ordering::AcqRel);
        if was && !is_public {
            let mut door = self.door();
            door.cancel();
            *door = self.over.child_token();
        }
    }

    fn door(&self) -> std::sync::MutexGuard<'_, CancellationToken> {
        self.open_door
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What cuts a request of somebody who was let pass because the share is public; `None` when it is not.
    pub(super) fn public_pass(&self) -> Option<CancellationToken> {
        let door = self.door();
        self.is_public().then(|| door.clone())
    }

    /// What cuts a request of the owner.
    pub(super) fn owners_pass(&self) -> CancellationToken {
        self.over.clone()
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.get().copied()
    }

    pub(super) fn end(&self, why: Ended) {
        self.ended.get_or_init(|| why);
        self.over.cancel();
        self.pool.clear();
    }

    /// Stops listening for it.
    pub(super) fn close(&self) {
        if let Some(slot) = self.slot() {
            slot.closed.cancel();
        }
    }

    pub(super) fn note_answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether its app may still be starting: it is young and has never answered.
    pub(super) fn is_starting(&self) -> bool {
        let age = SystemTime::now().duration_since(self.created_at);
        !self.answered.load(Ordering::Relaxed) && age.is_ok_and(|age| age < STARTING)
    }
}
