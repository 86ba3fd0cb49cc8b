//! Connections of the node in memory: real ones, on the host's loopback.

use crate::node::{SimulatedNode, lock};
use async_trait::async_trait;
use instavm_node_api::{Accept, Connections, Destination, NodeError, VmId, VmListener, VmStream};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::{TcpListener, TcpStream};

impl SimulatedNode {
    /// From now on, `port` of a VM is this address of the host.
    pub fn serve_port(&self, vm: &str, port: u16, by: SocketAddr) {
        if let Ok(simulated) = self.find(&VmId(vm.to_owned())) {
            lock(&simulated.ports).insert(port, by);
        }
    }
}

fn refused(error: &io::Error, message: String) -> NodeError {
    NodeError::Connection {
        kind: error.kind(),
        message,
    }
}

#[async_trait]
impl Connections for SimulatedNode {
    async fn connect(&self, vm: &VmId, to: Destination) -> Result<VmStream, NodeError> {
        let simulated = self.find(vm)?;
        let nobody = || {
            let message = format!("cannot connect to {to}: connection refused");
            refused(&io::ErrorKind::ConnectionRefused.into(), message)
        };
        let address = match to {
            Destination::Address(address) => address,
            Destination::Local(port) => {
                let served = lock(&simulated.ports).get(&port).copied();
                served.ok_or_else(nobody)?
            }
        };
        let stream = TcpStream::connect(address).await.map_err(|_| nobody())?;
        Ok(Box::new(stream))
    }

    async fn listen(&self, vm: &VmId, at: SocketAddr) -> Result<VmListener, NodeError> {
        let simulated = self.find(vm)?;
        let failed = |error: io::Error| refused(&error, format!("cannot listen at {at}: {error}"));
        if lock(&simulated.ports).contains_key(&at.port()) {
            return Err(failed(io::ErrorKind::AddrInUse.into()));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(failed)?;
        let real = listener.local_addr().map_err(failed)?;
        let port = if at.port() == 0 {
            real.port()
        } else {
            at.port()
        };
        lock(&simulated.ports).insert(port, real);
        let address = SocketAddr::new(at.ip(), port);
        Ok(VmListener::new(address, Box::new(Incoming(listener))))
    }
}

struct Incoming(TcpListener);

#[async_trait]
impl Accept for Incoming {
    async fn accept(&mut self) -> Result<(VmStream, SocketAddr), NodeError> {
        let accepted = self.0.accept().await;
        let (stream, from) =
            accepted.map_err(|error| refused(&error, format!("cannot accept: {error}")))?;
        Ok((Box::new(stream), from))
    }
}
