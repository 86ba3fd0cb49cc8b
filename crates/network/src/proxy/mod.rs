//! The proxy of the VMs: what asks for a name before a connection passes.
//!
//! The firewall sends it the connections to ports 80 and 443 of VMs whose policy names hosts. It reads the name that the
//! client gives (`Host`, or the server's name of TLS), asks the VM's gate (see [`crate::egress`]) about name and
//! address, connects to the address that the client wanted, and then carries bytes both ways without touching them. On
//! HTTP it goes on reading the client's side, because each request names its host.
//!
//! With an upstream proxy all connections to ports 80 and 443 come here, also those that pass without a name.
//!
//! Everything is bounded: connections of one VM and of all, the size of what is read for a name, and the time for it.

mod hello;
mod relay;
mod request;
mod upstream;

pub use upstream::{UpstreamProxy, UpstreamProxyError};

use crate::admission::{Admission, Permit};
use crate::egress::{Egress, Pass, Rule, Wanted};
use crate::plan::{Plan, VMS_PER_SLOT};
use crate::policy::{Host, TCP, Way};
use crate::socket::{self, SocketError};
use hello::Hello;
use request::{Body, Head};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Open connections: of one VM, of all.
const CONNECTIONS: (u16, usize) = (1024, 8192);
/// How long a client may take to say which host it wants, once it has begun.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a server may take to accept.
const CONNECT: Duration = Duration::from_secs(15);
/// How long a refused client is read on, so that it gets the refusal.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a connection may be dead before that is noticed.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long accepting pauses when the process has no file descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(50);
/// The port that slot 0 would have; the same at every start if it is free.
const FIRST_PORT: u16 = 15_400;
const HTTP: u16 = 80;
const READ: usize = 16 << 10;
const FORBIDDEN: &str = "the egress policy of this VM does not allow this request\n";
/// A fatal alert of TLS: access denied.
const DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// The listening socket, before it is served.
#[derive(Debug)]
pub(crate) struct Proxy {
    listener: TcpListener,
    port: u16,
}

impl Proxy {
    pub(crate) fn bind(plan: &Plan) -> Result<Self, SocketError> {
        let usual = FIRST_PORT + plan.slot().number();
        let listener = socket::listen(usual).or_else(|error| match error {
            SocketError::Bind { .. } => socket::listen(0),
            error => Err(error),
        })?;
        let address = listener.local_addr();
        let port = address
            .map_err(|source| SocketError::Bind {
                protocol: "TCP",
                port: usual,
                source,
            })?
            .port();
        Ok(Self { listener, port })
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
        upstream: Option<UpstreamProxy>,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) {
        let service = Service {
            plan,
            egress,
            upstream: upstream.map(Arc::new),
            port: self.port,
            tracker: tracker.clone(),
            stop,
        };
        tracker.spawn(accept(service, self.listener));
    }
}

#[derive(Clone)]
struct Service {
    plan: Plan,
    egress: Arc<Egress>,
    upstream: Option<Arc<UpstreamProxy>>,
    port: u16,
    tracker: TaskTracker,
    stop: CancellationToken,
}

async fn accept(service: Service, listener: TcpListener) {
    let admission = Admission::new(VMS_PER_SLOT, CONNECTIONS.0, CONNECTIONS.1);
    loop {
        let accepted = tokio::select! {
            () = service.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection of a VM");
                tokio::time::sleep(EXHAUSTED).await;
                continue;
            }
        };
        let Some((vm, to)) = service.ends(&stream, from) else {
            continue;
        };
        let Some(permit) = admission.enter(vm) else {
            service.egress.refused(vm, Rule::Crowd, wanted(to, ""));
            continue;
        };
        let client = Client {
            vm,
            to,
            egress: service.egress.clone(),
            upstream: service.upstream.clone(),
            stream,
            read: Vec::new(),
        };
        service
            .tracker
            .spawn(serve(client, permit, service.stop.clone()));
    }
}

