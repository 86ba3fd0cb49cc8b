//! Connections into VMs, and out of them: sockets made inside the VM, used from here.

use crate::blocking::internal;
use crate::node::LocalNode;
use crate::vm::Vm;
use async_trait::async_trait;
use instavm_node_api::{Accept, Connections, Destination, NodeError, VmId, VmListener, VmStream};
use instavm_runtime::driver::SocketMaker;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

const MAKING: &str = "making a socket in the VM";
const ACCEPTING: &str = "accepting a connection in the VM";
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;
/// How long a listener waits when this process has no descriptor left for what came in.
const NO_ROOM: Duration = Duration::from_millis(100);

/// A connection that breaks off when its VM ends. Its peers inside die with the VM, but those beyond it would only fall
/// silent.
struct Held {
    stream: TcpStream,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Held {
    fn new(stream: TcpStream, over: CancellationToken) -> VmStream {
        Box::new(Self {
            stream,
            over: Box::pin(over.cancelled_owned()),
        })
    }

    /// What a socket answers that is not ready: nothing, unless the VM has ended.
    fn or_over<T>(
        &mut self,
        context: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if done.is_pending() && self.over.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                ErrorKind::ConnectionReset,
                "the VM has ended",
            )));
        }
        done
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.or_over(context, done)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.or_over(context, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.or_over(context, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The addresses that a destination may stand for, in the order in which they are tried.
fn addresses(vm: &Vm, to: Destination) -> Vec<SocketAddr> {
    match to {
        Destination::Address(address) => vec![address],
        Destination::Local(port) => {
            let mut all: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            all.extend(vm.address.map(IpAddr::from));
            let with_port = all.into_iter().map(|ip| SocketAddr::new(ip, port));
            with_port.collect()
        }
    }
}

/// Connects to one address. A connection to a free port of the loopback may meet itself, when the kernel happens to
/// choose that port for this end: nobody listens there.
async fn connect_to(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = socket.connect(address).await?;
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn socket(
    sockets: &SocketMaker,
    vm: &Vm,
    address: SocketAddr,
) -> Result<TcpSocket, NodeError> {
    let made = sockets.tcp(&vm.network, address).await;
    made.map_err(|error| match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::SRCH.raw_os_error() => NodeError::VmEnded,
        Some(code) if code == rustix::io::Errno::AFNOSUPPORT.raw_os_error() => {
            refused(&error, format!("VMs have no way to {}", address.ip()))
        }
        _ => internal(MAKING, error),
    })
}

fn refused(error: &io::Error, message: String) -> NodeError {
    NodeError::Connection {
        kind: error.kind(),
        message,
    }
}

#[async_trait]
impl Connections for LocalNode {
    async fn connect(&self, vm: &VmId, to: Destination) -> Result<VmStream, NodeError> {
        let vm = self.inner.vm(vm)?;
        let trying = async {
            // What the first address answers says most: the others are only tried.
            let mut first = None;
            for address in addresses(&vm, to) {
                let connected = match socket(&self.inner.sockets, &vm, address).await {
                    Ok(socket) => connect_to(socket, address).await.map_err(|error| {
                        let reason = error.kind();
                        refused(&error, format!("cannot connect to {to}: {reason}"))
                    }),
                    Err(error) => Err(error),
                };
                match connected {
                    Ok(stream) => return Ok(Held::new(stream, vm.over.clone())),
                    Err(error @ NodeError::Connection { .. }) => {
                        first.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(first.unwrap_or(NodeError::VmEnded))
        };
        tokio::select! {
            connected = trying => connected,
            () = vm.over.cancelled() => Err(NodeError::VmEnded),
        }
    }

    async fn listen(&self, vm: &VmId, at: SocketAddr) -> Result<VmListener, NodeError> {
        let vm = self.inner.vm(vm)?;
        let socket = socket(&self.inner.sockets, &vm, at).await?;
        let listen = || {
            socket.set_reuseaddr(true)?;
            socket.bind(at)?;
            let listener = socket.listen(BACKLOG)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) = listen().map_err(|error: io::Error| {
            let reason = error.kind();
            refused(&error, format!("cannot listen at {at} in the VM: {reason}"))
        })?;
        let incoming = Incoming { listener, vm };
        Ok(VmListener::new(address, Box::new(incoming)))
    }
}

/// A listening socket of a VM.
struct Incoming {
    listener: TcpListener,
    vm: Arc<Vm>,
}

#[async_trait]
impl Accept for Incoming {
    async fn accept(&mut self) -> Result<(VmStream, SocketAddr), NodeError> {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.vm.over.cancelled() => return Err(NodeError::VmEnded),
            };
            match accepted {
                Ok((stream, from)) => {
                    // It only makes small answers faster.
                    let _ = stream.set_nodelay(true);
                    return Ok((Held::new(stream, self.vm.over.clone()), from));
                }
                // Whoever came has gone again.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) if is_shortage(&error) => tokio::time::sleep(NO_ROOM).await,
                Err(error) => return Err(internal(ACCEPTING, error)),
            }
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    let code = error.raw_os_error();
    shortages
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}
