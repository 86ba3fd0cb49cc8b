//! The policies of VMs in memory, and what resolver and proxy ask of them.
//!
//! Each VM has a gate: its policy, the addresses that its own lookups gave, and its connections through the proxy. All of
//! a question is answered under one lock, so a connection is either judged by a new policy or ended by it.

mod journal;
mod pins;
mod refusal;

pub(crate) use refusal::Wanted;
pub use refusal::{Refused, Rule};

use crate::plan::VMS_PER_SLOT;
use crate::policy::{Policy, TCP, Way};
use journal::Journal;
use pins::Pins;
use refusal::{Counts, Refusals};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// The most different names on one connection.
const NAMES: usize = 16;
/// How many refusals a listener may fall behind.
const BEHIND: usize = 1024;

/// What resolver and proxy ask.
#[derive(Debug)]
pub(crate) struct Egress {
    gates: Box<[Mutex<Gate>]>,
    counts: Counts,
    refused: broadcast::Sender<Refused>,
}

#[derive(Debug, Default)]
struct Gate {
    policy: Arc<Policy>,
    pins: Pins,
    open: HashMap<u64, Open>,
    last: u64,
    refusals: Refusals,
}

/// A connection through the proxy.
#[derive(Debug)]
struct Open {
    address: Ipv4Addr,
    port: u16,
    /// None while it passes without a name.
    names: Vec<String>,
    cut: CancellationToken,
}

impl Open {
    fn is_allowed(&self, policy: &Policy) -> bool {
        if self.names.is_empty() {
            return policy.passes(self.address, TCP, self.port);
        }
        self.names
            .iter()
            .all(|name| policy.reaches(name, self.port))
    }
}

impl Egress {
    /// With the policies of VMs that live. What their lookups give is also kept in files in `folder`.
    pub(crate) fn new(
        policies: impl IntoIterator<Item = (u16, Policy)>,
        folder: Option<&Path>,
    ) -> Self {
        let gate = |index| {
            let journal = folder.map(|folder| Journal::new(folder, index));
            let gate = Gate {
                pins: journal.map(Pins::open).unwrap_or_default(),
                ..Gate::default()
            };
            Mutex::new(gate)
        };
        let egress = Self {
            gates: (0..VMS_PER_SLOT).map(gate).collect(),
            counts: Counts::default(),
            refused: broadcast::Sender::new(BEHIND),
        };
        for (index, policy) in policies {
            egress.replace(index, Arc::new(policy));
        }
        egress
    }

    fn gate(&self, index: u16) -> MutexGuard<'_, Gate> {
        let gate = &self.gates[usize::from(index % VMS_PER_SLOT)];
        // A gate is whole after every single statement.
        gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VM's policy.
    pub(crate) fn policy(&self, index: u16) -> Arc<Policy> {
        self.gate(index).policy.clone()
    }

    /// Gives the VM another policy, for all that comes from now on; returns the old one.
    pub(crate) fn replace(&self, index: u16, policy: Arc<Policy>) -> Arc<Policy> {
        std::mem::replace(&mut self.gate(index).policy, policy)
    }

    /// Ends the connections through the proxy that the VM's policy does not allow.
    pub(crate) fn cut(&self, index: u16) {
        let gate = self.gate(index);
        for open in gate.open.values() {
            if !open.is_allowed(&gate.policy) {
                open.cut.cancel();
            }
        }
    }

    /// Makes the gate as for a VM that nobody has had: open, without any memory.
    pub(crate) fn renew(&self, index: u16) {
        let mut gate = self.gate(index);
        for open in std::mem::take(&mut gate.open).into_values() {
            open.cut.cancel();
        }
        gate.policy = Arc::default();
        gate.refusals = Refusals::default();
        gate.pins.clear();
        // The numbers go on: connections that are still ending must not take a new one's.
    }

    /// Forgets what the VM's lookups gave: it is gone.
    pub(crate) fn forget(&self, index: u16) {
        self.gate(index).pins.clear();
    }

    /// Remembers what a lookup of the VM gave.
    pub(crate) fn pin(&self, index: u16, name: &str, addresses: &[(Ipv4Addr, Duration)]) {
        self.gate(index).pins.note(name, addresses, Instant::now());
    }

    /// Lets a connection of the VM through the proxy, to this name at this address, or says what is against it.
    pub(crate) fn admit(
        self: &Arc<Self>,
        index: u16,
        name: &str,
        address: Ipv4Addr,
        port: u16,
    ) -> Result<Pass, Rule> {
        let mut gate = self.gate(index);
        gate.judge(name, address, port)?;
        Ok(self.enter(&mut gate, index, (address, port), vec![name.to_owned()]))
    }

    /// Lets a connection pass to an address that the policy opens by itself.
    pub(crate) fn admit_unnamed(
        self: &Arc<Self>,
        index: u16,
        address: Ipv4Addr,
        port: u16,
    ) -> Result<Pass, Rule> {
        let mut gate = self.gate(index);
        gate.policy.judge(address, TCP, port)?;
        Ok(self.enter(&mut gate, index, (address, port), Vec::new()))
    }

    fn enter(
        self: &Arc<Self>,
        gate: &mut Gate,
        index: u16,
        (address, port): (Ipv4Addr, u16),
        names: Vec<String>,
    ) -> Pass {
        gate.last += 1;
        let number = gate.last;
        let cut = CancellationToken::new();
        let open = Open {
            address,
            port,
            names,
            cut: cut.clone(),
        };
        gate.open.insert(number, open);
        Pass {
            egress: self.clone(),
            index,
            address,
            port,
            number,
            cut,
        }
    }

