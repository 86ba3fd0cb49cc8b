//! The table of an instance, rule by rule.

use super::grammar::{
    Expr, Stmt, above, accept, any, at_most_a_minute, by_map, clamp_segment_size, count, ct, drop,
    equal, faster_than, fib, field, jump, log, masked, masquerade, meta, more_connections_than,
    one_of, prefix, prohibit, redirect, reset, socket_mark, text, unequal,
};
use super::limits::{LIMIT_CHAINS, LIMITS, PROXIED, PROXY_CHAINS, RANGES};
use super::{Firewall, SOCKET_MARK, add, delete, table_of};
use crate::egress::Rule as Reason;
use crate::policy;
use ipnet::Ipv4Net;
use nftables::expr::{Expression, FibFlag, FibResult, MetaKey};
use nftables::schema::{
    Chain, Counter, Map, NfListObject, NfObject, Rule, Set, SetFlag, SetType, SetTypeValue,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use std::borrow::Cow;
use std::net::Ipv4Addr;

/// What a VM never reaches by forwarding, beside all VMs and the operator's ranges: loopback, link-local with the usual
/// metadata address, the metadata addresses of clouds that lie elsewhere, multicast, and addresses that are no one's.
const FLOOR: [(Ipv4Addr, u8); 8] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(100, 100, 100, 200), 32),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(192, 0, 0, 192), 32),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

const FLOOR_SET: &str = "floor_addresses";
const RESOLVER_SET: &str = "resolver_addresses";
/// Rules that answer, so that programs in the VM fail at once and do not wait.
const REFUSING: [Reason; 5] = [
    Reason::Floor,
    Reason::Host,
    Reason::Connections,
    Reason::Port,
    Reason::Resolver,
];
/// Rules that answer nothing.
const DROPPING: [Reason; 3] = [Reason::Source, Reason::Ipv6, Reason::Flood];
/// How many packets that one rule refuses of one VM are told of in a minute. All are counted.
const TOLD: u32 = 20;
const HTTPS: u32 = 443;
/// DNS packets a second that one VM may send, and how many at once.
const DNS_RATE: (u32, u32) = (500, 500);
const DNS_PORT: u32 = 53;
/// Connections that one VM may have open; the host's table of connections is shared by all.
const CONNECTIONS: u32 = 8192;

/// Priorities of our chains. Filters go a little before those of other tables, so that their `accept` is not asked.
const BEFORE_TRACKING: i32 = -300;
const BEFORE_NAT: i32 = -150;
const DESTINATION_NAT: i32 = -100;
const BEFORE_FILTERS: i32 = -10;
const SOURCE_NAT: i32 = 100;
const AFTER_ALL: i32 = 300;

/// What of a VM's own ranges passes.
pub(super) fn passes(set: &str) -> Vec<Stmt> {
    vec![
        equal(meta(MetaKey::L4proto), one_of(&["tcp", "udp"])),
        equal(field("ip", "daddr"), text(format!("@{set}"))),
        accept(),
    ]
}

/// The transaction that puts the table in force.
pub(super) fn table(firewall: &Firewall) -> Vec<NfObject<'static>> {
    let mut writer = Writer::new(firewall);
    writer.sets();
    writer.maps();
    writer.refuse();
    writer.limits();
    writer.source();
    writer.rate();
    writer.floor();
    writer.redirects();
    writer.input();
    writer.forward();
    writer.translate();
    writer.objects
}

struct Writer<'a> {
    firewall: &'a Firewall,
    objects: Vec<NfObject<'static>>,
}

impl<'a> Writer<'a> {
    fn new(firewall: &'a Firewall) -> Self {
        let mut writer = Self {
            firewall,
            objects: Vec::new(),
        };
        // Add, delete, add: the kernel sees one replacement, whether there was a table or not.
        add(&mut writer.objects, table_of(firewall.plan.slot()));
        delete(&mut writer.objects, table_of(firewall.plan.slot()));
        add(&mut writer.objects, table_of(firewall.plan.slot()));
        writer
    }

    /// The ends of what is refused: a chain for each rule that refuses, which counts and tells. TCP gets a reset, because
    /// the kernel sends only a few ICMP errors a second to one address.
    fn refuse(&mut self) {
        self.chain("refuse");
        self.rule(
            "refuse",
            vec![equal(meta(MetaKey::L4proto), text("tcp")), reset()],
        );
        self.rule("refuse", vec![prohibit()]);
        for (reasons, end) in [(&REFUSING[..], jump("refuse")), (&DROPPING[..], drop())] {
            for reason in reasons {
                self.refusal(*reason, end.clone());
            }
        }
    }

