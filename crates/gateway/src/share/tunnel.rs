//! What is no HTTP any more: bytes both ways, for as long as both sides and the owner want.

use super::Inner;
use super::entry::Entry;
use super::upstream::Upstream;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// Bytes of each way's buffer.
const BUFFER: usize = 16 << 10;
/// Between two looks at whether the key that opened it is still valid.
const LOOK: Duration = Duration::from_secs(10);
/// How long both sides may take to go over.
const HANDOVER: Duration = Duration::from_secs(10);

/// What a tunnel is made from.
pub(super) struct Tunnel {
    pub(super) entry: Arc<Entry>,
    pub(super) caller: OnUpgrade,
    pub(super) app: OnUpgrade,
    /// The connection to the app, until it is taken over.
    pub(super) upstream: Upstream,
    pub(super) over: CancellationToken,
    /// The key that opened it.
    pub(super) key_id: Option<i64>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Starts it; it ends with either side, with the pass that it was opened by, or with the daemon.
pub(super) fn start(inner: &Arc<Inner>, tunnel: Tunnel) {
    let there = inner.clone();
    inner.tracker.spawn(async move {
        let (over, stop) = (tunnel.over.clone(), there.stop.clone());
        tokio::select! {
            () = run(&there, tunnel) => {}
            () = over.cancelled() => {}
            () = stop.cancelled() => {}
        }
    });
}

async fn run(inner: &Inner, tunnel: Tunnel) {
    let Tunnel {
        entry,
        caller,
        app,
        upstream,
        key_id,
        permit: _permit,
        ..
    } = tunnel;
    let both = async { tokio::try_join!(caller, app) };
    let Ok(Ok((caller, app))) = tokio::time::timeout(HANDOVER, both).await else {
        return;
    };
    drop(upstream);
    let (mut caller, mut app) = (TokioIo::new(caller), TokioIo::new(app));
    let copying = copy_bidirectional_with_sizes(&mut caller, &mut app, BUFFER, BUFFER);
    tokio::select! {
        copied = copying => if let Err(error) = copied {
            tracing::debug!(share = entry.id, %error, "a tunnel broke off");
        },
        () = revoked(inner, &entry, key_id) => {}
    }
}

/// Returns when the key that opened the share is no longer the owner's.
async fn revoked(inner: &Inner, entry: &Entry, key_id: Option<i64>) {
    let Some(key_id) = key_id else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(LOOK).await;
        if inner.keys.account_of(key_id).await != Some(entry.account_id) {
            return;
        }
    }
}
