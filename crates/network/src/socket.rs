//! The sockets that the firewall sends VMs to.
//!
//! They are bound to all addresses, because a redirect leads to the address of the link that a packet came in by, and
//! carry [`crate::firewall::SOCKET_MARK`]: the firewall lets nobody but VMs reach a socket with that mark.

use crate::firewall::SOCKET_MARK;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::{TcpListener, UdpSocket};

const RECEIVE_BUFFER: usize = 1 << 20;
const BACKLOG: i32 = 1024;

/// Why a socket for VMs could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The socket cannot be opened or bound.
    #[error("binding a {protocol} socket for VMs to port {port}")]
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
    #[error("marking a socket for VMs. FIX: run as root with CAP_NET_ADMIN")]
    Mark(#[source] io::Error),
}

fn failed(protocol: &'static str, port: u16) -> impl Fn(io::Error) -> SocketError {
    move |source| SocketError::Bind {
        protocol,
        port,
        source,
    }
}

/// A TCP socket that listens on a port; 0 is any.
pub(crate) fn listen(port: u16) -> Result<TcpListener, SocketError> {
    let failed = failed("TCP", port);
    let socket = marked(Type::STREAM, Protocol::TCP, &failed)?;
    socket.set_reuse_address(true).map_err(&failed)?;
    bind(&socket, port).map_err(&failed)?;
    socket.listen(BACKLOG).map_err(&failed)?;
    TcpListener::from_std(socket.into()).map_err(failed)
}

/// A UDP socket on a port; 0 is any.
pub(crate) fn receive(port: u16) -> Result<UdpSocket, SocketError> {
    let failed = failed("UDP", port);
    let socket = marked(Type::DGRAM, Protocol::UDP, &failed)?;
    socket
        .set_recv_buffer_size(RECEIVE_BUFFER)
        .map_err(&failed)?;
    bind(&socket, port).map_err(&failed)?;
    UdpSocket::from_std(socket.into()).map_err(failed)
}

fn marked(
    kind: Type,
    protocol: Protocol,
    failed: impl Fn(io::Error) -> SocketError,
) -> Result<Socket, SocketError> {
    let socket = Socket::new(Domain::IPV4, kind, Some(protocol)).map_err(&failed)?;
    socket.set_nonblocking(true).map_err(&failed)?;
    socket.set_mark(SOCKET_MARK).map_err(SocketError::Mark)?;
    Ok(socket)
}

fn bind(socket: &Socket, port: u16) -> io::Result<()> {
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())
}

/// Which of the resolver's and the proxy's sockets the kernel does not have, a line each.
pub(crate) fn missing(resolver: u16, proxy: u16) -> Vec<String> {
    const LISTENING: &str = "0A";
    const UNCONNECTED: &str = "07";
    let wanted = [
        ("the resolver", "udp", resolver, UNCONNECTED),
        ("the resolver", "tcp", resolver, LISTENING),
        ("the proxy", "tcp", proxy, LISTENING),
    ];
    let absent = wanted.into_iter().filter(|(_, protocol, port, state)| {
        // A thread may be in another namespace than the process; what counts is where this one is.
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{protocol}"));
        let local = format!(":{port:04X}");
        let is_it = |line: &str| {
            let mut words = line.split_whitespace().skip(1);
            let (here, there) = (words.next(), words.nth(1));
            here.is_some_and(|here| here.ends_with(&local)) && there == Some(state)
        };
        !table.is_ok_and(|table| table.lines().skip(1).any(is_it))
    });
    absent
        .map(|(who, protocol, port, _)| {
            format!("listener: {who} has no {protocol} socket at port {port}")
        })
        .collect()
}