    /// Counts a refusal of resolver or proxy, and tells it unless too many of the VM's have been told.
    pub(crate) fn refused(&self, index: u16, rule: Rule, wanted: Wanted<'_>) {
        self.counts.add(rule);
        self.tell(index, rule, wanted);
    }

    /// Tells a refusal that the kernel has counted.
    pub(crate) fn tell(&self, index: u16, rule: Rule, wanted: Wanted<'_>) {
        let told = self
            .gate(index)
            .refusals
            .note(index, rule, wanted, Instant::now());
        if let Some(refused) = told {
            tracing::info!(
                target: "instavm::egress",
                vm = index,
                rule = rule.as_str(),
                protocol = refused.protocol,
                name = refused.name,
                to = refused.to.map(tracing::field::display),
                untold = refused.untold,
                "refused"
            );
            // Nobody may be listening.
            let _ = self.refused.send(refused);
        }
    }

    /// The refusals that are told from now on.
    pub(crate) fn told(&self) -> broadcast::Receiver<Refused> {
        self.refused.subscribe()
    }

    /// How often resolver and proxy have refused by each rule.
    pub(crate) fn counts(&self) -> Vec<(Rule, u64)> {
        self.counts.all()
    }

    /// All policies that are not open.
    pub(crate) fn policies(&self) -> Vec<(u16, Arc<Policy>)> {
        let all = (0..VMS_PER_SLOT).map(|index| (index, self.policy(index)));
        all.filter(|(_, policy)| !policy.is_open()).collect()
    }

    /// How many refusals of the VM have been noticed since it was made or the daemon started.
    pub(crate) fn refusals(&self, index: u16) -> u64 {
        self.gate(index).refusals.total()
    }
}

impl Gate {
    fn judge(&self, name: &str, address: Ipv4Addr, port: u16) -> Result<(), Rule> {
        if !self.policy.reaches(name, port) {
            return Err(Rule::Name);
        }
        let known =
            self.policy.port(port) == Way::Direct || self.pins.hold(name, address, Instant::now());
        if known { Ok(()) } else { Err(Rule::Address) }
    }
}

/// A connection that was let through; it is on record until this is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    egress: Arc<Egress>,
    index: u16,
    address: Ipv4Addr,
    port: u16,
    number: u64,
    cut: CancellationToken,
}

impl Pass {
    /// Returns when the policy does not allow the connection any more.
    pub(crate) async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Lets a further name pass on the same connection, or says what is against it.
    pub(crate) fn also(&self, name: &str) -> Result<(), Rule> {
        let mut gate = self.egress.gate(self.index);
        gate.judge(name, self.address, self.port)?;
        // A connection that is not on record any more has been cut.
        let open = gate.open.get_mut(&self.number).ok_or(Rule::Name)?;
        if open.names.iter().any(|known| known == name) {
            return Ok(());
        }
        if open.names.len() >= NAMES {
            return Err(Rule::Malformed);
        }
        open.names.push(name.to_owned());
        Ok(())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.egress.gate(self.index).open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
    const HOUR: Duration = Duration::from_secs(3600);

    fn only(domains: &[&str]) -> Policy {
        let domains: Vec<String> = domains.iter().map(|&name| name.to_owned()).collect();
        Policy::new(false, false, false, &domains, &[]).unwrap()
    }

    fn egress(domains: &[&str]) -> Arc<Egress> {
        Arc::new(Egress::new([(3, only(domains))], None))
    }

    #[test]
    fn a_name_passes_to_the_addresses_that_this_vm_was_given_for_it() {
        let egress = egress(&["a.test", "b.test"]);
        egress.pin(3, "a.test", &[(HERE, HOUR)]);
        egress.pin(4, "a.test", &[(THERE, HOUR)]);
        assert!(egress.admit(3, "a.test", HERE, 443).is_ok());
        let refused = |name, address, port| egress.admit(3, name, address, port).unwrap_err();
        assert_eq!(refused("a.test", THERE, 443), Rule::Address);
        assert_eq!(refused("b.test", HERE, 443), Rule::Address);
        assert_eq!(refused("c.test", HERE, 443), Rule::Name);
        assert_eq!(refused("a.test", HERE, 22), Rule::Name);
    }

    #[test]
    fn a_change_ends_what_it_no_longer_allows() {
        let egress = egress(&["a.test", "b.test"]);
        egress.pin(3, "a.test", &[(HERE, HOUR)]);
        egress.pin(3, "b.test", &[(HERE, HOUR)]);
        let a = egress.admit(3, "a.test", HERE, 80).unwrap();
        let b = egress.admit(3, "b.test", HERE, 80).unwrap();
        let both = egress.admit(3, "b.test", HERE, 80).unwrap();
        both.also("a.test").unwrap();
        egress.replace(3, Arc::new(only(&["b.test"])));
        egress.cut(3);
        assert!(a.cut.is_cancelled() && both.cut.is_cancelled() && !b.cut.is_cancelled());
        assert_eq!(b.also("a.test"), Err(Rule::Name));
        egress.renew(3);
        assert!(b.cut.is_cancelled());
        assert!(egress.policy(3).is_open());
        drop((a, b, both));
        assert!(egress.gate(3).open.is_empty());
    }

    #[test]
    fn a_connection_has_a_few_names_only() {
        let egress = egress(&["*.test"]);
        let names: Vec<String> = (0..=NAMES)
            .map(|number| format!("n{number}.test"))
            .collect();
        for name in &names {
            egress.pin(3, name, &[(HERE, HOUR)]);
        }
        let pass = egress.admit(3, &names[0], HERE, 80).unwrap();
        for name in &names[..NAMES] {
            pass.also(name).unwrap();
        }
        assert_eq!(pass.also(&names[NAMES]), Err(Rule::Malformed));
    }
}
