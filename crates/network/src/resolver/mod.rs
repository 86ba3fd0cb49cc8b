//! The resolver of the VMs: one UDP and one TCP socket for the whole instance.
//!
//! A VM asks its gateway on port 53; the firewall redirects that to the instance's sockets, and the source address,
//! which a VM cannot choose, tells which VM asks. Questions go to the host's own resolvers as they are configured at that
//! time; answers come back whole, without a cache of our own.
//!
//! The sockets are bound to all addresses, because a redirect leads to the address of the link that a packet came in
//! by, and carry [`crate::firewall::SOCKET_MARK`]: the firewall lets nobody but VMs reach a socket with that mark.
//!
//! Everything is bounded: packets a second (in the firewall), questions and connections of one VM and of all, their size
//! and their time. A VM that floods the resolver meets its own bounds first.

mod admission;
mod message;
mod upstream;

pub(crate) use upstream::{SYSTEM, system_servers};

use crate::firewall::SOCKET_MARK;
use crate::plan::{Plan, VMS_PER_SLOT};
use admission::{Admission, Permit};
use futures::{SinkExt, StreamExt};
use message::{Question, Refusal, Transport};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::bytes::Bytes;
use tokio_util::codec::LengthDelimitedCodec;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use upstream::Upstream;

/// Questions in flight by UDP: of one VM, of all.
const QUESTIONS: (u16, usize) = (64, 1024);
/// Open TCP connections: of one VM, of all.
const CONNECTIONS: (u16, usize) = (8, 1024);
/// How long a TCP connection may be silent, or an answer on it unread.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest question that is read by UDP.
const PACKET: usize = 4096;
/// The port that slot 0 would have; the port is the same at every start if it is free, so that a VM's resolver that
/// keeps its socket is understood again after a restart.
const FIRST_PORT: u16 = 15_300;
const RECEIVE_BUFFER: usize = 1 << 20;
/// How long accepting pauses when the process has no file descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Why the resolver's sockets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The socket cannot be opened or bound.
    #[error("binding the resolver's {protocol} socket to port {port}")]
    Bind {
        /// UDP or TCP.
        protocol: &'static str,
        /// The port; 0 is any.
        port: u16,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The socket's mark cannot be set.
    #[error("marking the resolver's socket. FIX: run as root with CAP_NET_ADMIN")]
    Mark(#[source] io::Error),
}

/// The sockets, before they are served.
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
    port: u16,
}

impl Sockets {
    /// Binds both to one port.
    pub(crate) fn bind(plan: &Plan) -> Result<Self, ResolverError> {
        let usual = FIRST_PORT + plan.slot().number();
        // A random port that UDP gets may be taken for TCP; a few tries make that improbable.
        let tries = [usual, 0, 0, 0, 0];
        let mut last = None;
        for port in tries {
            match Self::bind_to(port) {
                Err(error @ ResolverError::Bind { .. }) => last = Some(error),
                done => return done,
            }
        }
        Err(last.unwrap_or(ResolverError::Mark(io::ErrorKind::AddrInUse.into())))
    }

    fn bind_to(port: u16) -> Result<Self, ResolverError> {
        let udp_failed = |source| ResolverError::Bind {
            protocol: "UDP",
            port,
            source,
        };
        let socket = marked(Type::DGRAM, Protocol::UDP, udp_failed)?;
        socket
            .set_recv_buffer_size(RECEIVE_BUFFER)
            .map_err(udp_failed)?;
        bind(&socket, port).map_err(udp_failed)?;
        let udp = UdpSocket::from_std(socket.into()).map_err(udp_failed)?;
        let port = udp.local_addr().map_err(udp_failed)?.port();

        let tcp_failed = |source| ResolverError::Bind {
            protocol: "TCP",
            port,
            source,
        };
        let socket = marked(Type::STREAM, Protocol::TCP, tcp_failed)?;
        socket.set_reuse_address(true).map_err(tcp_failed)?;
        bind(&socket, port).map_err(tcp_failed)?;
        socket.listen(1024).map_err(tcp_failed)?;
        let tcp = TcpListener::from_std(socket.into()).map_err(tcp_failed)?;
        Ok(Self { udp, tcp, port })
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Serves until `stop`.
    pub(crate) fn serve(
        self,
        plan: Plan,
        upstream: Option<Vec<SocketAddr>>,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) {
        let in_flight = QUESTIONS.1 + CONNECTIONS.1;
        let upstream = Arc::new(Upstream::new(upstream, in_flight));
        let service = Service {
            plan,
            upstream,
            tracker: tracker.clone(),
            stop,
        };
        tracker.spawn(serve_udp(service.clone(), self.udp));
        tracker.spawn(serve_tcp(service, self.tcp));
    }
}

fn marked(
    kind: Type,
    protocol: Protocol,
    failed: impl Fn(io::Error) -> ResolverError,
) -> Result<Socket, ResolverError> {
    let socket = Socket::new(Domain::IPV4, kind, Some(protocol)).map_err(&failed)?;
    socket.set_nonblocking(true).map_err(&failed)?;
    socket.set_mark(SOCKET_MARK).map_err(ResolverError::Mark)?;
    Ok(socket)
}

fn bind(socket: &Socket, port: u16) -> io::Result<()> {
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())
}

