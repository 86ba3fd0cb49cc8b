//! What a VM may reach beyond the floor.
//!
//! A policy is *open*, when all three flags are set, and then nothing but the floor is closed. Else everything is closed
//! but what the policy names: address ranges, for TCP and UDP at any port; ports 80 and 443 of every host by a flag; and
//! names, for HTTP and HTTPS. Names are looked up by the VM at its own resolver, which answers only for names that the
//! policy reaches and remembers the addresses that it gave. Well-known resolvers that answer by HTTPS are closed under a
//! policy that is not open, unless its lists name them.

mod host;
mod known;

pub(crate) use host::Host;
pub(crate) use known::resolvers;

use crate::egress::Rule;
use ipnet::{IpNet, Ipv4Net};
use known::{PUBLIC, RESOLVER_NAMES};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

/// Numbers of protocols.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const HTTPS: u16 = 443;

/// The most entries of one list.
pub const ENTRIES: usize = 1000;
/// The longest entry.
const ENTRY: usize = 512;

/// A list of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyList {
    /// The domains.
    Domains,
    /// The address ranges.
    Ranges,
}

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PolicyError {
    /// The list.
    pub list: PolicyList,
    /// The entry's place in it; `None` when it is about the whole list.
    pub place: Option<usize>,
    /// What is wrong, naming the entry.
    pub reason: String,
}

/// What a VM may reach beyond the floor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    registries: bool,
    http: bool,
    https: bool,
    domains: Domains,
    ranges: Vec<Ipv4Net>,
}

impl Default for Policy {
    /// The open policy.
    fn default() -> Self {
        Self {
            registries: true,
            http: true,
            https: true,
            domains: Domains::default(),
            ranges: Vec::new(),
        }
    }
}

impl Policy {
    /// A policy of flags and lists: `registries` for the public package registries, `http` and `https` for port 80 and 443
    /// of every host. A domain covers itself and its `www.` form; `*.` before a domain covers everything below it. A range
    /// is `address/length`, or one address; ranges of IPv6 are taken and open nothing, because VMs have none.
    ///
    /// # Errors
    /// [`PolicyError`] about the first entry that is none.
    pub fn new(
        registries: bool,
        http: bool,
        https: bool,
        domains: &[String],
        ranges: &[String],
    ) -> Result<Self, PolicyError> {
        let domains = read(PolicyList::Domains, domains, Domains::read)?;
        let ranges = read(PolicyList::Ranges, ranges, range)?;
        let ranges: Vec<Ipv4Net> = ranges.into_iter().flatten().collect();
        let mut named = Domains::default();
        domains.into_iter().for_each(|domain| named.add(domain));
        Ok(Self {
            registries,
            http,
            https,
            domains: named,
            ranges: Ipv4Net::aggregate(&ranges),
        })
    }

    /// Whether nothing but the floor is closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.registries && self.http && self.https
    }

    /// Ranges that are reached at any port, without overlaps.
    pub(crate) fn ranges(&self) -> &[Ipv4Net] {
        &self.ranges
    }

    /// How connections to a TCP port of any host go.
    pub(crate) fn port(&self, port: u16) -> Way {
        match port {
            _ if self.is_open() => Way::Direct,
            80 if self.http => Way::Direct,
            443 if self.https => Way::Direct,
            80 | 443 if self.registries || !self.domains.is_empty() => Way::ByName,
            _ => Way::Closed,
        }
    }

    /// Whether HTTP or HTTPS to this name, in the spelling of [`Host::Name`], may pass at this port.
    pub(crate) fn reaches(&self, name: &str, port: u16) -> bool {
        match self.port(port) {
            Way::Direct => true,
            Way::ByName => self.names(name),
            Way::Closed => false,
        }
    }

    /// Whether the VM may look this name up.
    pub(crate) fn resolves(&self, name: &str) -> bool {
        let by_flag = self.http || self.https;
        self.is_open() || self.names(name) || (by_flag && !RESOLVER_NAMES.cover(name))
    }

    /// Whether packets to this address, protocol and port pass without asking for a name.
    pub(crate) fn passes(&self, address: Ipv4Addr, protocol: u8, port: u16) -> bool {
        self.judge(address, protocol, port).is_ok()
    }

    /// As [`Policy::passes`], or the rule that is against it.
    pub(crate) fn judge(&self, address: Ipv4Addr, protocol: u8, port: u16) -> Result<(), Rule> {
        let within = || self.ranges.iter().any(|range| range.contains(&address));
        if self.is_open() || (matches!(protocol, TCP | UDP) && within()) {
            return Ok(());
        }
        if protocol != TCP || self.port(port) != Way::Direct {
            return Err(Rule::Port);
        }
        if port == HTTPS && resolvers().contains(&address) {
            return Err(Rule::Resolver);
        }
        Ok(())
    }

    fn names(&self, name: &str) -> bool {
        self.domains.cover(name) || (self.registries && PUBLIC.cover(name))
    }
}

