//! The policies of VMs in memory, and what resolver and proxy ask of them.
//!
//! Each VM has a gate: its policy, the addresses that its own lookups gave, and its connections through the proxy. All of
//! a question is answered under one lock, so a connection is either judged by a new policy or ended by it.

mod pins;
mod refusal;

pub(crate) use refusal::Rule;

use crate::plan::VMS_PER_SLOT;
use crate::policy::{Policy, Way};
use pins::Pins;
use refusal::Refusals;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The most different names on one connection.
const NAMES: usize = 16;

/// What resolver and proxy ask.
#[derive(Debug)]
pub(crate) struct Egress {
    gates: Box<[Mutex<Gate>]>,
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
    port: u16,
    names: Vec<String>,
    cut: CancellationToken,
}

impl Egress {
    pub(crate) fn new(policies: impl IntoIterator<Item = (u16, Policy)>) -> Self {
        let gates = (0..VMS_PER_SLOT).map(|_| Mutex::default()).collect();
        let egress = Self { gates };
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
            if !open
                .names
                .iter()
                .all(|name| gate.policy.reaches(name, open.port))
            {
                open.cut.cancel();
            }
        }
    }

    /// Makes the gate as for a VM that nobody has had: open, without any memory.
    pub(crate) fn renew(&self, index: u16) {
        let mut gate = self.gate(index);
        let last = gate.last;
        for open in std::mem::take(&mut *gate).open.into_values() {
            open.cut.cancel();
        }
        // Connections that are still ending must not take a new one's number.
        gate.last = last;
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
        gate.last += 1;
        let number = gate.last;
        let cut = CancellationToken::new();
        let open = Open {
            port,
            names: vec![name.to_owned()],
            cut: cut.clone(),
        };
        gate.open.insert(number, open);
        Ok(Pass {
            egress: self.clone(),
            index,
            address,
            port,
            number,
            cut,
        })
    }

    /// Counts a refusal, and logs it unless the VM's refusals fill the log.
    pub(crate) fn refused(&self, index: u16, rule: Rule, what: &str, to: Option<(Ipv4Addr, u16)>) {
        let mut gate = self.gate(index);
        gate.refusals.note(index, rule, what, to, Instant::now());
    }

    /// How many connections and lookups of the VM have been refused since it was made or the daemon started.
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
        Arc::new(Egress::new([(3, only(domains))]))
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
