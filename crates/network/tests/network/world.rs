//! A host with a network of VMs, and an outside that it reaches by its default route.

use crate::place::{Place, enter_new_namespace, shell};
use crate::server;
use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::RecordType;
use instavm_network::{Link, Network, NetworkConfig, Policy, Slot};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long something that must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long something that must not happen is waited for.
pub const SHORT: Duration = Duration::from_millis(700);

/// The host's address on the link to the outside.
pub const HOST: &str = "198.18.0.1";
/// The outside's echo server.
pub const ECHO: &str = "198.18.0.2:7000";
/// The metadata service of the outside.
pub const METADATA: &str = "169.254.169.254:80";
/// A range that the operator has closed.
pub const DENIED: &str = "203.0.113.7:80";
const DNS: &str = "198.18.0.2:5300";

/// The outside, seen from the host that the test runs in.
pub struct World {
    pub outside: Place,
}

/// Runs a test in the network namespace of a host of its own.
pub fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    let host = std::thread::spawn(|| {
        enter_new_namespace();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("building a runtime");
        runtime.block_on(async { test(World::new().await).await });
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

impl World {
    async fn new() -> Self {
        let outside = Place::new();
        shell(&format!(
            "ip link add up0 mtu 1400 type veth peer name eth0 mtu 1400 netns {}
             ip addr add {HOST}/24 dev up0
             ip link set up0 up
             ip route add default via 198.18.0.2",
            outside.id,
        ));
        let script = "ip addr add 198.18.0.2/24 dev eth0
             ip addr add 198.18.1.1/32 dev lo
             ip addr add 169.254.169.254/32 dev lo
             ip addr add 203.0.113.7/32 dev lo
             ip link set eth0 up";
        outside.shell(script).await;
        for address in [ECHO, METADATA, DENIED] {
            let listener = outside.run(|| server::listen(address)).await;
            outside.start(move || server::echo(listener));
        }
        let (udp, tcp) = outside
            .run(|| (UdpSocket::bind(DNS), server::listen(DNS)))
            .await;
        let udp = udp.expect("binding the DNS server");
        outside.start(move || server::dns_udp(udp));
        outside.start(move || server::dns_tcp(tcp));
        Self { outside }
    }

    pub fn config(slot: u16) -> NetworkConfig {
        NetworkConfig {
            denied: vec!["203.0.113.0/24".parse().expect("a range")],
            resolvers: Some(vec![DNS.parse().expect("an address")]),
            ..NetworkConfig::new(Slot::new(slot).expect("a slot"))
        }
    }
}

/// An instance's network with its tasks.
pub struct Instance {
    pub network: Network,
    tracker: TaskTracker,
}

impl Instance {
    pub async fn open(slot: u16) -> Self {
        Self::with(World::config(slot)).await
    }

    pub async fn with(config: NetworkConfig) -> Self {
        let tracker = TaskTracker::new();
        let network = Network::open(config, &tracker, &CancellationToken::new()).await;
        Self {
            network: network.expect("opening the network"),
            tracker,
        }
    }

    /// Opens it as after a restart, with the policies of VMs that live.
    pub async fn adopt(
        config: NetworkConfig,
        policies: impl IntoIterator<Item = (u16, Policy)>,
    ) -> Self {
        let tracker = TaskTracker::new();
        let stop = CancellationToken::new();
        let network = Network::open_with(config, policies, &tracker, &stop).await;
        Self {
            network: network.expect("opening the network"),
            tracker,
        }
    }

    /// Ends it as a daemon does; links and firewall stay.
    pub async fn close(self) {
        self.network.close();
        drop(self.network);
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// A VM with a configured link.
    pub async fn vm(&self, index: u16) -> Vm {
        let place = Place::new();
        let link = self
            .network
            .attach(index, place.id)
            .await
            .expect("attaching");
        let Link {
            name,
            address,
            prefix,
            gateway,
            ..
        } = link.clone();
        place
            .shell(format!(
                "ip addr add {address}/{prefix} dev {name}
                 ip link set {name} up
                 ip route add default via {gateway}"
            ))
            .await;
        self.network.ready(index).await.expect("both ends are up");
        Vm { place, link }
    }
}

/// A VM: a network namespace with a link.
pub struct Vm {
    pub place: Place,
    pub link: Link,
}

impl Vm {
    /// What a TCP connection to an echo server says about the caller.
    pub async fn dial(&self, address: impl ToString) -> io::Result<Ipv4Addr> {
        let address = address.to_string();
        self.place
            .run(move || dial(&address, SHORT).map(|(caller, _)| caller))
            .await
    }

    /// The connection itself.
    pub async fn connect(&self, address: &'static str) -> Echo {
        self.place
            .run(move || dial(address, PATIENCE).expect("connecting").1)
            .await
    }

    /// Asks the VM's resolver by UDP.
    pub async fn resolve(&self, name: &'static str) -> io::Result<Message> {
        self.ask(name, RecordType::A).await
    }

    /// Asks the VM's resolver for records of any kind.
    pub async fn ask(&self, name: &'static str, kind: RecordType) -> io::Result<Message> {
        let resolver = SocketAddr::from((self.link.gateway, 53));
        self.place
            .run(move || {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(resolver)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send(&server::question(name, kind))?;
                let mut buffer = [0; 4096];
                let size = socket.recv(&mut buffer)?;
                Message::from_vec(&buffer[..size]).map_err(io::Error::other)
            })
            .await
    }

    /// Lets the VM listen, with an echo server.
    pub async fn listen(&self, port: u16) {
        let listener = self
            .place
            .run(move || server::listen(&format!("0.0.0.0:{port}")))
            .await;
        self.place.start(move || server::echo(listener));
    }
}

/// A connection to an echo server.
pub struct Echo(BufReader<TcpStream>);

impl Echo {
    /// Sends a line and waits for it to come back.
    pub fn talk(&mut self, line: &str) {
        writeln!(self.0.get_mut(), "{line}").expect("writing");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("reading");
        assert_eq!(answer.trim_end(), line);
    }

    /// Sends a line to a peer that must not be there any more; how that failed, or nothing if it came back.
    pub fn broken(&mut self) -> Option<io::Error> {
        let mut answer = String::new();
        let sent = writeln!(self.0.get_mut(), "is anybody there?");
        match sent.and_then(|()| self.0.read_line(&mut answer)) {
            Ok(0) => Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => None,
            Err(error) => Some(error),
        }
    }
}

/// Connects to an echo server from the calling thread's namespace: who it says is calling, and the connection.
pub fn dial(address: &str, patience: Duration) -> io::Result<(Ipv4Addr, Echo)> {
    let address: SocketAddr = address.parse().expect("an address");
    let stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut echo = Echo(BufReader::new(stream));
    let mut caller = String::new();
    echo.0.read_line(&mut caller)?;
    let caller = caller.trim().parse().map_err(io::Error::other)?;
    Ok((caller, echo))
}

/// Asserts that a connection was refused at once.
pub fn assert_refused<T: std::fmt::Debug>(what: &str, result: io::Result<T>) {
    let error = result.expect_err(what);
    assert_eq!(
        error.kind(),
        io::ErrorKind::ConnectionRefused,
        "{what}: {error}"
    );
}

/// Asserts that a connection came to nothing.
pub fn assert_dropped<T: std::fmt::Debug>(what: &str, result: io::Result<T>) {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{what}: {error}");
}
