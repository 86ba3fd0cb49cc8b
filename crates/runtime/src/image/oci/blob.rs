//! Blobs: what registries send, kept by digest.
//!
//! ```text
//! sha256/<hex>     a blob
//! drafts/…         blobs on their way, locked by whoever writes them
//! used/<key>       when an image of a pool was used last, as the time of an empty file
//! ```
//! A blob is not forced to the disk: what a loss of power leaves of it is found out by its digest, and pulled again.

use super::OciError;
use super::reference::{Digest, Reference};
use super::registry::{Ask, Registries};
use bytes::Bytes;
use reqwest::{Method, StatusCode, header};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

const BLOBS: &str = "sha256";
const DRAFTS: &str = "drafts";
const USED: &str = "used";
/// How many pieces may wait between the network and the disk.
const WAITING: usize = 32;
/// A draft that nobody has locked is swept when it is older: a younger one may be about to be locked.
const SETTLED: Duration = Duration::from_secs(60);
const BUFFER: usize = 256 << 10;
/// What a stream must bring before it is cut, not to count as a failure.
const WORTH_A_TRY: u64 = 16 << 20;

/// The folder of blobs.
#[derive(Clone, Debug)]
pub(super) struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    /// Opens the folder, making it when it is missing, and removes drafts that nobody writes any more.
    pub(super) fn open(folder: &Path) -> Result<Self, OciError> {
        for name in [BLOBS, DRAFTS, USED] {
            let path = folder.join(name);
            std::fs::create_dir_all(&path).map_err(OciError::io("create", &path))?;
        }
        let blobs = Self {
            folder: folder.to_owned(),
        };
        blobs.sweep()?;
        Ok(blobs)
    }

    /// The folder itself.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a blob is, or would be.
    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(BLOBS).join(digest.hex())
    }

    /// Whether a blob of this size is there; it counts as used now.
    pub(super) fn has(&self, digest: &Digest, size: u64) -> bool {
        let path = self.path(digest);
        let there = std::fs::metadata(&path).is_ok_and(|found| found.len() == size);
        if there {
            touch(&path);
        }
        there
    }

    /// The text of a small blob, when it is there and whole.
    pub(super) fn read(&self, digest: &Digest, most: u64) -> Option<Vec<u8>> {
        let path = self.path(digest);
        let mut text = Vec::new();
        let file = File::open(&path).ok()?;
        file.take(most + 1).read_to_end(&mut text).ok()?;
        if text.len() as u64 > most || Digest::of(&text) != *digest {
            return None;
        }
        touch(&path);
        Some(text)
    }

    /// Keeps a small blob.
    pub(super) fn put(&self, text: &[u8]) -> Result<Digest, OciError> {
        let digest = Digest::of(text);
        let mut draft = self.draft()?;
        draft
            .write_all(text)
            .map_err(OciError::io("write", draft.path()))?;
        self.publish(draft, &digest)?;
        Ok(digest)
    }

    /// Whether what is there of a blob is what its digest says; if not, it is removed.
    pub(super) fn is_sound(&self, digest: &Digest) -> Result<bool, OciError> {
        let path = self.path(digest);
        let mut file = File::open(&path).map_err(OciError::io("open", &path))?;
        let mut hash = Sha256::new();
        io::copy(&mut file, &mut hash).map_err(OciError::io("read", &path))?;
        let sound = Digest::of_hash(hash) == *digest;
        if !sound {
            std::fs::remove_file(&path).map_err(OciError::io("remove", &path))?;
        }
        Ok(sound)
    }

    /// Where it is noted when an image of a pool was used.
    pub(super) fn mark_path(&self, key: &str) -> PathBuf {
        self.folder.join(USED).join(key)
    }

    /// Notes that an image of a pool is used now.
    pub(super) fn mark(&self, key: &str) {
        let path = self.mark_path(key);
        // Without the note, the image counts as used when it is next looked at.
        if File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .is_ok()
        {
            touch(&path);
        }
    }

    fn draft(&self) -> Result<NamedTempFile, OciError> {
        let drafts = self.folder.join(DRAFTS);
        let draft = tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(&drafts)
            .map_err(OciError::io("make a file in", &drafts))?;
        flock(draft.as_file(), FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| OciError::io("lock", draft.path())(e.into()))?;
        Ok(draft)
    }

    fn publish(&self, draft: NamedTempFile, digest: &Digest) -> Result<(), OciError> {
        let path = self.path(digest);
        draft
            .persist(&path)
            .map_err(|e| OciError::io("rename to", &path)(e.error))?;
        Ok(())
    }

    fn sweep(&self) -> Result<(), OciError> {
        let drafts = self.folder.join(DRAFTS);
        let entries = std::fs::read_dir(&drafts).map_err(OciError::io("list", &drafts))?;
        for entry in entries.flatten() {
            let settled = entry
                .metadata()
                .and_then(|found| found.modified())
                .ok()
                .and_then(|when| SystemTime::now().duration_since(when).ok())
                .is_some_and(|age| age > SETTLED);
            if !settled {
                continue;
            }
            let Ok(file) = File::open(entry.path()) else {
                continue;
            };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                // Somebody else may sweep, too.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Pulls a blob: verified in size and digest while it comes, and taken up where the stream was cut. `arrived` is
    /// told how many bytes came.
    pub(super) async fn pull(
        &self,
        registries: &Registries,
        reference: &Reference,
        blob: &Wanted,
        attempts: u32,
        arrived: impl Fn(u64),
    ) -> Result<(), OciError> {
        let draft = self.draft()?;
        let (sender, pieces) = mpsc::channel(WAITING);
        let writer = tokio::task::spawn_blocking(move || write(draft, pieces));
        let received = receive(registries, reference, blob, attempts, arrived, &sender).await;
        drop(sender);
        let written = writer.await.map_err(|_| OciError::Cancelled)?;
        received?;
        let (draft, found) = written?;
        if found != blob.digest {
            return Err(OciError::Mismatch {
                what: blob.what(),
                reason: format!("the digest of what was sent is {found}"),
            });
        }
        self.publish(draft, &blob.digest)
    }
}

/// A blob as a manifest names it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl Wanted {
    fn what(&self) -> String {
        format!("the blob {}", self.digest)
    }
}

