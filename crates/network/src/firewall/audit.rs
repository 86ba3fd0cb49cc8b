//! Comparing the table in force with what it should be.

use super::limits::{LIMITS, Limits, PROXIED, RANGES, ranges_chain, ranges_set};
use super::{FirewallError, list};
use crate::plan::{Plan, Slot};
use ipnet::Ipv4Net;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The table as the kernel has it.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// What is the same for all VMs, each part as one line.
    fixed: BTreeSet<String>,
    /// Elements of the maps: map, link, chain.
    elements: BTreeSet<(String, String, String)>,
    /// The ranges of VMs by the names of their sets.
    ranges: BTreeMap<String, Vec<Ipv4Net>>,
    /// The rules of the chains of VMs' ranges, by chain.
    rules: BTreeMap<String, Vec<String>>,
}

impl Listing {
    /// Lists the table of a slot; `None` when there is none.
    pub(crate) async fn take(slot: Slot) -> Result<Option<Self>, FirewallError> {
        if !super::installed(slot).await? {
            return Ok(None);
        }
        // Without what changes by itself.
        let table = slot.table();
        let objects = list(&["-s", "list", "table", "inet", &table]).await?;
        let mut listing = Self::default();
        for object in objects {
            listing.read(object);
        }
        Ok(Some(listing))
    }

    fn read(&mut self, mut object: Value) {
        let Some((kind, body)) = object.as_object_mut().and_then(|all| all.iter_mut().next())
        else {
            return;
        };
        let kind = kind.clone();
        let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
        let (name, chain) = (text("name").to_owned(), text("chain").to_owned());
        match kind.as_str() {
            "metainfo" => return,
            "map" if [LIMITS, PROXIED, RANGES].contains(&name.as_str()) => {
                self.elements.extend(elements(&name, body));
                strip(body, &["elem"]);
            }
            "set" if name.starts_with("addresses_") => {
                self.ranges.insert(name, ranges(body));
                return;
            }
            // The elements of sets that fill themselves come and go.
            "set" if is_dynamic(body) => strip(body, &["elem"]),
            "chain" if name.starts_with("ranges_") => {
                self.rules.entry(name).or_default();
                return;
            }
            "rule" if chain.starts_with("ranges_") => {
                let expression = body.get("expr").map(Value::to_string);
                self.rules.entry(chain).or_default().extend(expression);
                return;
            }
            _ => {}
        }
        strip(body, &["handle", "packets", "bytes"]);
        let place = if chain.is_empty() { name } else { chain };
        self.fixed.insert(format!("{kind} {place}: {body}"));
    }

    /// Forgets what is there of other VMs.
    pub(crate) fn only(&mut self, slot: Slot, these: impl Fn(u16) -> bool) {
        let named = |name: &str, before: &str| {
            let index = name.strip_prefix(before).and_then(|rest| rest.parse().ok());
            index.is_some_and(&these)
        };
        self.elements
            .retain(|(_, link, _)| slot.index_of_link(link).is_some_and(&these));
        self.ranges.retain(|set, _| named(set, "addresses_"));
        self.rules.retain(|chain, _| named(chain, "ranges_"));
    }

    /// What is not as it was when `other` was taken, of what is the same for all VMs.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let gone = other.fixed.difference(&self.fixed);
        let new = self.fixed.difference(&other.fixed);
        let gone = gone.map(|part| format!("firewall: missing: {}", short(part)));
        gone.chain(new.map(|part| format!("firewall: added by somebody: {}", short(part))))
            .collect()
    }

    /// What does not fit the limits of VMs.
    pub(crate) fn misfits(&self, plan: Plan, limits: &[(u16, Limits)]) -> Vec<String> {
        let mut wanted = BTreeSet::new();
        let mut lines = Vec::new();
        for (index, limits) in limits {
            let link = plan.slot().link_name(*index);
            let mut want = |map: &str, chain: &str| {
                wanted.insert((map.to_owned(), link.clone(), chain.to_owned()));
            };
            limits.limit.iter().for_each(|chain| want(LIMITS, chain));
            limits.proxied.iter().for_each(|chain| want(PROXIED, chain));
            if !limits.ranges.is_empty() {
                want(RANGES, &ranges_chain(*index));
                lines.extend(self.misfits_of_ranges(*index, &limits.ranges));
            }
        }
        let element = |(map, link, chain): &(String, String, String)| {
            format!("element {link} of map {map} (to {chain})")
        };
        let gone = wanted.difference(&self.elements);
        lines.extend(gone.map(|gone| format!("firewall: missing: {}", element(gone))));
        let new = self.elements.difference(&wanted);
        lines.extend(new.map(|new| format!("firewall: no policy has {}", element(new))));
        let with_ranges = limits
            .iter()
            .filter(|(_, limits)| !limits.ranges.is_empty());
        let known: BTreeSet<String> = with_ranges.map(|(index, _)| ranges_set(*index)).collect();
        let strays = self.ranges.keys().filter(|set| !known.contains(*set));
        lines.extend(strays.map(|set| format!("firewall: no policy has set {set}")));
        lines
    }

    fn misfits_of_ranges(&self, index: u16, ranges: &[Ipv4Net]) -> Vec<String> {
        let (set, chain) = (ranges_set(index), ranges_chain(index));
        let mut lines = Vec::new();
        let have: BTreeSet<Ipv4Net> = self
            .ranges
            .get(&set)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let want: BTreeSet<Ipv4Net> = ranges.iter().map(Ipv4Net::trunc).collect();
        let gone = want.difference(&have);
        lines.extend(gone.map(|net| format!("firewall: missing: {net} of set {set}")));
        let new = have.difference(&want);
        lines.extend(new.map(|net| format!("firewall: no policy has {net} of set {set}")));
        if self.rules.get(&chain).is_none_or(|rules| rules.len() != 1) {
            lines.push(format!("firewall: chain {chain} is not as it was made"));
        }
        lines
    }
}

