//! What was refused: counted by rule, and told at a bounded rate.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Refusals that are told of one VM within [`WINDOW`].
const TOLD: u32 = 30;
const WINDOW: Duration = Duration::from_secs(60);
/// The most of what a VM has named that is told.
const LONGEST: usize = 253;

/// The rule that refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The policy does not reach the name.
    Name,
    /// The policy reaches the name, but the address is none that the VM was given for it.
    Address,
    /// The connection names no host.
    Nameless,
    /// What was sent is no HTTP request or no TLS greeting, or one that two readers would read in two ways.
    Malformed,
    /// A question that is not asked for addresses.
    Question,
    /// The VM has too many connections through the proxy.
    Crowd,
    /// The policy reaches neither the address nor the port.
    Port,
    /// A well-known resolver of others: names are looked up at the VM's own.
    Resolver,
    /// An address that no policy opens.
    Floor,
    /// A service of the host.
    Host,
    /// The VM has too many connections.
    Connections,
    /// The VM asks its resolver too often.
    Flood,
    /// A source address that is not the VM's.
    Source,
    /// IPv6, which VMs do not have.
    Ipv6,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 14] = [
        Rule::Name,
        Rule::Address,
        Rule::Nameless,
        Rule::Malformed,
        Rule::Question,
        Rule::Crowd,
        Rule::Port,
        Rule::Resolver,
        Rule::Floor,
        Rule::Host,
        Rule::Connections,
        Rule::Flood,
        Rule::Source,
        Rule::Ipv6,
    ];

    /// Its name, one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Name => "name",
            Rule::Address => "address",
            Rule::Nameless => "nameless",
            Rule::Malformed => "malformed",
            Rule::Question => "question",
            Rule::Crowd => "crowd",
            Rule::Port => "port",
            Rule::Resolver => "resolver",
            Rule::Floor => "floor",
            Rule::Host => "host",
            Rule::Connections => "connections",
            Rule::Flood => "flood",
            Rule::Source => "source",
            Rule::Ipv6 => "ipv6",
        }
    }

    /// What it says, in plain words.
    #[must_use]
    pub fn explained(self) -> &'static str {
        match self {
            Rule::Name => "the policy does not reach this name",
            Rule::Address => "the address is none that the VM's own lookup of this name gave",
            Rule::Nameless => "the connection names no host, and the policy goes by names",
            Rule::Malformed => "no plain HTTP request and no TLS greeting",
            Rule::Question => "only addresses are looked up under a policy",
            Rule::Crowd => "too many connections through the proxy",
            Rule::Port => "the policy reaches neither this address nor this port",
            Rule::Resolver => "resolvers of others are closed under a policy",
            Rule::Floor => "no policy opens this address",
            Rule::Host => "services of the host are closed",
            Rule::Connections => "too many connections",
            Rule::Flood => "too many questions to the resolver",
            Rule::Source => "the source address is not the VM's",
            Rule::Ipv6 => "VMs have no IPv6",
        }
    }

    /// The rule with this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == name)
    }
}

/// A refusal, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The VM's index.
    pub vm: u16,
    /// When.
    pub at: SystemTime,
    /// The rule.
    pub rule: Rule,
    /// What the VM wanted: `dns`, `http`, `https`, `tcp`, `udp`, `icmp` or `other`.
    pub protocol: &'static str,
    /// The name that it gave, if it gave one.
    pub name: Option<String>,
    /// Where to, if that is known.
    pub to: Option<SocketAddrV4>,
    /// How many refusals of this VM were not told before this one.
    pub untold: u64,
}

/// How often each rule has refused.
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; Rule::ALL.len()]);

impl Counts {
    pub(super) fn add(&self, rule: Rule) {
        self.0[rule as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn all(&self) -> Vec<(Rule, u64)> {
        let of = |rule: Rule| (rule, self.0[rule as usize].load(Ordering::Relaxed));
        Rule::ALL.into_iter().map(of).collect()
    }
}

/// The refusals of one VM.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    total: u64,
    window: Option<Instant>,
    told: u32,
    untold: u64,
}

/// What the VM wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) protocol: &'static str,
    pub(crate) name: Option<&'a str>,
    pub(crate) to: Option<(Ipv4Addr, u16)>,
}

impl Refusals {
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// One more; what is to be told of it, if its turn has come.
    pub(super) fn note(
        &mut self,
        vm: u16,
        rule: Rule,
        wanted: Wanted<'_>,
        now: Instant,
    ) -> Option<Refused> {
        self.total += 1;
        if self
            .window
            .is_none_or(|start| now.duration_since(start) >= WINDOW)
        {
            self.window = Some(now);
            self.told = 0;
        }
        if self.told >= TOLD {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        let shortened = |name: &str| name.chars().take(LONGEST).collect();
        Some(Refused {
            vm,
            at: SystemTime::now(),
            rule,
            protocol: wanted.protocol,
            name: wanted.name.filter(|name| !name.is_empty()).map(shortened),
            to: wanted
                .to
                .map(|(address, port)| SocketAddrV4::new(address, port)),
            untold: std::mem::take(&mut self.untold),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'static> = Wanted {
        protocol: "dns",
        name: Some("a.test"),
        to: None,
    };

    #[test]
    fn all_are_counted_and_a_few_told() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        let told = (0..100).filter_map(|_| refusals.note(0, Rule::Name, WANTED, now));
        assert_eq!(told.count(), TOLD as usize);
        assert_eq!(refusals.total(), 100);
        let next = refusals.note(0, Rule::Name, WANTED, now + WINDOW).unwrap();
        assert_eq!(next.untold, 100 - u64::from(TOLD));
        let next = refusals.note(0, Rule::Name, WANTED, now + WINDOW).unwrap();
        assert_eq!(next.untold, 0);
    }

    #[test]
    fn rules_are_told_apart_by_their_names() {
        for (place, rule) in Rule::ALL.into_iter().enumerate() {
            assert_eq!(rule as usize, place);
            assert_eq!(Rule::of(rule.as_str()), Some(rule));
        }
    }

    #[test]
    fn a_long_name_is_cut() {
        let name = "ü".repeat(10_000);
        let wanted = Wanted {
            name: Some(&name),
            ..WANTED
        };
        let told = Refusals::default().note(0, Rule::Name, wanted, Instant::now());
        assert_eq!(told.unwrap().name.unwrap().chars().count(), LONGEST);
    }
}
