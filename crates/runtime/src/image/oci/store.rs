//! The door: a reference goes in, a root file system in the pool comes out.

use super::blob::{Blobs, Wanted};
use super::flight::Flights;
use super::manifest::{self, Manifest, Parts};
use super::pin::Pins;
use super::reference::{Digest, Reference};
use super::registry::Registries;
use super::root::{Cancel, Job};
use super::{OciConfig, OciError, OciImage, OciProgress, OciRunConfig};
use crate::disk::DiskPool;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

const LARGEST_MANIFEST: u64 = 4 << 20;
const LARGEST_CONFIGURATION: u64 = 8 << 20;
/// How many layers of an image come at once.
const AT_ONCE: usize = 3;
/// Progress is told after so many bytes.
const STEP: u64 = 4 << 20;
/// What pulling leaves free where the blobs are.
const RESERVE: u64 = 512 << 20;

/// Pulls images from registries into pools.
#[derive(Clone, Debug)]
pub struct OciStore {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: Arc<OciConfig>,
    pub(super) blobs: Blobs,
    registries: Registries,
    pub(super) flights: Flights,
    pub(super) pins: Pins,
}

/// Takes progress, from wherever the work is done.
#[derive(Clone, Debug)]
pub(super) struct Report(mpsc::UnboundedSender<OciProgress>);

impl Report {
    pub(super) fn say(&self, step: OciProgress) {
        // Nobody may be listening any more.
        let _ = self.0.send(step);
    }
}

/// An image as its manifest and its configuration describe it.
struct Found {
    digest: Digest,
    parts: Parts,
    contents: Vec<Digest>,
    run: OciRunConfig,
}

impl OciStore {
    /// Opens the store, making its folder when it is missing, and removes what interrupted pulls left.
    ///
    /// # Errors
    /// [`OciError::Io`]; [`OciError::Configuration`] for a file that cannot be used.
    pub fn new(config: OciConfig) -> Result<Self, OciError> {
        let config = Arc::new(config);
        Ok(Self {
            inner: Arc::new(Inner {
                blobs: Blobs::open(&config.blobs_dir)?,
                registries: Registries::new(config.clone())?,
                flights: Flights::default(),
                pins: Pins::default(),
                config,
            }),
        })
    }

    /// Makes sure that the image is in the pool, as a read-only root file system that a machine can start from. What is
    /// there already is not made again: calls for the same image do the work once. Dropping the future undoes
    /// what is half done.
    ///
    /// # Errors
    /// [`OciError`] with the reason; nothing remains of what failed.
    pub async fn ensure(
        &self,
        pool: &DiskPool,
        reference: &str,
        mut progress: impl FnMut(OciProgress) + Send,
    ) -> Result<OciImage, OciError> {
        let reference: Reference = reference.parse()?;
        let (sender, mut said) = mpsc::unbounded_channel();
        let report = Report(sender);
        let work = self.inner.work(pool, &reference, &report);
        tokio::pin!(work);
        let done = loop {
            tokio::select! {
                biased;
                Some(step) = said.recv() => progress(step),
                done = &mut work => break done,
            }
        };
        while let Ok(step) = said.try_recv() {
            progress(step);
        }
        if done.is_ok() {
            progress(OciProgress::Ready);
        }
        done
    }
}

impl Inner {
    async fn work(
        self: &Arc<Self>,
        pool: &DiskPool,
        reference: &Reference,
        report: &Report,
    ) -> Result<OciImage, OciError> {
        let found = self.look_up(reference).await?;
        let layers = found.parts.layers.clone();
        let bytes = layers
            .iter()
            .fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        let most = self.config.limits.compressed_bytes;
        if bytes > most {
            return Err(OciError::TooLarge {
                reason: format!("its layers have {bytes} bytes, and {most} are allowed"),
            });
        }
        report.say(OciProgress::Resolved {
            digest: found.digest.to_string(),
            layers: layers.len(),
            bytes,
        });
        let job = Job::new(self, pool, &layers, &found.contents, report);
        let lease = self.pins.hold(job.names());
        let cancel = Cancel::default();
        let root = match job.ready().await? {
            Some(root) => root,
            None => self.build(&job, reference, report, &cancel).await?,
        };
        job.mark();
        Ok(OciImage {
            root,
            digest: found.digest.to_string(),
            config: found.run,
            lease: Arc::new(lease),
        })
    }

    /// Pulls the layers that are missing, unpacks each as soon as it and those below it are there, and finishes.
    async fn build(
        self: &Arc<Self>,
        job: &Arc<Job>,
        reference: &Reference,
        report: &Report,
        cancel: &Cancel,
    ) -> Result<std::path::PathBuf, OciError> {
        let first = job.first_missing().await?;
        let missing = &job.layers()[first..];
        let mut pulls = JoinSet::new();
        let mut arrivals = self.pull_all(missing, reference, report, &mut pulls);
        let mut below = job.below(first);
        for number in first..job.layers().len() {
            let arrival = arrivals.remove(0);
            // A task that is gone was ended with the whole of it.
            arrival.await.map_err(|_| OciError::Cancelled)??;
            below = Some(self.layer(job, number, below, reference, cancel).await?);
        }
        job.finish(below, cancel).await
    }

