//! Sockets that callers come in by.

use super::connection;
use super::entry::{Entry, Slot};
use super::proxy::Door;
use super::tls::Certificate;
use super::{Inner, OpenError, StartError, TlsFiles};
use rand::Rng;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections that the kernel keeps for us.
const BACKLOG: u32 = 1_024;
/// After a failed accept (too many open files) a listener waits this long.
const PAUSE: Duration = Duration::from_millis(100);
/// How long TLS may take to begin.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After this long without a sign of life the kernel asks a caller for one.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long a caller may not take what is sent to it.
const UNREAD: Duration = Duration::from_secs(120);
/// Between two clearings of connections to apps.
const SWEEP: Duration = Duration::from_secs(5);
/// What a connection is told for which there is no room.
const NO_ROOM: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 42\r\n\
    retry-after: 1\r\nconnection: close\r\n\r\nToo many connections are open; try later.\n";

/// The ports of shares.
#[derive(Default)]
pub(super) struct Ports {
    /// Where the next search begins, counted from the first port of the range.
    next: Mutex<Option<u16>>,
    hosts: OnceLock<SocketAddr>,
}

impl Ports {
    /// Where host names are listened for.
    pub(super) fn hosts(&self) -> Option<SocketAddr> {
        self.hosts.get().copied()
    }

    /// The ports of a range in the order in which they are tried, so that one that was given up comes last.
    fn in_turn(&self, ports: &RangeInclusive<u16>) -> impl Iterator<Item = u16> {
        let (first, count) = (*ports.start(), u32::from(ports.end() - ports.start()) + 1);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // Another start for each process, so that those that share a range meet less often.
        let start = next.unwrap_or_else(|| rand::rng().random());
        *next = Some(start);
        (0..count).map(move |step| {
            let offset = (u32::from(start) + step) % count;
            first + u16::try_from(offset).unwrap_or(0)
        })
    }

    /// The next search begins behind this port.
    fn taken(&self, ports: &RangeInclusive<u16>, port: u16) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = Some((port - ports.start()).wrapping_add(1));
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // What an earlier daemon left in closing connections is no reason to move.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Binds a port: the wanted one, else the next that is free.
fn bind_one(
    inner: &Inner,
    (address, ports): (IpAddr, &RangeInclusive<u16>),
    wanted: Option<u16>,
    may_move: bool,
) -> Result<(TcpListener, u16), OpenError> {
    let failed = |port, source| OpenError::Listen {
        address: SocketAddr::new(address, port),
        source,
    };
    let wanted = wanted.filter(|port| ports.contains(port));
    let others = may_move.then(|| inner.ports.in_turn(ports));
    for port in wanted.into_iter().chain(others.into_iter().flatten()) {
        match bind(SocketAddr::new(address, port)) {
            Ok(listener) => {
                if wanted != Some(port) {
                    inner.ports.taken(ports, port);
                }
                return Ok((listener, port));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(source) => return Err(failed(port, source)),
        }
    }
    Err(OpenError::NoPort)
}

/// Listens for a share at a port of its own.
pub(super) fn serve_port(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    place: (IpAddr, &RangeInclusive<u16>),
    wanted: Option<u16>,
    may_move: bool,
) -> Result<(), OpenError> {
    let (listener, port) = match bind_one(inner, place, wanted, may_move) {
        Ok(bound) => bound,
        // The port of a share that has ended is better than none.
        Err(OpenError::NoPort) if may_move => {
            let slot = inner.take_slot().ok_or(OpenError::NoPort)?;
            slot.give(entry);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let (there, slot) = (inner.clone(), Slot::new(port, entry));
    inner.tracker.spawn(async move {
        let stop = there.stop.clone();
        let accepting = accept(&there, listener, |stream, from, permit| {
            let serving = connection::serve(there.clone(), Door::Port(slot.entry()), from, stream);
            there.tracker.spawn(async move {
                serving.await;
                drop(permit);
            });
        });
        tokio::select! {
            () = accepting => {}
            () = sweep(&slot) => {}
            () = slot.closed() => {}
            () = stop.cancelled() => {}
        }
    });
    Ok(())
}

/// Listens for the host names of all shares.
pub(super) async fn serve_hosts(
    inner: &Arc<Inner>,
    address: SocketAddr,
    tls: Option<TlsFiles>,
) -> Result<(), StartError> {
    let certificate = tls.map(Certificate::load).transpose()?.map(Arc::new);
    let failed = |source| StartError::Listen { address, source };
    let listener = bind(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    inner.ports.hosts.get_or_init(|| bound);
    if let Some(certificate) = certificate.clone() {
        let stop = inner.stop.clone();
        inner
            .tracker
            .spawn(async move { certificate.follow(stop).await });
    }
    let there = inner.clone();
    inner.tracker.spawn(async move {
        let stop = there.stop.clone();
        let accepting = accept(&there, listener, |stream, from, permit| {
            let (inner, certificate) = (there.clone(), certificate.clone());
            there.tracker.spawn(async move {
                serve_host(inner, stream, from, certificate).await;
                drop(permit);
            });
        });
        tokio::select! {
            () = accepting => {}
            () = sweep_all(&there) => {}
            () = stop.cancelled() => {}
        }
    });
    Ok(())
}

async fn serve_host(
    inner: Arc<Inner>,
    stream: TcpStream,
    from: IpAddr,
    certificate: Option<Arc<Certificate>>,
) {
    let Some(certificate) = certificate else {
        return connection::serve(inner, Door::Hosts, from, stream).await;
    };
    let handshake = certificate.acceptor().accept(stream);
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => connection::serve(inner, Door::Hosts, from, stream).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS did not begin"),
        Err(_) => tracing::debug!("TLS took too long to begin"),
    }
}

/// Takes connections for ever. One for which there is no room is told so.
async fn accept(
    inner: &Inner,
    listener: TcpListener,
    serve: impl Fn(TcpStream, IpAddr, OwnedSemaphorePermit),
) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection to a share was not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let from = peer.ip().to_canonical();
        match Semaphore::try_acquire_owned(inner.connections.clone()) {
            Ok(permit) => {
                prepare(&stream);
                serve(stream, from, permit);
            }
            Err(_) => refuse(stream).await,
        }
    }
}

/// A few bytes always find room in the kernel's buffer.
async fn refuse(mut stream: TcpStream) {
    // Whoever is gone again needs no answer.
    let _ = stream.write_all(NO_ROOM).await;
    let _ = stream.shutdown().await;
}

/// Makes small answers fast, and lets the kernel end what nobody is at any more.
fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 4)
        .with_retries(4);
    let done = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_tcp_user_timeout(Some(UNREAD)));
    if let Err(error) = done {
        tracing::debug!(%error, "a connection stays as the kernel made it");
    }
}

/// Closes connections to the app of a share that nobody has used for a while.
async fn sweep(slot: &Slot) {
    loop {
        tokio::time::sleep(SWEEP).await;
        slot.entry().pool.sweep();
    }
}

async fn sweep_all(inner: &Inner) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let all = inner.all.read().unwrap_or_else(PoisonError::into_inner);
        for entry in all.entries.values() {
            entry.pool.sweep();
        }
    }
}