#[derive(Clone)]
struct Service {
    plan: Plan,
    upstream: Arc<Upstream>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Service {
    /// Which VM an address belongs to. The firewall lets no other in; this is the second lock.
    fn vm(&self, from: SocketAddr) -> Option<u16> {
        match from.ip() {
            IpAddr::V4(address) => self.plan.index_of(address),
            IpAddr::V6(_) => None,
        }
    }

    /// The answer to a packet, if it gets one.
    async fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match Question::read(packet) {
            Ok(question) => {
                let answer = self.upstream.ask(&question).await;
                question.reply(answer, transport)
            }
            Err(Refusal::Reply(reply)) => Some(reply),
            Err(Refusal::Silence) => None,
        }
    }
}

async fn serve_udp(service: Service, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let admission = Admission::new(VMS_PER_SLOT, QUESTIONS.0, QUESTIONS.1);
    let mut buffer = vec![0; PACKET];
    loop {
        let received = tokio::select! {
            () = service.stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (size, from) = match received {
            Ok(received) => received,
            Err(error) => {
                // An ICMP error about an earlier answer; the socket is still good.
                tracing::debug!(%error, "receiving a DNS packet");
                continue;
            }
        };
        // Over the limit there is no answer: the VM's own retry is the pressure back.
        let Some(permit) = service.vm(from).and_then(|vm| admission.enter(vm)) else {
            continue;
        };
        let packet = buffer[..size].to_vec();
        let (service, socket) = (service.clone(), socket.clone());
        service.tracker.clone().spawn(async move {
            let reply = tokio::select! {
                () = service.stop.cancelled() => None,
                reply = service.answer(&packet, Transport::Udp) => reply,
            };
            if let Some(reply) = reply
                && let Err(error) = socket.send_to(&reply, from).await
            {
                tracing::debug!(%error, "sending a DNS answer");
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(service: Service, listener: TcpListener) {
    let admission = Admission::new(VMS_PER_SLOT, CONNECTIONS.0, CONNECTIONS.1);
    loop {
        let accepted = tokio::select! {
            () = service.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(permit) = service.vm(from).and_then(|vm| admission.enter(vm)) else {
                    continue;
                };
                let service = service.clone();
                service
                    .tracker
                    .clone()
                    .spawn(converse(service, stream, permit));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// Answers the questions of one connection, one after the other.
async fn converse(service: Service, stream: TcpStream, permit: Permit) {
    let mut frames = LengthDelimitedCodec::builder()
        .length_field_type::<u16>()
        .max_frame_length(usize::from(u16::MAX))
        .new_framed(stream);
    let conversation = async {
        while let Ok(Some(Ok(packet))) = timeout(PATIENCE, frames.next()).await {
            let Some(reply) = service.answer(&packet, Transport::Tcp).await else {
                break;
            };
            match timeout(PATIENCE, frames.send(Bytes::from(reply))).await {
                Ok(Ok(())) => {}
                _ => break,
            }
        }
    };
    tokio::select! {
        () = service.stop.cancelled() => {}
        () = conversation => {}
    }
    drop(permit);
}