    /// Unpacks a layer; a blob that has rotted since it was pulled is pulled again.
    async fn layer(
        self: &Arc<Self>,
        job: &Arc<Job>,
        number: usize,
        below: Option<std::path::PathBuf>,
        reference: &Reference,
        cancel: &Cancel,
    ) -> Result<std::path::PathBuf, OciError> {
        let unpacked = job.unpack(number, below.clone(), cancel).await;
        let Err(OciError::Layer { .. } | OciError::Mismatch { .. }) = unpacked else {
            return unpacked;
        };
        let blob = job.layers()[number].clone();
        let (blobs, digest) = (self.blobs.clone(), blob.digest.clone());
        let sound = tokio::task::spawn_blocking(move || blobs.is_sound(&digest))
            .await
            .map_err(|_| OciError::Cancelled)??;
        if sound {
            return unpacked;
        }
        self.pull(reference, &blob, |_| ()).await?;
        job.unpack(number, below, cancel).await
    }

    /// Starts pulling; each layer is told of when it is there.
    fn pull_all(
        self: &Arc<Self>,
        layers: &[Wanted],
        reference: &Reference,
        report: &Report,
        pulls: &mut JoinSet<()>,
    ) -> Vec<oneshot::Receiver<Result<(), OciError>>> {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let total = layers
            .iter()
            .fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        let done = Arc::new(AtomicU64::new(0));
        let mut arrivals = Vec::with_capacity(layers.len());
        for blob in layers {
            let (sender, arrival) = oneshot::channel();
            arrivals.push(arrival);
            let (inner, permits) = (self.clone(), permits.clone());
            let (reference, blob, report) = (reference.clone(), blob.clone(), report.clone());
            let done = done.clone();
            pulls.spawn(async move {
                let _permit = permits.acquire().await;
                let count = |bytes: u64| {
                    let before = done.fetch_add(bytes, Ordering::Relaxed);
                    let now = before + bytes;
                    if before / STEP != now / STEP || now == total {
                        report.say(OciProgress::Pulling { done: now, total });
                    }
                };
                let pulled = inner.pull(&reference, &blob, count).await;
                // Nobody waits for it when another layer has failed.
                let _ = sender.send(pulled);
            });
        }
        arrivals
    }

    /// Pulls a blob that is not there; one of all who want it does.
    async fn pull(
        &self,
        reference: &Reference,
        blob: &Wanted,
        arrived: impl Fn(u64),
    ) -> Result<(), OciError> {
        let _turn = self.flights.turn(blob.digest.hex()).await;
        if self.blobs.has(&blob.digest, blob.size) {
            arrived(blob.size);
            return Ok(());
        }
        require_room(self.blobs.folder(), blob.size)?;
        let attempts = self.config.limits.attempts;
        self.blobs
            .pull(&self.registries, reference, blob, attempts, arrived)
            .await
    }

    /// Finds the image's manifest for this machine, and its configuration. What was had before is asked for by its
    /// digest only, and not sent again.
    async fn look_up(&self, reference: &Reference) -> Result<Found, OciError> {
        let digest = match reference.digest() {
            Some(digest) => Some(digest.clone()),
            None => match self.registries.manifest_digest(reference).await {
                // Some registries do not answer this kind of question.
                Err(OciError::Protocol { .. }) => None,
                other => other?,
            },
        };
        let (digest, kind, text) = match digest {
            Some(digest) => {
                let (kind, text) = self.manifest(reference, &digest).await?;
                (digest, kind, text)
            }
            None => {
                let wanted = reference.wanted();
                let (kind, text) = self.registries.manifest(reference, &wanted).await?;
                (self.blobs.put(&text)?, kind, text)
            }
        };
        let (digest, parts) = match manifest::read(&text, kind.as_deref())? {
            Manifest::Image(parts) => (digest, parts),
            Manifest::Index(index) => {
                let digest = manifest::for_this_machine(&index)?;
                let (kind, text) = self.manifest(reference, &digest).await?;
                match manifest::read(&text, kind.as_deref())? {
                    Manifest::Image(parts) => (digest, parts),
                    Manifest::Index(_) => {
                        return Err(OciError::Unsupported {
                            reason: "its list of platforms names another list".into(),
                        });
                    }
                }
            }
        };
        let text = self.configuration(reference, &parts.config).await?;
        let config = manifest::configuration(&text, &parts)?;
        Ok(Found {
            digest,
            parts,
            contents: config.contents,
            run: config.run,
        })
    }

    async fn manifest(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<(Option<String>, Vec<u8>), OciError> {
        if let Some(text) = self.blobs.read(digest, LARGEST_MANIFEST) {
            return Ok((None, text));
        }
        let wanted = digest.to_string();
        let (kind, text) = self.registries.manifest(reference, &wanted).await?;
        self.blobs.put(&text)?;
        Ok((kind, text))
    }

    async fn configuration(
        &self,
        reference: &Reference,
        blob: &Wanted,
    ) -> Result<Vec<u8>, OciError> {
        if blob.size > LARGEST_CONFIGURATION {
            return Err(OciError::TooLarge {
                reason: format!("its configuration has {} bytes", blob.size),
            });
        }
        if let Some(text) = self.blobs.read(&blob.digest, LARGEST_CONFIGURATION) {
            return Ok(text);
        }
        self.pull(reference, blob, |_| ()).await?;
        self.blobs
            .read(&blob.digest, LARGEST_CONFIGURATION)
            .ok_or_else(|| OciError::Mismatch {
                what: "the configuration".into(),
                reason: "it changed after it was pulled".into(),
            })
    }
}

/// Refuses to fill the file system below the blobs, which others need, too.
fn require_room(folder: &Path, size: u64) -> Result<(), OciError> {
    let space =
        rustix::fs::statvfs(folder).map_err(|e| OciError::io("measure", folder)(e.into()))?;
    if space.f_bavail * space.f_frsize < size.saturating_add(RESERVE) {
        let full = std::io::ErrorKind::StorageFull.into();
        return Err(OciError::io("pull a layer into", folder)(full));
    }
    Ok(())
}
