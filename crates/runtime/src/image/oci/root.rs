//! An image's layers in the pool: a chain of images, each on top of the one below, and the root that machines start from.

use super::blob::{Blobs, Wanted};
use super::finish;
use super::flight::Flights;
use super::layer::{self, LayerError};
use super::manifest;
use super::reference::Digest;
use super::store::{Inner, Report};
use super::unpack::Budget;
use super::{OciConfig, OciError, OciProgress};
use crate::disk::DiskPool;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The beginning of the keys of what is made here.
pub(super) const PREFIX: &str = "oci-";

/// Tells the threads that unpack that nobody waits for them any more, when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The making of one image in one pool.
#[derive(Debug)]
pub(super) struct Job {
    config: Arc<OciConfig>,
    pool: DiskPool,
    blobs: Blobs,
    flights: Flights,
    layers: Vec<Wanted>,
    contents: Vec<Digest>,
    /// The keys of the layers.
    keys: Vec<String>,
    /// The key of the root.
    root: String,
    budget: Mutex<Budget>,
    report: Report,
}

impl Job {
    pub(super) fn new(
        inner: &Inner,
        pool: &DiskPool,
        layers: &[Wanted],
        contents: &[Digest],
        report: &Report,
    ) -> Arc<Self> {
        let config = inner.config.clone();
        let chain = manifest::chain(contents);
        let keys: Vec<String> = chain
            .iter()
            .map(|id| format!("{PREFIX}{}", id.hex()))
            .collect();
        let root = format!(
            "{}.{}.{}",
            keys.last().map_or("oci-empty", String::as_str),
            config.anchors.fingerprint(),
            finish::FORM
        );
        Arc::new(Self {
            pool: pool.clone(),
            blobs: inner.blobs.clone(),
            flights: inner.flights.clone(),
            layers: layers.to_vec(),
            contents: contents.to_vec(),
            keys,
            root,
            budget: Mutex::new(Budget {
                bytes: config.limits.unpacked_bytes,
                files: config.limits.files,
            }),
            report: report.clone(),
            config,
        })
    }

    pub(super) fn layers(&self) -> &[Wanted] {
        &self.layers
    }

    /// Everything that must not be pruned meanwhile.
    pub(super) fn names(&self) -> Vec<String> {
        let blobs = self.layers.iter().map(|blob| blob.digest.hex().to_owned());
        let keys = self.keys.iter().chain([&self.root]).cloned();
        keys.chain(blobs).collect()
    }

    /// Notes that all of it is used now.
    pub(super) fn mark(&self) {
        for key in self.keys.iter().chain([&self.root]) {
            self.blobs.mark(key);
        }
    }

    /// The root, when it is there.
    pub(super) async fn ready(self: &Arc<Self>) -> Result<Option<PathBuf>, OciError> {
        self.off_thread(|job| {
            let there = job.pool.has_image(&job.root);
            Ok(there.then(|| job.pool.image_path(&job.root)))
        })
        .await
    }

    /// The lowest layer that is missing, with all above it that may be.
    pub(super) async fn first_missing(self: &Arc<Self>) -> Result<usize, OciError> {
        self.off_thread(|job| {
            let last = job.keys.iter().rposition(|key| job.pool.has_image(key));
            Ok(last.map_or(0, |last| last + 1))
        })
        .await
    }

    /// What the layer of this number is on top of.
    pub(super) fn below(&self, number: usize) -> Option<PathBuf> {
        let below = number.checked_sub(1)?;
        Some(self.pool.image_path(&self.keys[below]))
    }

    /// Makes a layer, when it is missing.
    pub(super) async fn unpack(
        self: &Arc<Self>,
        number: usize,
        below: Option<PathBuf>,
        cancel: &Cancel,
    ) -> Result<PathBuf, OciError> {
        let turn = self.turn(&self.keys[number]).await;
        let cancelled = cancel.0.clone();
        self.off_thread(move |job| {
            // Held to the end, even when nobody waits for it any more.
            let _turn = turn;
            job.unpack_here(number, below.as_deref(), &cancelled)
        })
        .await
    }

