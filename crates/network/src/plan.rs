//! Who owns which address and which link name: plain arithmetic over the slot and the VM's index.
//!
//! The platform's addresses are one /14 (`100.64.0.0/14` by default). Slot `s` owns the /20 number `s` of it and VM `i`
//! the /30 number `i` of that: `.1` is the gateway on the host's end of the link, `.2` is the VM. Names of links and
//! tables carry the slot too, so several instances live side by side on one host without talking to each other.

use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// How many VMs one slot has addresses for.
pub const VMS_PER_SLOT: u16 = 1024;
/// Length of the prefix that all slots of a host share.
pub const RANGE_PREFIX: u8 = 14;
/// Length of the prefix of one slot.
const SLOT_PREFIX: u8 = 20;
/// Length of the prefix of one link.
pub const LINK_PREFIX: u8 = 30;
/// The range that is used when the operator names none: shared address space (RFC 6598).
pub const DEFAULT_RANGE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// The name of a VM's end of its link.
pub const VM_LINK: &str = "eth0";

/// The number of an instance on its host, 1 to 62.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The first slot.
    pub const FIRST: u16 = 1;
    /// The last slot.
    pub const LAST: u16 = 62;

    /// The slot with this number, if there is one.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        (Self::FIRST..=Self::LAST)
            .contains(&number)
            .then_some(Self(number))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// The name of the instance's firewall table (family `inet`).
    #[must_use]
    pub fn table(self) -> String {
        format!("instavm{}", self.0)
    }

    /// What the names of all the instance's links start with, and no other link's name.
    #[must_use]
    pub fn link_prefix(self) -> String {
        format!("iv{}h", self.0)
    }

    /// The name of the host's end of a VM's link.
    #[must_use]
    pub fn link_name(self, index: u16) -> String {
        format!("iv{}h{index}", self.0)
    }

    /// The index that a link's name carries, if it is one of this instance's links.
    #[must_use]
    pub fn index_of_link(self, name: &str) -> Option<u16> {
        let index: u16 = name.strip_prefix(&self.link_prefix())?.parse().ok()?;
        (index < VMS_PER_SLOT && self.link_name(index) == name).then_some(index)
    }

    /// The group that the firewall tells what it refuses to.
    pub(crate) fn log_group(self) -> u16 {
        0x4900 + self.0
    }

    /// The group that links are put into to be deleted together.
    pub(crate) fn leaving_group(self) -> u32 {
        0x4956_0000 | u32::from(self.0)
    }
}

/// The addresses of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    slot: Slot,
    base: Ipv4Addr,
}

impl Plan {
    /// The plan of a slot within the /14 that starts at `base`; `None` when `base` does not start a /14.
    #[must_use]
    pub fn new(slot: Slot, base: Ipv4Addr) -> Option<Self> {
        let range = Ipv4Net::new(base, RANGE_PREFIX).ok()?;
        (range.network() == base && !base.is_loopback() && !base.is_multicast())
            .then_some(Self { slot, base })
    }

    /// The slot.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The addresses of all slots of the host.
    #[must_use]
    pub fn range(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.base, RANGE_PREFIX)
    }

    /// The addresses of this slot.
    #[must_use]
    pub fn slot_range(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.slot_base(), SLOT_PREFIX)
    }

    /// The gateway of a VM: the address of the host's end of its link, and of its resolver.
    #[must_use]
    pub fn gateway(&self, index: u16) -> Ipv4Addr {
        self.link_base(index, 1)
    }

    /// The address of a VM.
    #[must_use]
    pub fn address(&self, index: u16) -> Ipv4Addr {
        self.link_base(index, 2)
    }

    /// The VM that an address belongs to.
    #[must_use]
    pub fn index_of(&self, address: Ipv4Addr) -> Option<u16> {
        let offset = address.to_bits().wrapping_sub(self.slot_base().to_bits());
        let index = u16::try_from(offset / 4).ok()?;
        (index < VMS_PER_SLOT && offset % 4 == 2).then_some(index)
    }

    /// Mask and value such that `address & mask == value` exactly for the VM addresses of this slot.
    pub(crate) fn vm_pattern(&self) -> (Ipv4Addr, Ipv4Addr) {
        let mask = self.slot_range().netmask().to_bits() | 3;
        (Ipv4Addr::from_bits(mask), self.address(0))
    }

    fn slot_base(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + (u32::from(self.slot.0) << (32 - SLOT_PREFIX)))
    }

    fn link_base(&self, index: u16, host: u32) -> Ipv4Addr {
        let index = u32::from(index % VMS_PER_SLOT);
        Ipv4Addr::from_bits(self.slot_base().to_bits() + index * 4 + host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(slot: u16) -> Plan {
        Plan::new(Slot::new(slot).unwrap(), DEFAULT_RANGE).unwrap()
    }

    #[test]
    fn addresses_of_all_slots_are_disjoint_and_inside_the_range() {
        let mut seen = std::collections::HashSet::new();
        for slot in Slot::FIRST..=Slot::LAST {
            let plan = plan(slot);
            for index in 0..VMS_PER_SLOT {
                let address = plan.address(index);
                assert!(plan.slot_range().contains(&address) && plan.range().contains(&address));
                assert_eq!(u32::from(plan.gateway(index)) + 1, u32::from(address));
                assert_eq!(plan.index_of(address), Some(index));
                assert!(seen.insert(address), "{address} belongs to two VMs");
            }
        }
    }

    #[test]
    fn only_vm_addresses_of_the_slot_match_its_pattern() {
        let plan = plan(3);
        let (mask, value) = plan.vm_pattern();
        let matches = |a: Ipv4Addr| a.to_bits() & mask.to_bits() == value.to_bits();
        for index in [0, 1, 511, 1023] {
            assert!(matches(plan.address(index)));
            assert!(!matches(plan.gateway(index)));
        }
        for foreign in ["100.64.32.2", "100.64.64.2", "192.0.2.2", "100.64.48.3"] {
            let foreign = foreign.parse().unwrap();
            assert!(!matches(foreign), "{foreign}");
            assert_eq!(plan.index_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn link_names_fit_the_kernel_and_name_one_slot_each() {
        for slot in [1, 3, 30, 62] {
            let slot = Slot::new(slot).unwrap();
            let name = slot.link_name(1023);
            assert!(name.len() <= 15, "{name}");
            assert_eq!(slot.index_of_link(&name), Some(1023));
        }
        let three = Slot::new(3).unwrap();
        for foreign in [
            "iv30h1", "iv3h1024", "iv3h01", "iv3h", "iv3hx", "eth0", "iv3h-1", "iv3h+1",
        ] {
            assert_eq!(three.index_of_link(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn ranges_that_start_no_14_are_refused() {
        let slot = Slot::new(1).unwrap();
        for bad in ["100.65.0.0", "100.64.0.1", "127.0.0.0", "224.0.0.0"] {
            assert!(Plan::new(slot, bad.parse().unwrap()).is_none(), "{bad}");
        }
        assert!(Slot::new(0).is_none() && Slot::new(63).is_none());
        assert_eq!(plan(62).slot_range().to_string(), "100.67.224.0/20");
    }
}
