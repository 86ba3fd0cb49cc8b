//! How many of its queries and connections one VM may have open at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

/// Counters for every VM, and one for all of them.
#[derive(Debug)]
pub(crate) struct Admission {
    each: Box<[AtomicU16]>,
    all: AtomicUsize,
    each_limit: u16,
    all_limit: usize,
}

impl Admission {
    pub(crate) fn new(vms: u16, each_limit: u16, all_limit: usize) -> Arc<Self> {
        let each = (0..vms).map(|_| AtomicU16::new(0)).collect();
        Arc::new(Self {
            each,
            all: AtomicUsize::new(0),
            each_limit,
            all_limit,
        })
    }

    /// A place for the VM, until the permit is dropped; none when the VM or all together have theirs in use.
    pub(crate) fn enter(self: &Arc<Self>, vm: u16) -> Option<Permit> {
        let own = self.each.get(usize::from(vm))?;
        let one_more = |limit: u16| move |used: u16| (used < limit).then(|| used + 1);
        own.fetch_update(
            Ordering::AcqRel,
            Ordering::Acquire,
            one_more(self.each_limit),
        )
        .ok()?;
        let free = |used: usize| (used < self.all_limit).then(|| used + 1);
        if self
            .all
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, free)
            .is_err()
        {
            own.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Permit {
            admission: self.clone(),
            vm,
        })
    }
}

/// A place in use.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    vm: u16,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.all.fetch_sub(1, Ordering::AcqRel);
        if let Some(own) = self.admission.each.get(usize::from(self.vm)) {
            own.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_at_its_limit_takes_no_place_of_another() {
        let admission = Admission::new(3, 2, 5);
        let first = [admission.enter(0), admission.enter(0)];
        assert!(first.iter().all(Option::is_some));
        assert!(admission.enter(0).is_none());
        let second = [admission.enter(1), admission.enter(1)];
        assert!(second.iter().all(Option::is_some));
        let last = admission.enter(2);
        assert!(last.is_some());
        assert!(admission.enter(2).is_none(), "all places are in use");
        drop(first);
        assert!(admission.enter(2).is_some());
        assert!(admission.enter(3).is_none(), "there is no VM 3");
    }
}