    /// Makes the root, when it is missing.
    pub(super) async fn finish(
        self: &Arc<Self>,
        below: Option<PathBuf>,
        cancel: &Cancel,
    ) -> Result<PathBuf, OciError> {
        let turn = self.turn(&self.root).await;
        let cancelled = cancel.0.clone();
        self.off_thread(move |job| {
            let _turn = turn;
            check_cancelled(&cancelled)?;
            let fill = |root: &Path| finish::finish(root, &job.config.anchors);
            Ok(job
                .pool
                .ensure_image_on(&job.root, below.as_deref(), fill)?)
        })
        .await
    }

    async fn turn(&self, key: &str) -> super::flight::Turn {
        let name = self.pool.image_path(key);
        self.flights.turn(&name.to_string_lossy()).await
    }

    fn unpack_here(
        &self,
        number: usize,
        below: Option<&Path>,
        cancelled: &AtomicBool,
    ) -> Result<PathBuf, OciError> {
        check_cancelled(cancelled)?;
        let key = &self.keys[number];
        if self.pool.has_image(key) {
            return Ok(self.pool.image_path(key));
        }
        self.report.say(OciProgress::Unpacking {
            layer: number + 1,
            layers: self.layers.len(),
        });
        let mut budget = *self.lock_budget();
        let mut failed = None;
        let mut dropped = Default::default();
        let made = self.pool.ensure_image_on(key, below, |folder| {
            let blob = self.blobs.path(&self.layers[number].digest);
            let mut check = || {
                check_cancelled(cancelled)
                    .and_then(|()| Ok(self.pool.check_room()?))
                    .map_err(io::Error::other)
            };
            let content = &self.contents[number];
            match layer::unpack(&blob, content, folder, &mut budget, &mut check) {
                Ok(found) => dropped = found,
                Err(error) => {
                    failed = Some(error);
                    return Err(io::Error::other("the layer cannot be unpacked"));
                }
            }
            Ok(())
        });
        if let Some(error) = failed {
            return Err(self.explain(number, error));
        }
        let made = made?;
        *self.lock_budget() = budget;
        if dropped.attributes > 0 {
            self.report.say(OciProgress::Note(format!(
                "layer {}: left out {} extended attributes that mean nothing in a VM",
                number + 1,
                dropped.attributes
            )));
        }
        Ok(made)
    }

    fn lock_budget(&self) -> std::sync::MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn explain(&self, number: usize, error: LayerError) -> OciError {
        let layer = number + 1;
        match error {
            LayerError::Content(found) => OciError::Mismatch {
                what: format!("the content of layer {layer}"),
                reason: format!(
                    "its digest is {found}, the image says {}",
                    self.contents[number]
                ),
            },
            LayerError::Stream(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                OciError::TooLarge {
                    reason: error.to_string(),
                }
            }
            LayerError::Stream(error) => OciError::Layer {
                layer,
                path: String::new(),
                reason: format!("it cannot be decompressed: {error}"),
            },
            LayerError::Unpack(failure) => {
                let path = String::from_utf8_lossy(&failure.path).into_owned();
                let error = match failure.error.downcast::<OciError>() {
                    Ok(ours) => return ours,
                    Err(error) => error,
                };
                match error.kind() {
                    io::ErrorKind::FileTooLarge => OciError::TooLarge {
                        reason: format!("layer {layer}, {path:?}: {error}"),
                    },
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        OciError::io(
                            "unpack a layer into",
                            self.pool.image_path(&self.keys[number]),
                        )(error)
                    }
                    _ => OciError::Layer {
                        layer,
                        path: path.chars().take(200).collect(),
                        reason: error.to_string(),
                    },
                }
            }
        }
    }

    async fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        action: impl FnOnce(&Self) -> Result<T, OciError> + Send + 'static,
    ) -> Result<T, OciError> {
        let job = self.clone();
        tokio::task::spawn_blocking(move || action(&job))
            .await
            .map_err(|_| OciError::Cancelled)?
    }
}

fn check_cancelled(cancelled: &AtomicBool) -> Result<(), OciError> {
    if cancelled.load(Ordering::Relaxed) {
        return Err(OciError::Cancelled);
    }
    Ok(())
}
