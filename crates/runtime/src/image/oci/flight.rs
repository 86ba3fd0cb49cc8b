//! The same work, asked for by several at once, is done by one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::OwnedMutexGuard;

/// Work under way, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Flights {
    all: Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>,
}

/// The right to do one piece of work, until it is dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Flights {
    /// Waits for whoever does this now. The caller then looks whether there is anything left to do.
    pub(super) async fn turn(&self, name: &str) -> Turn {
        let one = {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, one| one.strong_count() > 0);
            match all.get(name).and_then(Weak::upgrade) {
                Some(one) => one,
                None => {
                    let one = Arc::default();
                    all.insert(name.to_owned(), Arc::downgrade(&one));
                    one
                }
            }
        };
        one.lock_owned().await
    }
}