fn is_dynamic(set: &Value) -> bool {
    let flags = set.get("flags").and_then(Value::as_array);
    flags.is_some_and(|flags| flags.iter().any(|flag| flag == "dynamic"))
}

fn strip(body: &mut Value, keys: &[&str]) {
    if let Some(body) = body.as_object_mut() {
        body.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

/// The elements of a map: pairs of a link and a jump.
fn elements(map: &str, body: &Value) -> Vec<(String, String, String)> {
    let all = body.get("elem").and_then(Value::as_array);
    let one = |element: &Value| {
        let link = element.get(0)?.as_str()?;
        let chain = element.pointer("/1/jump/target")?.as_str()?;
        Some((map.to_owned(), link.to_owned(), chain.to_owned()))
    };
    all.into_iter().flatten().filter_map(one).collect()
}

/// The elements of a set: addresses and prefixes.
fn ranges(body: &Value) -> Vec<Ipv4Net> {
    let all = body.get("elem").and_then(Value::as_array);
    let one = |element: &Value| {
        if let Some(address) = element.as_str() {
            return address
                .parse()
                .ok()
                .map(|address: std::net::Ipv4Addr| address.into());
        }
        let address = element.pointer("/prefix/addr")?.as_str()?.parse().ok()?;
        let length = element.pointer("/prefix/len")?.as_u64()?;
        Ipv4Net::new(address, u8::try_from(length).ok()?).ok()
    };
    all.into_iter().flatten().filter_map(one).collect()
}

/// A part of the table, short enough for a line.
fn short(part: &str) -> String {
    const LONGEST: usize = 200;
    let cut: String = part.chars().take(LONGEST).collect();
    if cut.len() < part.len() {
        cut + "…"
    } else {
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::DEFAULT_RANGE;
    use crate::policy::Policy;

    #[test]
    fn elements_that_are_missing_or_nobodys_are_named() {
        let plan = Plan::new(Slot::new(4).unwrap(), DEFAULT_RANGE).unwrap();
        let ranges = ["198.51.100.0/24".to_owned(), "203.0.113.9".to_owned()];
        let policy = Policy::new(false, true, false, &[], &ranges).unwrap();
        let mut listing = Listing::default();
        listing.read(serde_json::json!({"map": {"name": "limits", "elem": [
            ["iv4h3", {"jump": {"target": "limited_http"}}],
            ["iv4h9", {"jump": {"target": "limited"}}],
        ]}}));
        listing.read(serde_json::json!({"set": {"name": "addresses_3", "elem": [
            {"prefix": {"addr": "198.51.100.0", "len": 24}}, "203.0.113.8",
        ]}}));
        listing.read(serde_json::json!({"rule": {"chain": "ranges_3", "expr": []}}));
        let lines = listing.misfits(plan, &[(3, Limits::of(&policy))]);
        assert_eq!(
            lines,
            [
                "firewall: missing: 203.0.113.9/32 of set addresses_3",
                "firewall: no policy has 203.0.113.8/32 of set addresses_3",
                "firewall: missing: element iv4h3 of map ranges (to ranges_3)",
                "firewall: no policy has element iv4h9 of map limits (to limited)",
            ]
        );
    }

    #[test]
    fn counters_and_handles_are_no_difference() {
        let of = |object: Value| {
            let mut listing = Listing::default();
            listing.read(object);
            listing
        };
        let before =
            of(serde_json::json!({"counter": {"name": "floor", "handle": 3, "packets": 0}}));
        let after =
            of(serde_json::json!({"counter": {"name": "floor", "handle": 9, "packets": 7}}));
        assert!(after.differences(&before).is_empty());
        let lines = Listing::default().differences(&before);
        assert!(lines.len() == 1 && lines[0].contains("missing") && lines[0].contains("floor"));
    }
}