impl Service {
    /// Which VM a connection is from and where it wanted to go. The firewall lets no other in; this is the second lock.
    fn ends(&self, stream: &TcpStream, from: SocketAddr) -> Option<(u16, SocketAddrV4)> {
        let IpAddr::V4(address) = from.ip() else {
            return None;
        };
        let vm = self.plan.index_of(address)?;
        let wanted = SockRef::from(stream).original_dst_v4().ok()?;
        let to = wanted.as_socket_ipv4()?;
        // One that was not redirected wanted the proxy itself.
        (to.port() != self.port && !self.plan.range().contains(to.ip())).then_some((vm, to))
    }
}

async fn serve(mut client: Client, permit: Permit, stop: CancellationToken) {
    let conversation = async {
        client.tune();
        let result = match client.way() {
            Some(Way::Direct) => client.unnamed().await,
            Some(Way::Closed) => client.closed(),
            Some(Way::ByName) | None if client.to.port() == HTTP => client.http().await,
            Some(Way::ByName) | None => client.tls().await,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection of a VM has broken");
            // A reset, so that nobody takes what has come for all there is.
            let _ = SockRef::from(&client.stream).set_linger(Some(Duration::ZERO));
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = conversation => {}
    }
    drop(permit);
}

/// A connection that a VM has opened.
struct Client {
    vm: u16,
    to: SocketAddrV4,
    egress: Arc<Egress>,
    upstream: Option<Arc<UpstreamProxy>>,
    stream: TcpStream,
    /// What was read and not passed on yet.
    read: Vec<u8>,
}

impl Client {
    fn tune(&self) {
        keep_alive(&self.stream);
    }

    /// Reads more of what the client sends; false at its end.
    async fn more(&mut self) -> io::Result<bool> {
        let start = self.read.len();
        self.read.resize(start + READ, 0);
        let result = relay::read(&self.stream, &mut self.read[start..]).await;
        self.read
            .truncate(start + result.as_ref().map_or(0, |count| *count));
        Ok(result? > 0)
    }

    fn refuse(&self, rule: Rule, name: &str) {
        self.egress.refused(self.vm, rule, wanted(self.to, name));
    }

    /// How the policy lets the connection pass, where everything leads here; else the firewall has said by name.
    fn way(&self) -> Option<Way> {
        self.upstream.as_ref()?;
        let policy = self.egress.policy(self.vm);
        let (to, port) = (*self.to.ip(), self.to.port());
        Some(match policy.port(port) {
            Way::Closed if policy.passes(to, TCP, port) => Way::Direct,
            way => way,
        })
    }

    /// A connection that needs no name.
    async fn unnamed(&mut self) -> io::Result<()> {
        let (to, port) = (*self.to.ip(), self.to.port());
        let pass = match self.egress.admit_unnamed(self.vm, to, port) {
            Ok(pass) => pass,
            Err(rule) => return self.reset(rule),
        };
        let passing = async {
            let server = self.connect().await?;
            relay::exchange(&self.stream, &server).await
        };
        until_cut(&pass, passing).await
    }

    fn closed(&self) -> io::Result<()> {
        self.reset(Rule::Port)
    }

    fn reset(&self, rule: Rule) -> io::Result<()> {
        self.refuse(rule, "");
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Asks whether a name may pass, in the spelling that it was given.
    fn admit(&self, name: Option<&str>) -> Result<Pass, Rule> {
        let name = canonical(name)?;
        self.egress
            .admit(self.vm, &name, *self.to.ip(), self.to.port())
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let connecting = upstream::connect(self.upstream.as_deref(), self.to);
        let (server, said) = timeout(CONNECT, connecting).await??;
        keep_alive(&server);
        relay::write(&self.stream, &said).await?;
        Ok(server)
    }

    /// A connection whose name TLS tells.
    async fn tls(&mut self) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        let name = loop {
            match hello::read(&self.read) {
                Ok(Hello::Complete(name)) => break name,
                Ok(Hello::Incomplete) if self.read.len() < 2 * hello::LONGEST => {}
                _ => {
                    self.refuse(Rule::Malformed, "");
                    return self.farewell(&DENIED).await;
                }
            }
            match timeout_at(until, self.more()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
        };
        let pass = match self.admit(name.as_deref()) {
            Ok(pass) => pass,
            Err(rule) => {
                self.refuse(rule, name.as_deref().unwrap_or_default());
                return self.farewell(&DENIED).await;
            }
        };
        let passing = async {
            let server = self.connect().await?;
            relay::write(&server, &self.read).await?;
            relay::exchange(&self.stream, &server).await
        };
        until_cut(&pass, passing).await
    }

    /// A connection on which each request names its host.
    async fn http(&mut self) -> io::Result<()> {
        let head = match self.head().await? {
            Next::Head(head) => head,
            Next::End => return Ok(()),
            Next::Malformed => {
                self.refuse(Rule::Malformed, "");
                return self
                    .farewell(&answer(
                        "400 Bad Request",
                        "this is no plain HTTP request\n",
                    ))
                    .await;
            }
        };
        let pass = match self.admit(head.host.as_deref()) {
            Ok(pass) => pass,
            Err(rule) => {
                self.refuse(rule, head.host.as_deref().unwrap_or_default());
                return self.farewell(&answer("403 Forbidden", FORBIDDEN)).await;
            }
        };
        let passing = async {
            let server = match self.connect().await {
                Ok(server) => server,
                Err(_) => {
                    return self
                        .farewell(&answer("502 Bad Gateway", "the host does not answer\n"))
                        .await;
                }
            };
            self.requests(head, &pass, &server).await
        };
        until_cut(&pass, passing).await
    }

    /// Passes requests on until the client or the server ends, or a request is not allowed.
    async fn requests(&mut self, head: Head, pass: &Pass, server: &TcpStream) -> io::Result<()> {
        if head.websocket && head.body == Body::Bytes(0) {
            relay::write(server, &self.read[..head.length]).await?;
            self.read.drain(..head.length);
            if self.switched(server).await? {
                relay::write(server, &std::mem::take(&mut self.read)).await?;
                return relay::exchange(&self.stream, server).await;
            }
            return self.beside_answers(None, pass, server).await;
        }
        self.beside_answers(Some(head), pass, server).await
    }

    async fn beside_answers(
        &mut self,
        first: Option<Head>,
        pass: &Pass,
        server: &TcpStream,
    ) -> io::Result<()> {
        let Client {
            vm,
            to,
            egress,
            stream,
            read,
            ..
        } = self;
        let mut questions = Questions {
            client: stream,
            read: std::mem::take(read),
            pass,
            server,
        };
        let asking = async {
            match questions.pass_on(first).await? {
                Ok(()) => relay::end(server),
                Err((rule, name)) => {
                    egress.refused(*vm, rule, wanted(*to, &name));
                    Err(io::ErrorKind::PermissionDenied.into())
                }
            }
        };
        // An answer may come to its end while the client still asks; then nobody hears it any more.
        tokio::select! {
            answered = relay::carry(server, stream) => answered,
            asked = async { asked_or_wait(asking.await).await } => asked,
        }
    }

    /// Reads the answer to a request for a WebSocket and passes it on; true when it goes on as one.
    async fn switched(&mut self, server: &TcpStream) -> io::Result<bool> {
        let mut answer = Vec::new();
        let mut buffer = vec![0; READ];
        let switched = loop {
            let count = relay::read(server, &mut buffer).await?;
            answer.extend_from_slice(&buffer[..count]);
            let mut headers = [httparse::EMPTY_HEADER; 128];
            let mut response = httparse::Response::new(&mut headers);
            match response.parse(&answer) {
                Ok(httparse::Status::Partial)
                    if count > 0 && answer.len() < request::LONGEST_HEAD => {}
                Ok(httparse::Status::Complete(_)) => break response.code == Some(101),
                _ => break false,
            }
        };
        relay::write(&self.stream, &answer).await?;
        Ok(switched)
    }

    /// The head of the first request.
    async fn head(&mut self) -> io::Result<Next> {
        let until = Instant::now() + PATIENCE;
        loop {
            match request::head(&self.read) {
                Ok(Some(head)) => return Ok(Next::Head(head)),
                Ok(None) => {}
                Err(request::Malformed) => return Ok(Next::Malformed),
            }
            match timeout_at(until, self.more()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return Ok(Next::End),
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Says something last. What the client still sends is read for a moment, so that its system does not throw the
    /// words away.
    async fn farewell(&self, words: &[u8]) -> io::Result<()> {
        let leaving = async {
            relay::write(&self.stream, words).await?;
            relay::end(&self.stream)?;
            let mut buffer = vec![0; READ];
            while relay::read(&self.stream, &mut buffer).await? > 0 {}
            Ok(())
        };
        timeout(FAREWELL, leaving).await.unwrap_or(Ok(()))
    }
}

/// What comes next from a client.
enum Next {
    Head(Head),
    End,
    Malformed,
}

/// The client's side of a connection that carries requests.
struct Questions<'a> {
    client: &'a TcpStream,
    read: Vec<u8>,
    pass: &'a Pass,
    server: &'a TcpStream,
}

impl Questions<'_> {
    /// Passes requests on until the client has none; the rule that refuses one, and what it named.
    async fn pass_on(&mut self, first: Option<Head>) -> io::Result<Result<(), (Rule, String)>> {
        let mut next = first;
        loop {
            let head = match next.take() {
                Some(head) => head,
                None => match self.head().await? {
                    Next::Head(head) => head,
                    Next::End => return Ok(Ok(())),
                    Next::Malformed => return Ok(Err((Rule::Malformed, String::new()))),
                },
            };
            let named = head.host.as_deref();
            if let Err(rule) = canonical(named).and_then(|name| self.pass.also(&name)) {
                return Ok(Err((rule, head.host.unwrap_or_default())));
            }
            relay::write(self.server, &self.read[..head.length]).await?;
            self.read.drain(..head.length);
            if !self.body(head.body).await? {
                return Ok(Err((Rule::Malformed, String::new())));
            }
        }
    }

    /// Passes a body on; false when it is malformed or breaks off.
    async fn body(&mut self, mut body: Body) -> io::Result<bool> {
        if body == Body::Bytes(0) {
            return Ok(true);
        }
        loop {
            let Ok((count, over)) = body.pass(&self.read) else {
                return Ok(false);
            };
            relay::write(self.server, &self.read[..count]).await?;
            self.read.drain(..count);
            if over {
                return Ok(true);
            }
            if !self.more().await? {
                return Ok(false);
            }
        }
    }

    /// The next head. A client may be silent between two requests, but not within one.
    async fn head(&mut self) -> io::Result<Next> {
        if self.read.is_empty() && !self.more().await? {
            return Ok(Next::End);
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match request::head(&self.read) {
                Ok(Some(head)) => return Ok(Next::Head(head)),
                Ok(None) => {}
                Err(request::Malformed) => return Ok(Next::Malformed),
            }
            match timeout_at(until, self.more()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return Ok(Next::Malformed),
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    async fn more(&mut self) -> io::Result<bool> {
        let start = self.read.len();
        self.read.resize(start + READ, 0);
        let result = relay::read(self.client, &mut self.read[start..]).await;
        self.read
            .truncate(start + result.as_ref().map_or(0, |count| *count));
        Ok(result? > 0)
    }
}

/// What a connection wants, for the record of refusals.
fn wanted(to: SocketAddrV4, name: &str) -> Wanted<'_> {
    Wanted {
        protocol: if to.port() == HTTP { "http" } else { "https" },
        name: Some(name),
        to: Some((*to.ip(), to.port())),
    }
}

/// The name in its one spelling.
fn canonical(name: Option<&str>) -> Result<String, Rule> {
    match name.map(Host::read) {
        Some(Some(Host::Name(name))) => Ok(name),
        Some(None) if name != Some("") => Err(Rule::Malformed),
        Some(_) | None => Err(Rule::Nameless),
    }
}

/// When the client has asked all, its answers are still to come.
async fn asked_or_wait(asked: io::Result<()>) -> io::Result<()> {
    match asked {
        Ok(()) => std::future::pending().await,
        failed => failed,
    }
}

async fn until_cut(pass: &Pass, passing: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::select! {
        biased;
        () = pass.cut() => Err(io::ErrorKind::PermissionDenied.into()),
        passed = passing => passed,
    }
}

fn answer(status: &str, text: &str) -> Vec<u8> {
    let length = text.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )
    .into_bytes()
}

/// Small pieces go at once, and a peer that is gone is noticed.
fn keep_alive(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 4);
    // Without these it works, only slower to notice.
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&probes);
    let _ = socket.set_tcp_user_timeout(Some(2 * KEEPALIVE));
}
