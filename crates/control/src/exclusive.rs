//! Things that are changed by one at a time, by their ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::OwnedMutexGuard;

/// How many ids are remembered before those that nobody holds are forgotten.
const TIDY_AT: usize = 256;

/// A lock for each id. Whoever holds one changes the thing, its rows and what the node has of it.
#[derive(Debug, Default)]
pub(crate) struct Exclusive(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Exclusive {
    fn of(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(id).and_then(Weak::upgrade) {
            return lock;
        }
        if locks.len() >= TIDY_AT {
            locks.retain(|_, lock| lock.strong_count() > 0);
        }
        let lock = Arc::default();
        locks.insert(id.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// Waits until nobody else holds it.
    pub(crate) async fn hold(&self, id: &str) -> OwnedMutexGuard<()> {
        self.of(id).lock_owned().await
    }

    /// Holds it unless somebody else does.
    pub(crate) fn try_hold(&self, id: &str) -> Option<OwnedMutexGuard<()>> {
        self.of(id).try_lock_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_holds_an_id() {
        let exclusive = Exclusive::default();
        let first = exclusive.hold("a").await;
        assert!(exclusive.try_hold("a").is_none());
        assert!(exclusive.try_hold("b").is_some());
        drop(first);
        assert!(exclusive.try_hold("a").is_some());
        for id in 0..2 * TIDY_AT {
            drop(exclusive.hold(&id.to_string()).await);
        }
        assert!(exclusive.0.lock().unwrap().len() <= TIDY_AT);
    }
}
