//! What single VMs may reach, in the firewall: verdict maps keyed by the link's name, with elements only for VMs whose
//! policy is not open.
//!
//! | map | where | what |
//! |---|---|---|
//! | `limits` | forward, behind the floor | refuses all but ports 80 and 443 as the policy's flags say |
//! | `proxied` | destination NAT | sends the ports that need a name to the proxy |
//! | `ranges` | both, first | lets the VM's own ranges pass: a chain and a set of its own |
//!
//! A policy of flags and names changes elements of two maps, so a change costs the same for one VM and for a thousand.

use super::grammar::{Expr, prefix, text};
use super::{add, delete};
use crate::plan::Plan;
use crate::policy::{Policy, Way};
use ipnet::Ipv4Net;
use nftables::expr::{Expression, Verdict};
use nftables::schema::{
    Chain, Element, FlushObject, NfCmd, NfListObject, NfObject, Rule, Set, SetFlag, SetType,
    SetTypeValue,
};
use nftables::stmt::JumpTarget;
use nftables::types::NfFamily;
use std::borrow::Cow;

pub(super) const LIMITS: &str = "limits";
pub(super) const PROXIED: &str = "proxied";
pub(super) const RANGES: &str = "ranges";
/// Chains of [`LIMITS`], with the ports of any host that they let pass.
pub(super) const LIMIT_CHAINS: [(&str, &[u32]); 4] = [
    ("limited", &[]),
    ("limited_http", &[80]),
    ("limited_https", &[443]),
    ("limited_web", &[80, 443]),
];
/// Chains of [`PROXIED`], with the ports that they send to the proxy.
pub(super) const PROXY_CHAINS: [(&str, &[u32]); 3] = [
    ("proxied_http", &[80]),
    ("proxied_https", &[443]),
    ("proxied_web", &[80, 443]),
];

/// What the firewall has of one VM's policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(super) limit: Option<&'static str>,
    pub(super) proxied: Option<&'static str>,
    pub(super) ranges: Vec<Ipv4Net>,
}

impl Limits {
    /// What a policy asks of the firewall.
    pub(crate) fn of(policy: &Policy) -> Self {
        if policy.is_open() {
            return Self::default();
        }
        let ports = |way: Way| [80, 443].map(|port| policy.port(port) == way);
        let limit = match ports(Way::Direct) {
            [false, false] => "limited",
            [true, false] => "limited_http",
            [false, true] => "limited_https",
            [true, true] => "limited_web",
        };
        let proxied = match ports(Way::ByName) {
            [false, false] => None,
            [true, false] => Some("proxied_http"),
            [false, true] => Some("proxied_https"),
            [true, true] => Some("proxied_web"),
        };
        Self {
            limit: Some(limit),
            proxied,
            ranges: policy.ranges().to_vec(),
        }
    }

    /// What must be done to the table to come from `self` to `wanted`.
    pub(super) fn change(&self, wanted: &Self, plan: Plan, index: u16) -> Vec<NfObject<'static>> {
        let mut change = Change {
            plan,
            index,
            objects: Vec::new(),
        };
        if self.ranges != wanted.ranges {
            change.ranges(&self.ranges, &wanted.ranges);
        }
        change.element(PROXIED, self.proxied, wanted.proxied);
        change.element(LIMITS, self.limit, wanted.limit);
        change.objects
    }
}

/// The name of the chain of a VM's own ranges.
pub(super) fn ranges_chain(index: u16) -> String {
    format!("ranges_{index}")
}

/// The name of the set of a VM's own ranges.
pub(super) fn ranges_set(index: u16) -> String {
    format!("addresses_{index}")
}

struct Change {
    plan: Plan,
    index: u16,
    objects: Vec<NfObject<'static>>,
}

impl Change {
    fn element(&mut self, map: &'static str, old: Option<&str>, new: Option<&str>) {
        if old == new {
            return;
        }
        let key = text(self.plan.slot().link_name(self.index));
        if old.is_some() {
            let element = self.element_of(map, key.clone());
            delete(&mut self.objects, element);
        }
        if let Some(chain) = new {
            let target = Cow::Owned(chain.to_owned());
            let verdict = Expression::Verdict(Verdict::Jump(JumpTarget { target }));
            let element = self.element_of(map, Expression::List(vec![key, verdict]));
            add(&mut self.objects, element);
        }
    }

    fn element_of(&self, map: &'static str, element: Expr) -> NfListObject<'static> {
        NfListObject::Element(Element {
            family: NfFamily::INet,
            table: self.plan.slot().table().into(),
            name: map.into(),
            elem: Cow::Owned(vec![element]),
        })
    }

    /// The VM's own chain and set: made, filled anew, or removed.
    fn ranges(&mut self, old: &[Ipv4Net], new: &[Ipv4Net]) {
        let chain = ranges_chain(self.index);
        if new.is_empty() {
            self.element(RANGES, Some(&chain), None);
            let (rules, set) = (self.chain(&chain), self.set());
            let emptied = NfCmd::Flush(FlushObject::Chain(self.chain_of(&chain)));
            self.objects.push(NfObject::CmdObject(emptied));
            delete(&mut self.objects, rules);
            delete(&mut self.objects, NfListObject::Set(Box::new(set)));
            return;
        }
        if old.is_empty() {
            let set = NfListObject::Set(Box::new(self.set()));
            add(&mut self.objects, set);
            let rules = self.chain(&chain);
            add(&mut self.objects, rules);
            let rule = NfListObject::Rule(Rule {
                family: NfFamily::INet,
                table: self.plan.slot().table().into(),
                chain: chain.clone().into(),
                expr: Cow::Owned(super::ruleset::passes(&self.set_name())),
                ..Rule::default()
            });
            add(&mut self.objects, rule);
        } else {
            let emptied = NfCmd::Flush(FlushObject::Set(Box::new(self.set())));
            self.objects.push(NfObject::CmdObject(emptied));
        }
        let elements = NfListObject::Element(Element {
            family: NfFamily::INet,
            table: self.plan.slot().table().into(),
            name: self.set_name().into(),
            elem: Cow::Owned(new.iter().copied().map(prefix).collect()),
        });
        add(&mut self.objects, elements);
        if old.is_empty() {
            self.element(RANGES, None, Some(&chain));
        }
    }

    fn set_name(&self) -> String {
        ranges_set(self.index)
    }

    fn set(&self) -> Set<'static> {
        Set {
            family: NfFamily::INet,
            table: self.plan.slot().table().into(),
            name: self.set_name().into(),
            handle: None,
            set_type: SetTypeValue::Single(SetType::Ipv4Addr),
            policy: None,
            flags: Some([SetFlag::Interval].into()),
            elem: None,
            timeout: None,
            gc_interval: None,
            size: None,
            comment: None,
        }
    }

    fn chain_of(&self, name: &str) -> Chain<'static> {
        Chain {
            family: NfFamily::INet,
            table: self.plan.slot().table().into(),
            name: name.to_owned().into(),
            ..Chain::default()
        }
    }

    fn chain(&self, name: &str) -> NfListObject<'static> {
        NfListObject::Chain(self.chain_of(name))
    }
}
