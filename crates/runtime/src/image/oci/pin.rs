//! What is in use and must not be pruned.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

type Counts = HashMap<String, usize>;

/// Names of images and blobs, each with how many use it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins {
    counts: Arc<Mutex<Counts>>,
}

impl Pins {
    /// Holds these until the lease is dropped.
    pub(super) fn hold(&self, names: Vec<String>) -> Lease {
        self.with(|counts| {
            for name in &names {
                *counts.entry(name.clone()).or_default() += 1;
            }
        });
        Lease {
            pins: self.clone(),
            names,
        }
    }

    /// Removes something by `remove` when nobody uses it; nobody begins to meanwhile.
    pub(super) fn if_free<T>(&self, name: &str, remove: impl FnOnce() -> T) -> Option<T> {
        self.with(|counts| (!counts.contains_key(name)).then(remove))
    }

    fn with<T>(&self, action: impl FnOnce(&mut Counts) -> T) -> T {
        action(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps an image from being pruned.
#[derive(Debug)]
pub(super) struct Lease {
    pins: Pins,
    names: Vec<String>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pins.with(|counts| {
            for name in &self.names {
                if let Some(count) = counts.get_mut(name) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(name);
                    }
                }
            }
        });
    }
}
