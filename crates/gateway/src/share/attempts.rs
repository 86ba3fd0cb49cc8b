//! Keys that were wrong: whoever has sent many of them must wait.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong keys that an address may send.
const MOST: u32 = 10;
/// … in this time.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered; of more, all wait together.
const ADDRESSES: usize = 4_096;

/// Wrong keys by the addresses that sent them.
#[derive(Default)]
pub(super) struct Attempts {
    counted: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

/// A caller has a whole network of IPv6 for itself.
fn counted_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

impl Attempts {
    /// Whether an address may send another key.
    pub(super) fn may_try(&self, address: IpAddr) -> bool {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let address = counted_as(address);
        match counted.get(&address) {
            Some((since, count)) => since.elapsed() >= WINDOW || *count < MOST,
            None if counted.len() < ADDRESSES => true,
            None => {
                counted.retain(|_, (since, _)| since.elapsed() < WINDOW);
                counted.len() < ADDRESSES
            }
        }
    }

    /// Counts a wrong key.
    pub(super) fn failed(&self, address: IpAddr) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = counted
            .entry(counted_as(address))
            .or_insert_with(|| (Instant::now(), 0));
        if entry.0.elapsed() >= WINDOW {
            *entry = (Instant::now(), 0);
        }
        entry.1 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_wrong_keys_of_one_address_are_refused() {
        let attempts = Attempts::default();
        let [one, near, far] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
            .map(|text| text.parse::<IpAddr>().unwrap());
        for _ in 0..MOST {
            assert!(attempts.may_try(one));
            attempts.failed(one);
        }
        assert!(!attempts.may_try(one) && !attempts.may_try(near));
        assert!(attempts.may_try(far));
    }
}
