//! A gateway in memory: notes what it is told, and serves nothing.

use crate::node::lock;
use instavm_control::share::{Door, DoorError, Doors};
use instavm_node_api::VmId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// The first port that is given away.
const FIRST: u16 = 20_000;

/// A gateway in memory, with a port for each share. It outlives platforms only as far as its taken ports go.
#[derive(Debug, Default)]
pub struct SimulatedDoors {
    open: Mutex<BTreeMap<String, Opened>>,
    taken: Mutex<BTreeSet<u16>>,
    full: Mutex<bool>,
}

/// A share that is open.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its VM.
    pub vm: VmId,
    /// The VM's port.
    pub port: u16,
    /// Everybody may pass.
    pub is_public: bool,
    /// The port that it is found under.
    pub listen_port: u16,
}

impl SimulatedDoors {
    /// What is open, by the ids of the shares.
    pub fn open_shares(&self) -> BTreeMap<String, Opened> {
        lock(&self.open).clone()
    }

    /// From now on, this port is another program's.
    pub fn take_port(&self, port: u16) {
        lock(&self.taken).insert(port);
    }

    /// From now on there is no room, or there is again.
    pub fn set_full(&self, is_full: bool) {
        *lock(&self.full) = is_full;
    }

    /// Forgets what was open, as a process that ends does.
    pub(crate) fn close_all(&self) {
        lock(&self.open).clear();
    }
}

impl Doors for SimulatedDoors {
    fn open(&self, door: Door) -> Result<Option<u16>, DoorError> {
        if door.is_over {
            return Ok(door.listen_port);
        }
        if *lock(&self.full) {
            let reason = "no port is free".to_owned();
            return Err(DoorError { reason });
        }
        let mut open = lock(&self.open);
        let taken = lock(&self.taken);
        let is_free = |port: &u16| {
            !taken.contains(port) && !open.values().any(|other| other.listen_port == *port)
        };
        let port = door.listen_port.filter(is_free);
        let port = port.or_else(|| (FIRST..).find(is_free)).unwrap_or(FIRST);
        open.insert(
            door.id,
            Opened {
                vm: door.vm,
                port: door.port,
                is_public: door.is_public,
                listen_port: port,
            },
        );
        Ok(Some(port))
    }

    fn set_public(&self, id: &str, is_public: bool) {
        if let Some(share) = lock(&self.open).get_mut(id) {
            share.is_public = is_public;
        }
    }

    fn revoke(&self, id: &str) {
        lock(&self.open).remove(id);
    }

    fn end_vm(&self, vm: &VmId) {
        lock(&self.open).retain(|_, share| share.vm != *vm);
    }

    fn url(&self, _: &str, listen_port: Option<u16>) -> String {
        format!("http://127.0.0.1:{}", listen_port.unwrap_or_default())
    }
}
