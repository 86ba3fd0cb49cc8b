//! The addresses that a VM's own lookups gave for names.

use super::journal::{Journal, Line};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

/// How long an address is remembered at least and at most, whatever the answer said: programs keep addresses beyond
/// their time, and a connection may be made long after its lookup.
const LEAST: Duration = Duration::from_secs(10 * 60);
const MOST: Duration = Duration::from_secs(24 * 60 * 60);
/// Names of one VM, and addresses of one name.
const NAMES: usize = 1024;
const ADDRESSES: usize = 64;

/// An answer that says what is known is written down again when it makes an address count this much longer.
const LONGER: Duration = Duration::from_secs(5 * 60);

/// What one VM was told.
#[derive(Debug, Default)]
pub(super) struct Pins {
    names: HashMap<Box<str>, Vec<(Ipv4Addr, Instant)>>,
    journal: Option<Journal>,
}

impl Pins {
    /// What the journal says, which is kept from now on.
    pub(super) fn open(mut journal: Journal) -> Self {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let mut pins = Self::default();
        for (name, address, until) in journal.read() {
            if let Ok(left) = until.duration_since(clock) {
                pins.hold_for(&name, address, now + left.min(MOST), now);
            }
        }
        pins.journal = Some(journal);
        pins
    }

    /// Forgets everything, on disk too.
    pub(super) fn clear(&mut self) {
        self.names.clear();
        if let Some(journal) = &mut self.journal {
            journal.remove();
        }
    }

    /// Remembers addresses of a name with the time that the answer gave them.
    pub(super) fn note(&mut self, name: &str, addresses: &[(Ipv4Addr, Duration)], now: Instant) {
        let until = |time: &Duration| now + (*time).clamp(LEAST, MOST);
        let news: Vec<(Ipv4Addr, Instant)> = addresses
            .iter()
            .map(|(address, time)| (*address, until(time)))
            .filter(|(address, until)| self.hold_for(name, *address, *until, now))
            .collect();
        if !news.is_empty() {
            self.write(name, &news, now);
        }
    }

    /// Remembers one address; whether that is to be written down.
    fn hold_for(&mut self, name: &str, address: Ipv4Addr, until: Instant, now: Instant) -> bool {
        if !self.names.contains_key(name) {
            self.make_room(now);
        }
        let known = self.names.entry(name.into()).or_default();
        if let Some((_, end)) = known.iter_mut().find(|(old, _)| *old == address) {
            let news = until >= *end + LONGER;
            // What is not written down is not counted on either: after a restart it is as before.
            *end = if news { until } else { *end };
            return news;
        }
        known.push((address, until));
        if known.len() > ADDRESSES {
            known.sort_by_key(|(_, until)| std::cmp::Reverse(*until));
            known.truncate(ADDRESSES);
        }
        true
    }

    fn write(&mut self, name: &str, news: &[(Ipv4Addr, Instant)], now: Instant) {
        let Self { names, journal } = self;
        let Some(journal) = journal else {
            return;
        };
        let clock = SystemTime::now();
        let written = if journal.is_long() {
            let all = names.iter();
            journal.replace(all.flat_map(|(name, known)| lines(name, known, now, clock)))
        } else {
            journal.add(lines(name, news, now, clock).into_iter())
        };
        if let Err(error) = written {
            tracing::warn!(%error, "a VM looks its names up again after a restart: they cannot be written down");
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

fn lines<'a>(
    name: &'a str,
    known: &[(Ipv4Addr, Instant)],
    now: Instant,
    clock: SystemTime,
) -> Vec<Line<'a>> {
    let line = |(address, until): &(Ipv4Addr, Instant)| {
        let until = clock + until.saturating_duration_since(now);
        (name, *address, until)
    };
    known.iter().map(line).collect()
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

    #[test]
    fn what_was_told_outlasts_the_process_for_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Pins::open(Journal::new(folder.path(), 9));
        let now = Instant::now();
        let mut pins = open();
        // It is over last, so it is not what makes room.
        pins.note("a.test", &[(ONE, 2 * LEAST)], now);
        for number in 0..20_000 {
            let address = Ipv4Addr::new(198, 18, 2, (number % 200) as u8);
            pins.note(
                &format!("n{}.test", number % 3000),
                &[(address, LEAST)],
                now,
            );
        }
        pins.note("a.test", &[(ONE, 2 * LEAST)], now);
        let size = std::fs::metadata(folder.path().join("9")).unwrap().len();
        assert!(size < 1 << 20, "{size} bytes");
        let mut later = open();
        assert!(later.hold("a.test", ONE, Instant::now()));
        assert!(!later.hold("a.test", ONE, Instant::now() + 2 * LEAST));
        assert_eq!(later.names.len(), NAMES);
        later.clear();
        assert!(open().names.is_empty());
    }
}