    fn refusal(&mut self, reason: Reason, end: Stmt) {
        let (chain, word) = (refusal_chain(reason), reason.as_str());
        let counter = Counter {
            family: NfFamily::INet,
            table: self.name(),
            name: word.into(),
            handle: None,
            packets: Some(0),
            bytes: Some(0),
        };
        add(&mut self.objects, NfListObject::Counter(counter));
        self.chain(chain.clone());
        let told = at_most_a_minute(format!("told_{word}"), TOLD);
        let group = self.firewall.plan.slot().log_group();
        self.rule(chain.clone(), vec![told, log(word, group)]);
        self.rule(chain, vec![count(word), end]);
    }

    fn sets(&mut self) {
        let fixed = FLOOR
            .iter()
            .map(|(address, length)| Ipv4Net::new_assert(*address, *length));
        let all: Vec<Ipv4Net> = fixed
            .chain([self.firewall.plan.range()])
            .chain(self.firewall.denied.iter().map(Ipv4Net::trunc))
            .collect();
        self.addresses(FLOOR_SET, &all);
        let resolvers: Vec<Ipv4Net> = policy::resolvers()
            .iter()
            .map(|address| Ipv4Net::from(*address))
            .collect();
        self.addresses(RESOLVER_SET, &resolvers);
    }

    fn addresses(&mut self, name: &'static str, all: &Vec<Ipv4Net>) {
        let elements: Vec<Expr> = Ipv4Net::aggregate(all).into_iter().map(prefix).collect();
        let set = Set {
            family: NfFamily::INet,
            table: self.name(),
            name: name.into(),
            handle: None,
            set_type: SetTypeValue::Single(SetType::Ipv4Addr),
            policy: None,
            flags: Some([SetFlag::Interval].into()),
            elem: Some(Cow::Owned(elements)),
            timeout: None,
            gc_interval: None,
            size: None,
            comment: None,
        };
        add(&mut self.objects, NfListObject::Set(Box::new(set)));
    }

    fn maps(&mut self) {
        for name in [LIMITS, PROXIED, RANGES] {
            let map = Map {
                family: NfFamily::INet,
                table: self.name(),
                name: name.into(),
                set_type: SetTypeValue::Single(SetType::Ifname),
                ..Map::default()
            };
            add(&mut self.objects, NfListObject::Map(Box::new(map)));
        }
    }

    /// The chains that the maps lead to.
    fn limits(&mut self) {
        for (chain, ports) in LIMIT_CHAINS {
            self.chain(chain);
            self.rule(chain, vec![by_map(RANGES)]);
            for port in ports {
                if *port == HTTPS {
                    let resolver = equal(field("ip", "daddr"), text(format!("@{RESOLVER_SET}")));
                    self.rule(
                        chain,
                        vec![tcp_to(HTTPS), resolver, refuse(Reason::Resolver)],
                    );
                }
                self.rule(chain, vec![tcp_to(*port), accept()]);
            }
            self.rule(chain, vec![refuse(Reason::Port)]);
        }
        for (chain, ports) in PROXY_CHAINS {
            self.chain(chain);
            self.rule(chain, vec![by_map(RANGES)]);
            for port in ports {
                let proxy = redirect(self.firewall.proxy_port);
                self.rule(chain, vec![tcp_to(*port), proxy]);
            }
        }
    }

    fn source(&mut self) {
        let (mask, pattern) = self.firewall.plan.vm_pattern();
        self.chain("source");
        self.rule(
            "source",
            vec![
                unequal(meta(MetaKey::Nfproto), text("ipv4")),
                refuse(Reason::Ipv6),
            ],
        );
        let source = masked(field("ip", "saddr"), mask);
        self.rule(
            "source",
            vec![
                unequal(source, text(pattern.to_string())),
                refuse(Reason::Source),
            ],
        );
        let way_back = fib(FibResult::Oif, &[FibFlag::Saddr, FibFlag::Iif]);
        self.rule(
            "source",
            vec![
                equal(way_back, Expression::Boolean(false)),
                refuse(Reason::Source),
            ],
        );
        self.hook("guard", NfHook::Prerouting, BEFORE_TRACKING);
        self.rule("guard", vec![self.comes_from_vm(), jump("source")]);
    }