/// How connections to a port of any host go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As they are.
    Direct,
    /// Through the proxy, which asks for the name.
    ByName,
    /// Not at all.
    Closed,
}

/// A set of domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Domains {
    exact: HashSet<String>,
    /// Domains of which everything below is covered.
    below: HashSet<String>,
}

enum Domain {
    Exact(String),
    Below(String),
}

impl Domains {
    fn read(entry: &str) -> Result<Domain, &'static str> {
        let (name, below) = match entry.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (entry, false),
        };
        match Host::read(name) {
            Some(Host::Name(name)) if below => Ok(Domain::Below(name)),
            Some(Host::Name(name)) => Ok(Domain::Exact(name)),
            Some(Host::Address) => Err("is an address: put it into allowed_cidrs"),
            None => Err(
                "is no domain: write a host's name, or `*.` and a name, without scheme, port or path",
            ),
        }
    }

    fn add(&mut self, domain: Domain) {
        match domain {
            Domain::Exact(name) => self.exact.insert(name),
            Domain::Below(name) => self.below.insert(name),
        };
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    fn cover(&self, name: &str) -> bool {
        let exact = |name: &str| self.exact.contains(name);
        if exact(name) || name.strip_prefix("www.").is_some_and(exact) {
            return true;
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if self.below.contains(parent) {
                return true;
            }
            rest = parent;
        }
        false
    }
}

fn range(entry: &str) -> Result<Option<Ipv4Net>, &'static str> {
    // Leading zeros are octal to some readers: they are refused.
    let whole = match entry.split_once('/') {
        None => entry.parse::<IpAddr>().ok().map(IpNet::from),
        Some((address, length)) => {
            let plain = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            let length = length.parse().ok().filter(|_| plain);
            let address = address.parse::<IpAddr>().ok();
            address
                .zip(length)
                .and_then(|(address, length)| IpNet::new(address, length).ok())
        }
    };
    let net = whole.ok_or("is no address range: write it as address/length")?;
    Ok(match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    })
}

