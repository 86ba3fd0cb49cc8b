//! Hosts of the outside for tests of policies, and what a VM sends them.

use crate::place::Place;
use crate::server;
use crate::world::{PATIENCE, SHORT, World};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What `allowed.test`, everything below `wild.test` and `xn--bcher-kva.test` resolve to.
pub const GOOD: Ipv4Addr = Ipv4Addr::new(198, 18, 3, 1);
/// What `evil.test` resolves to.
pub const ATTACKER: Ipv4Addr = Ipv4Addr::new(198, 18, 4, 1);
/// A host in a range that some policies open.
pub const RANGE: Ipv4Addr = Ipv4Addr::new(198, 18, 5, 1);
/// What `pypi.org` resolves to.
pub const REGISTRY: Ipv4Addr = Ipv4Addr::new(198, 18, 6, 1);

/// A well-known resolver of others.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

const TCP: [u16; 6] = [22, 53, 80, 443, 853, 8443];
const UDP: [u16; 3] = [53, 443, 9999];
/// What every server says.
const TAG: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntag";

/// What has arrived at hosts of the outside.
#[derive(Clone, Default)]
pub struct Arrived(Arc<Mutex<Vec<u8>>>);

impl Arrived {
    pub fn contains(&self, text: &str) -> bool {
        let bytes = self.0.lock().expect("no server panics");
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }
}

/// Puts the hosts on line. Each answers whatever comes to it.
pub async fn build(world: &World) -> Arrived {
    let arrived = Arrived::default();
    for host in [GOOD, ATTACKER, RANGE, REGISTRY, RESOLVER] {
        world
            .outside
            .shell(format!("ip addr add {host}/32 dev lo"))
            .await;
        for port in TCP {
            let at = format!("{host}:{port}");
            let listener = world.outside.run(move || server::listen(&at)).await;
            let arrived = arrived.clone();
            world.outside.start(move || serve(listener, &arrived));
        }
        for port in UDP {
            let at = SocketAddr::from((host, port));
            let socket = world.outside.run(move || UdpSocket::bind(at)).await;
            let socket = socket.expect("binding");
            world.outside.start(move || {
                let mut buffer = [0; 2048];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(b"tag", from);
                }
            });
        }
    }
    arrived
}

fn serve(listener: TcpListener, arrived: &Arrived) {
    for mut stream in listener.incoming().flatten() {
        let arrived = arrived.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count) = stream.read(&mut buffer) {
                if count == 0 {
                    return;
                }
                arrived
                    .0
                    .lock()
                    .expect("no server panics")
                    .extend_from_slice(&buffer[..count]);
                if stream.write_all(TAG).is_err() {
                    return;
                }
            }
        });
    }
}

/// Something that a VM tries.
#[derive(Clone, Debug)]
pub enum Try {
    /// Bytes to a TCP port, and an answer.
    Tcp(IpAddr, u16, Vec<u8>),
    /// A datagram and an answer.
    Udp(Ipv4Addr, u16),
    /// An echo request and its reply.
    Ping(Ipv4Addr),
}

impl Try {
    pub fn tcp(to: impl Into<IpAddr>, port: u16) -> Self {
        Self::Tcp(to.into(), port, b"SSH-2.0-test\r\n".to_vec())
    }

    pub fn http(to: Ipv4Addr, host: &str) -> Self {
        Self::raw_http(to, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    pub fn raw_http(to: Ipv4Addr, text: &str) -> Self {
        Self::Tcp(to.into(), 80, text.as_bytes().to_vec())
    }

    pub fn tls(to: Ipv4Addr, name: Option<&str>) -> Self {
        Self::Tcp(to.into(), 443, greeting(name))
    }

    /// Whether somebody of the outside has answered.
    pub async fn reaches(self, from: &Place) -> bool {
        from.run(move || match self {
            Self::Tcp(to, port, bytes) => {
                let answer = exchange((to, port).into(), &bytes);
                answer.is_ok_and(|answer| answer == TAG)
            }
            Self::Udp(to, port) => datagram(to, port).is_ok(),
            Self::Ping(to) => ping(to).is_ok(),
        })
        .await
    }
}

/// Sends bytes to a TCP port and gives the first that comes back.
pub fn exchange(to: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, SHORT)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    let mut answer = vec![0; TAG.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn datagram(to: Ipv4Addr, port: u16) -> io::Result<usize> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((to, port))?;
    socket.set_read_timeout(Some(SHORT / 2))?;
    socket.send(b"hello")?;
    socket.recv(&mut [0; 64])
}

fn ping(to: Ipv4Addr) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_read_timeout(Some(SHORT / 2))?;
    // Type 8, code 0, checksum, identifier 0, sequence 0.
    let request = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    socket.send_to(&request, &SocketAddr::from((to, 0)).into())?;
    let deadline = std::time::Instant::now() + SHORT / 2;
    let mut socket = socket;
    let mut packet = [0; 256];
    while std::time::Instant::now() < deadline {
        let count = socket.read(&mut packet)?;
        let reply = count >= 28 && packet[12..16] == to.octets() && packet[20] == 0;
        if reply {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// The first message of a TLS client.
pub fn greeting(name: Option<&str>) -> Vec<u8> {
    let long = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("short");
        [&length.to_be_bytes()[..], bytes].concat()
    };
    let extension = name.map_or(Vec::new(), |name| {
        let list = long(&[&[0][..], &long(name.as_bytes())].concat());
        [&[0, 0][..], &long(&list)].concat()
    });
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &long(&[0x13, 1]),
        &[1, 0],
        &long(&extension),
    ]
    .concat();
    let message = [&[1, 0][..], &long(&body)].concat();
    [&[22, 3, 1][..], &long(&message)].concat()
}

/// A connection that waits long for what comes.
pub fn patient(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connecting");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("setting a timeout");
    stream
}