    /// What goes over a link above its rate is dropped, each way for itself.
    fn rate(&mut self) {
        let Some(mbit) = self.firewall.rate_mbit else {
            return;
        };
        let sent = above("rate_sent", MetaKey::Iifname, mbit);
        self.hook("rate_in", NfHook::Prerouting, BEFORE_TRACKING + 1);
        self.rule("rate_in", vec![self.comes_from_vm(), sent, drop()]);
        let received = above("rate_received", MetaKey::Oifname, mbit);
        let goes_to_vm = equal(meta(MetaKey::Oifname), self.links());
        self.hook("rate_out", NfHook::Postrouting, AFTER_ALL);
        self.rule("rate_out", vec![goes_to_vm, received, drop()]);
    }

    fn floor(&mut self) {
        let at_gateway = || {
            equal(
                fib(FibResult::Type, &[FibFlag::Daddr, FibFlag::Iif]),
                text("local"),
            )
        };
        let (rate, burst) = DNS_RATE;
        self.chain("gateway");
        self.rule(
            "gateway",
            vec![
                equal(field("udp", "dport"), Expression::Number(DNS_PORT)),
                faster_than("dns_rate", rate, burst),
                refuse(Reason::Flood),
            ],
        );
        self.rule("gateway", vec![dns().0, dns().1, accept()]);
        self.rule("gateway", vec![ping(), accept()]);
        self.rule("gateway", vec![refuse(Reason::Host)]);

        self.chain("floor");
        self.rule("floor", vec![any(ct("state"), &["invalid"]), drop()]);
        self.rule("floor", reply());
        self.rule(
            "floor",
            vec![
                any(ct("state"), &["new"]),
                more_connections_than("connections", CONNECTIONS),
                refuse(Reason::Connections),
            ],
        );
        self.rule("floor", vec![at_gateway(), jump("gateway")]);
        let special = one_of(&["local", "broadcast", "anycast", "multicast"]);
        self.rule(
            "floor",
            vec![
                equal(fib(FibResult::Type, &[FibFlag::Daddr]), special),
                refuse(Reason::Floor),
            ],
        );
        self.rule("floor", vec![floor_destination(), refuse(Reason::Floor)]);
        self.hook("before_nat", NfHook::Prerouting, BEFORE_NAT);
        self.rule("before_nat", vec![self.comes_from_vm(), jump("floor")]);
    }

    fn redirects(&mut self) {
        self.base(
            "redirects",
            NfChainType::NAT,
            NfHook::Prerouting,
            DESTINATION_NAT,
        );
        let at_gateway = equal(
            fib(FibResult::Type, &[FibFlag::Daddr, FibFlag::Iif]),
            text("local"),
        );
        let port = self.firewall.resolver_port;
        self.rule(
            "redirects",
            vec![
                self.comes_from_vm(),
                at_gateway,
                dns().0,
                dns().1,
                redirect(port),
            ],
        );
        self.rule("redirects", vec![by_map(PROXIED)]);
        if self.firewall.upstream {
            // What goes directly otherwise goes by the upstream proxy, except to a VM's own ranges.
            self.rule("redirects", vec![self.comes_from_vm(), by_map(RANGES)]);
            for port in [80, HTTPS] {
                let proxy = redirect(self.firewall.proxy_port);
                self.rule("redirects", vec![self.comes_from_vm(), tcp_to(port), proxy]);
            }
        }
    }

    fn input(&mut self) {
        let ours = || equal(socket_mark(), Expression::Number(SOCKET_MARK));
        self.chain("to_host");
        self.rule(
            "to_host",
            vec![any(ct("state"), &["established", "related"]), accept()],
        );
        self.rule(
            "to_host",
            vec![any(ct("status"), &["dnat"]), ours(), accept()],
        );
        self.rule("to_host", vec![ping(), accept()]);
        self.rule("to_host", vec![refuse(Reason::Host)]);
        self.hook("input", NfHook::Input, BEFORE_FILTERS);
        self.rule("input", vec![self.comes_from_vm(), jump("to_host")]);
        for port in [self.firewall.resolver_port, self.firewall.proxy_port] {
            let port = Expression::Number(u32::from(port));
            let (protocol, destination) = (dns().0, equal(field("th", "dport"), port));
            let elsewhere = self.comes_from_elsewhere();
            self.rule(
                "input",
                vec![elsewhere, protocol, destination, ours(), drop()],
            );
        }
    }