fn read<T>(
    list: PolicyList,
    entries: &[String],
    read: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<Vec<T>, PolicyError> {
    if entries.len() > ENTRIES {
        let place = None;
        let reason = format!(
            "the list has {} entries; at most {ENTRIES} are taken",
            entries.len()
        );
        return Err(PolicyError {
            list,
            place,
            reason,
        });
    }
    let one = |(place, entry): (usize, &String)| {
        let place = Some(place);
        if entry.len() > ENTRY {
            let reason = format!("an entry of {} bytes is too long", entry.len());
            return Err(PolicyError {
                list,
                place,
                reason,
            });
        }
        read(entry).map_err(|why| {
            let reason = format!("{entry:?} {why}");
            PolicyError {
                list,
                place,
                reason,
            }
        })
    };
    entries.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(domains: &[&str], ranges: &[&str]) -> Result<Policy, PolicyError> {
        let own = |list: &[&str]| {
            list.iter()
                .map(|&entry| entry.to_owned())
                .collect::<Vec<_>>()
        };
        Policy::new(false, false, false, &own(domains), &own(ranges))
    }

    #[test]
    fn a_domain_covers_itself_and_its_www_form() {
        let policy = policy(&["Example.COM.", "*.bücher.example"], &[]).unwrap();
        for name in [
            "example.com",
            "www.example.com",
            "a.xn--bcher-kva.example",
            "b.a.xn--bcher-kva.example",
        ] {
            assert!(
                policy.reaches(name, 443) && policy.reaches(name, 80),
                "{name}"
            );
            assert!(policy.resolves(name), "{name}");
        }
        for name in [
            "a.example.com",
            "www.www.example.com",
            "notexample.com",
            "example.com.evil.test",
            "com",
            "xn--bcher-kva.example",
            "example",
            "axn--bcher-kva.example",
        ] {
            assert!(
                !policy.reaches(name, 443) && !policy.resolves(name),
                "{name}"
            );
        }
        assert!(!policy.reaches("example.com", 8443));
    }

    #[test]
    fn flags_open_ports_of_every_host() {
        let none: &[String] = &[];
        let http = Policy::new(false, true, false, none, none).unwrap();
        assert_eq!((http.port(80), http.port(443)), (Way::Direct, Way::Closed));
        assert!(http.resolves("any.test") && !http.reaches("any.test", 443));
        let registries = Policy::new(true, false, false, none, none).unwrap();
        assert_eq!(registries.port(443), Way::ByName);
        assert!(registries.reaches("pypi.org", 443) && !registries.reaches("any.test", 443));
        assert!(Policy::default().is_open());
        assert!(
            !Policy::new(false, true, true, none, none)
                .unwrap()
                .is_open()
        );
        let closed = Policy::new(false, false, false, none, none).unwrap();
        assert_eq!(
            (closed.port(80), closed.port(443)),
            (Way::Closed, Way::Closed)
        );
        assert!(!closed.resolves("pypi.org"));
    }

    #[test]
    fn ranges_are_for_tcp_and_udp_at_any_port() {
        let policy = policy(&[], &["198.51.100.7/24", "203.0.113.9", "2001:db8::/32"]).unwrap();
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        for (to, protocol, passes) in [
            ("198.51.100.255", 6, true),
            ("198.51.100.0", 17, true),
            ("198.51.100.1", 1, false),
            ("203.0.113.9", 6, true),
            ("203.0.113.8", 6, false),
        ] {
            assert_eq!(
                policy.passes(address(to), protocol, 22),
                passes,
                "{to} {protocol}"
            );
        }
        assert!(!policy.resolves("example.com"));
    }

    #[test]
    fn a_bad_entry_is_named() {
        for bad in [
            "",
            "*",
            "*.",
            "**.a",
            "a.*.b",
            "https://a.test",
            "a.test/x",
            "a.test:443",
            "1.2.3.4",
            "*.1.2.3.4",
            "0x7f.1",
            "a b",
            "u@a.test",
        ] {
            let error = policy(&["good.test", bad], &[]).unwrap_err();
            assert_eq!(
                (error.list, error.place),
                (PolicyList::Domains, Some(1)),
                "{bad}"
            );
            assert!(
                error.reason.contains(&format!("{bad:?}")),
                "{}",
                error.reason
            );
        }
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "a/8",
            "10.0.0.0/-1",
            "::1/129",
            "010.0.0.1/8",
        ] {
            let error = policy(&[], &["10.0.0.0/8", bad]).unwrap_err();
            assert_eq!(
                (error.list, error.place),
                (PolicyList::Ranges, Some(1)),
                "{bad}"
            );
        }
        let many = vec!["a.test".to_owned(); ENTRIES + 1];
        let error = Policy::new(true, true, true, &many, &[]).unwrap_err();
        assert_eq!((error.list, error.place), (PolicyList::Domains, None));
        let long = ["x".repeat(1 << 20)];
        let error = Policy::new(true, true, true, &long, &[]).unwrap_err();
        assert!(error.reason.len() < 100);
    }

    #[test]
    fn the_file_of_registries_can_be_read_whole() {
        for line in known::lines(known::REGISTRIES) {
            assert!(Domains::read(line).is_ok(), "{line}");
        }
        for name in [
            "pypi.org",
            "files.pythonhosted.org",
            "registry.npmjs.org",
            "static.crates.io",
            "proxy.golang.org",
            "rubygems.org",
            "repo.maven.apache.org",
            "repo.packagist.org",
            "deb.debian.org",
            "archive.ubuntu.com",
            "de.archive.ubuntu.com",
            "dl-cdn.alpinelinux.org",
        ] {
            assert!(PUBLIC.cover(name), "{name}");
        }
    }

    #[test]
    fn resolvers_of_others_are_closed_unless_they_are_named() {
        for line in known::lines(known::RESOLVERS) {
            let address = line.parse::<Ipv4Addr>().is_ok();
            assert!(address || Domains::read(line).is_ok(), "{line}");
        }
        let nine = Ipv4Addr::new(9, 9, 9, 9);
        let web = Policy::new(false, true, true, &[], &[]).unwrap();
        assert_eq!(web.judge(nine, TCP, 443), Err(Rule::Resolver));
        assert_eq!(web.judge(nine, TCP, 80), Ok(()));
        assert!(!web.resolves("dns.quad9.net") && web.resolves("quad9.net"));
        let named = ["dns.quad9.net".to_owned()];
        let named = Policy::new(false, true, true, &named, &["9.9.9.9".to_owned()]).unwrap();
        assert!(named.passes(nine, TCP, 443) && named.resolves("dns.quad9.net"));
        let open = Policy::default();
        assert!(open.passes(nine, TCP, 443) && open.resolves("dns.google"));
    }
}
