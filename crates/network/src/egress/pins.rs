//! The addresses that a VM's own lookups gave for names.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long an address is remembered at least and at most, whatever the answer said: programs keep addresses beyond
/// their time, and a connection may be made long after its lookup.
const LEAST: Duration = Duration::from_secs(10 * 60);
const MOST: Duration = Duration::from_secs(24 * 60 * 60);
/// Names of one VM, and addresses of one name.
const NAMES: usize = 1024;
const ADDRESSES: usize = 64;

/// What one VM was told.
#[derive(Debug, Default)]
pub(super) struct Pins {
    names: HashMap<Box<str>, Vec<(Ipv4Addr, Instant)>>,
}

impl Pins {
    /// Remembers addresses of a name with the time that the answer gave them.
    pub(super) fn note(&mut self, name: &str, addresses: &[(Ipv4Addr, Duration)], now: Instant) {
        if addresses.is_empty() {
            return;
        }
        if !self.names.contains_key(name) {
            self.make_room(now);
        }
        let known = self.names.entry(name.into()).or_default();
        for (address, time) in addresses {
            let until = now + (*time).clamp(LEAST, MOST);
            match known.iter_mut().find(|(old, _)| old == address) {
                Some((_, end)) => *end = until.max(*end),
                None => known.push((*address, until)),
            }
        }
        if known.len() > ADDRESSES {
            known.sort_by_key(|(_, until)| std::cmp::Reverse(*until));
            known.truncate(ADDRESSES);
        }
    }

    /// Whether this address was given for this name, and not too long ago.
    pub(super) fn hold(&self, name: &str, address: Ipv4Addr, now: Instant) -> bool {
        let known = self.names.get(name).into_iter().flatten();
        known
            .into_iter()
            .any(|(at, until)| *at == address && *until > now)
    }

    /// Forgets what is over, and when that is nothing, the name that is over next.
    fn make_room(&mut self, now: Instant) {
        if self.names.len() < NAMES {
            return;
        }
        let last = |known: &Vec<(Ipv4Addr, Instant)>| known.iter().map(|(_, until)| *until).max();
        self.names.retain(|_, known| last(known) > Some(now));
        if self.names.len() < NAMES {
            return;
        }
        let next = self.names.iter().min_by_key(|(_, known)| last(known));
        if let Some(name) = next.map(|(name, _)| name.clone()) {
            self.names.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    #[test]
    fn an_address_is_held_for_its_time_within_bounds() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        for (said, held) in [
            (Duration::ZERO, LEAST),
            (2 * LEAST, 2 * LEAST),
            (2 * MOST, MOST),
        ] {
            let mut pins = Pins::default();
            pins.note("a.test", &[(ONE, said)], now);
            assert!(pins.hold("a.test", ONE, now + held - second));
            assert!(!pins.hold("a.test", ONE, now + held + second));
        }
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stays() {
        let now = Instant::now();
        let mut pins = Pins::default();
        for number in 0..3 * NAMES {
            let soon = now + Duration::from_millis(number as u64);
            pins.note(&format!("n{number}.test"), &[(ONE, LEAST)], soon);
        }
        assert_eq!(pins.names.len(), NAMES);
        assert!(pins.hold(&format!("n{}.test", 3 * NAMES - 1), ONE, now));
        for last in 0..=255 {
            let address = Ipv4Addr::new(198, 18, 1, last);
            let time = LEAST + Duration::from_secs(last.into());
            pins.note("many.test", &[(address, time)], now);
        }
        assert_eq!(pins.names["many.test"].len(), ADDRESSES);
        assert!(pins.hold("many.test", Ipv4Addr::new(198, 18, 1, 255), now));
    }
}