/// Writes and hashes what comes. Off the network's threads: the disk may be slow.
fn write(
    mut draft: NamedTempFile,
    mut pieces: mpsc::Receiver<Bytes>,
) -> Result<(NamedTempFile, Digest), OciError> {
    let mut hash = Sha256::new();
    let mut waiting = Vec::with_capacity(BUFFER);
    while let Some(piece) = pieces.blocking_recv() {
        hash.update(&piece);
        waiting.extend_from_slice(&piece);
        if waiting.len() >= BUFFER {
            draft
                .write_all(&waiting)
                .map_err(OciError::io("write", draft.path()))?;
            waiting.clear();
        }
    }
    draft
        .write_all(&waiting)
        .map_err(OciError::io("write", draft.path()))?;
    Ok((draft, Digest::of_hash(hash)))
}

/// Receives the whole blob, over as many connections as it takes.
async fn receive(
    registries: &Registries,
    reference: &Reference,
    blob: &Wanted,
    attempts: u32,
    arrived: impl Fn(u64),
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), OciError> {
    let mut done = 0_u64;
    let mut tries = 0;
    loop {
        let before = done;
        let error = match stream(registries, reference, blob, &mut done, &arrived, sender).await {
            Ok(()) => return Ok(()),
            Err(Broken::Final(error)) => return Err(error),
            Err(Broken::Cut(error)) => error,
        };
        // Much that came makes up for a cut, so that a large blob gets through; a little does not.
        tries = if done - before >= WORTH_A_TRY {
            1
        } else {
            tries + 1
        };
        if tries >= attempts {
            return Err(error);
        }
        registries.pause(tries, None).await;
    }
}

/// Why a blob did not come to its end.
enum Broken {
    /// The stream was cut; another may go on.
    Cut(OciError),
    Final(OciError),
}

impl From<OciError> for Broken {
    fn from(error: OciError) -> Self {
        Self::Final(error)
    }
}

/// One connection: from byte `done` on, as far as it goes.
async fn stream(
    registries: &Registries,
    reference: &Reference,
    blob: &Wanted,
    done: &mut u64,
    arrived: &impl Fn(u64),
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), Broken> {
    let ask = Ask {
        method: Method::GET,
        path: format!("blobs/{}", blob.digest),
        accept: None,
        from: *done,
        what: blob.what(),
    };
    let mut answer = registries.send(reference, &ask).await?;
    let lie = |reason: String| {
        Broken::Final(OciError::Mismatch {
            what: blob.what(),
            reason,
        })
    };
    let begin = first_byte(&answer, *done).map_err(&lie)?;
    if let Some(length) = answer.content_length()
        && begin + length != blob.size
    {
        return Err(lie(format!(
            "the manifest says {} bytes, the registry sends {}",
            blob.size,
            begin + length
        )));
    }
    let mut at = begin;
    loop {
        let piece = match answer.chunk().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(e) => return Err(Broken::Cut(registries.broken(reference, &e))),
        };
        // A server that cannot begin in the middle sends again what is there.
        let known = usize::try_from(done.saturating_sub(at)).unwrap_or(usize::MAX);
        at += piece.len() as u64;
        if at > blob.size {
            return Err(lie(format!("it has more than its {} bytes", blob.size)));
        }
        if known >= piece.len() {
            continue;
        }
        let fresh = piece.slice(known..);
        let length = fresh.len() as u64;
        // The writer ends early when the disk fails, and says why.
        if sender.send(fresh).await.is_err() {
            return Err(OciError::Cancelled.into());
        }
        *done += length;
        arrived(length);
    }
    if at < blob.size {
        return Err(lie(format!(
            "it has {at} bytes, the manifest says {}",
            blob.size
        )));
    }
    Ok(())
}

/// Where in the blob an answer begins.
fn first_byte(answer: &reqwest::Response, asked: u64) -> Result<u64, String> {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(0);
    }
    let range = answer
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.strip_prefix("bytes "))
        .and_then(|text| text.split_once('-'))
        .and_then(|(first, _)| first.trim().parse::<u64>().ok());
    match range {
        Some(first) if first == asked => Ok(first),
        _ => Err("the registry sends another part than was asked for".into()),
    }
}

fn touch(path: &Path) {
    // The time tells when something may be pruned: without it, that is earlier.
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}
