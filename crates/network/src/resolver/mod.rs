//! The resolver of the VMs: one UDP and one TCP socket for the whole instance.
//!
//! A VM asks its gateway on port 53; the firewall redirects that to the instance's sockets, and the source address,
//! which a VM cannot choose, tells which VM asks. Questions go to the host's own resolvers as they are configured at that
//! time; answers come back whole, without a cache of our own.
//!
//! Under a policy that is not open, only questions for addresses are answered, and only for names that the policy
//! reaches. The addresses that a VM was given for a name are remembered (see [`crate::egress`]): the proxy asks for them.
//!
//! Everything is bounded: packets a second (in the firewall), questions and connections of one VM and of all, their size
//! and their time. A VM that floods the resolver meets its own bounds first.

mod message;
mod upstream;

pub(crate) use upstream::{SYSTEM, system_servers};

use crate::admission::{Admission, Permit};
use crate::egress::{Egress, Rule, Wanted};
use crate::plan::{Plan, VMS_PER_SLOT};
use crate::policy::Host;
use crate::socket::{self, SocketError};
use futures::{SinkExt, StreamExt};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{DNSClass, RData, RecordType};
use message::{Answer, Question, Refusal, Transport};
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
/// How long accepting pauses when the process has no file descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// The sockets, before they are served.
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
    port: u16,
}

impl Sockets {
    /// Binds both to one port.
    pub(crate) fn bind(plan: &Plan) -> Result<Self, SocketError> {
        let usual = FIRST_PORT + plan.slot().number();
        // A random port that UDP gets may be taken for TCP; a few tries make that improbable.
        let tries = [usual, 0, 0, 0, 0];
        let mut last = None;
        for port in tries {
            match Self::bind_to(port) {
                Err(error @ SocketError::Bind { .. }) => last = Some(error),
                done => return done,
            }
        }
        Err(last.unwrap_or(SocketError::Mark(io::ErrorKind::AddrInUse.into())))
    }

    fn bind_to(port: u16) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Bind {
            protocol: "UDP",
            port,
            source,
        };
        let udp = socket::receive(port)?;
        let port = udp.local_addr().map_err(failed)?.port();
        let tcp = socket::listen(port)?;
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
        egress: Arc<Egress>,
        upstream: Option<Vec<SocketAddr>>,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) {
        let in_flight = QUESTIONS.1 + CONNECTIONS.1;
        let upstream = Arc::new(Upstream::new(upstream, in_flight));
        let service = Service {
            plan,
            egress,
            upstream,
            tracker: tracker.clone(),
            stop,
        };
        tracker.spawn(serve_udp(service.clone(), self.udp));
        tracker.spawn(serve_tcp(service, self.tcp));
    }
}

#[derive(Clone)]
struct Service {
    plan: Plan,
    egress: Arc<Egress>,
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

    /// The VM that asks, with a place.
    fn enter(&self, admission: &Arc<Admission>, from: SocketAddr) -> Option<(u16, Permit)> {
        let vm = self.vm(from)?;
        Some((vm, admission.enter(vm)?))
    }

    /// The answer to a packet, if it gets one.
    async fn answer(&self, vm: u16, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match Question::read(packet) {
            Ok(question) => {
                let answer = self.look_up(vm, &question).await;
                question.reply(answer, transport)
            }
            Err(Refusal::Reply(reply)) => Some(reply),
            Err(Refusal::Silence) => None,
        }
    }

    /// What the VM may know about a question.
    async fn look_up(&self, vm: u16, question: &Question) -> Answer {
        let name = match Host::read(&question.query.name().to_ascii()) {
            Some(Host::Name(name)) => Some(name),
            Some(Host::Address) | None => None,
        };
        if let Err(answer) = self.judge(vm, name.as_deref(), question) {
            return answer;
        }
        let answer = self.upstream.ask(question).await;
        // The policy may have changed meanwhile.
        if let Err(refusal) = self.judge(vm, name.as_deref(), question) {
            return refusal;
        }
        if let Some(name) = name
            && question.query.query_type() == RecordType::A
        {
            self.egress.pin(vm, &name, &addresses(&answer));
        }
        answer
    }

    /// Whether a question may be asked; else the answer without asking.
    fn judge(&self, vm: u16, name: Option<&str>, question: &Question) -> Result<(), Answer> {
        let policy = self.egress.policy(vm);
        if policy.is_open() {
            return Ok(());
        }
        let refuse = |rule| {
            let name = question.query.name().to_ascii();
            let wanted = Wanted {
                protocol: "dns",
                name: Some(&name),
                to: None,
            };
            self.egress.refused(vm, rule, wanted);
            Err(Answer::empty(ResponseCode::Refused))
        };
        if !name.is_some_and(|name| policy.resolves(name)) {
            return refuse(Rule::Name);
        }
        match question.query.query_type() {
            _ if question.query.query_class() != DNSClass::IN => refuse(Rule::Question),
            RecordType::A => Ok(()),
            // VMs have no IPv6, and hints about a server's ways must not lead around its name.
            RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => {
                Err(Answer::empty(ResponseCode::NoError))
            }
            _ => refuse(Rule::Question),
        }
    }
}

/// The addresses of an answer, with their time.
fn addresses(answer: &Answer) -> Vec<(Ipv4Addr, Duration)> {
    let of = |record: &hickory_resolver::proto::rr::Record| match &record.data {
        RData::A(address) => Some((address.0, Duration::from_secs(record.ttl.into()))),
        _ => None,
    };
    answer.answers.iter().filter_map(of).collect()
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
        let Some((vm, permit)) = service.enter(&admission, from) else {
            continue;
        };
        let packet = buffer[..size].to_vec();
        let (service, socket) = (service.clone(), socket.clone());
        service.tracker.clone().spawn(async move {
            let reply = tokio::select! {
                () = service.stop.cancelled() => None,
                reply = service.answer(vm, &packet, Transport::Udp) => reply,
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
                let Some((vm, permit)) = service.enter(&admission, from) else {
                    continue;
                };
                let service = service.clone();
                service
                    .tracker
                    .clone()
                    .spawn(converse(service, vm, stream, permit));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// Answers the questions of one connection, one after the other.
async fn converse(service: Service, vm: u16, stream: TcpStream, permit: Permit) {
    let mut frames = LengthDelimitedCodec::builder()
        .length_field_type::<u16>()
        .max_frame_length(usize::from(u16::MAX))
        .new_framed(stream);
    let conversation = async {
        while let Ok(Some(Ok(packet))) = timeout(PATIENCE, frames.next()).await {
            let Some(reply) = service.answer(vm, &packet, Transport::Tcp).await else {
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