    fn forward(&mut self) {
        let syn = || any(field("tcp", "flags"), &["syn"]);
        self.chain("outbound");
        self.rule("outbound", vec![syn(), clamp_segment_size()]);
        self.rule("outbound", vec![floor_destination(), refuse(Reason::Floor)]);
        self.rule("outbound", vec![by_map(LIMITS)]);
        self.chain("inbound");
        self.rule("inbound", vec![syn(), clamp_segment_size()]);
        self.rule("inbound", reply());
        self.rule("inbound", vec![drop()]);
        self.hook("forward", NfHook::Forward, BEFORE_FILTERS);
        self.rule("forward", vec![self.comes_from_vm(), jump("outbound")]);
        self.rule(
            "forward",
            vec![equal(meta(MetaKey::Oifname), self.links()), jump("inbound")],
        );
    }

    fn translate(&mut self) {
        self.base(
            "translate",
            NfChainType::NAT,
            NfHook::Postrouting,
            SOURCE_NAT,
        );
        let ours = equal(
            field("ip", "saddr"),
            prefix(self.firewall.plan.slot_range()),
        );
        let leaves = unequal(meta(MetaKey::Oifname), self.links());
        // A refusal carries the address that was refused, which may be a VM's: it must arrive with that.
        let outside = unequal(field("ip", "daddr"), prefix(self.firewall.plan.range()));
        self.rule("translate", vec![ours, leaves, outside, masquerade()]);
    }

    fn name(&self) -> Cow<'static, str> {
        self.firewall.plan.slot().table().into()
    }

    fn links(&self) -> Expr {
        text(format!("{}*", self.firewall.plan.slot().link_prefix()))
    }

    fn comes_from_vm(&self) -> Stmt {
        equal(meta(MetaKey::Iifname), self.links())
    }

    fn comes_from_elsewhere(&self) -> Stmt {
        unequal(meta(MetaKey::Iifname), self.links())
    }

    fn chain(&mut self, name: impl Into<Cow<'static, str>>) {
        let chain = Chain {
            family: NfFamily::INet,
            table: self.name(),
            name: name.into(),
            ..Chain::default()
        };
        add(&mut self.objects, NfListObject::Chain(chain));
    }

    fn hook(&mut self, name: &'static str, hook: NfHook, priority: i32) {
        self.base(name, NfChainType::Filter, hook, priority);
    }

    fn base(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
        let chain = Chain {
            family: NfFamily::INet,
            table: self.name(),
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        };
        add(&mut self.objects, NfListObject::Chain(chain));
    }

    fn rule(&mut self, chain: impl Into<Cow<'static, str>>, statements: Vec<Stmt>) {
        let rule = Rule {
            family: NfFamily::INet,
            table: self.name(),
            chain: chain.into(),
            expr: Cow::Owned(statements),
            ..Rule::default()
        };
        add(&mut self.objects, NfListObject::Rule(rule));
    }
}

/// UDP or TCP, to the DNS port.
fn dns() -> (Stmt, Stmt) {
    (
        equal(meta(MetaKey::L4proto), one_of(&["tcp", "udp"])),
        equal(field("th", "dport"), Expression::Number(DNS_PORT)),
    )
}

fn tcp_to(port: u32) -> Stmt {
    equal(field("tcp", "dport"), Expression::Number(port))
}

fn refuse(reason: Reason) -> Stmt {
    jump(refusal_chain(reason))
}

/// The chain that refuses for a reason, counts and tells.
fn refusal_chain(reason: Reason) -> String {
    format!("refuse_{}", reason.as_str())
}

fn ping() -> Stmt {
    equal(field("icmp", "type"), text("echo-request"))
}

/// Lets through what answers a connection that the other side has opened.
fn reply() -> Vec<Stmt> {
    vec![
        any(ct("state"), &["established", "related"]),
        equal(ct("direction"), text("reply")),
        accept(),
    ]
}

fn floor_destination() -> Stmt {
    equal(field("ip", "daddr"), text(format!("@{FLOOR_SET}")))
}
