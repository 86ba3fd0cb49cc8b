//! Connections into VMs, and out of them as a program inside would make them.

use crate::{NodeError, VmId};
use async_trait::async_trait;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that has its one end in a VM. It breaks off when the VM ends.
pub type VmStream = Box<dyn Stream>;

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A port of the VM: on its loopback, or else on its own address.
    Local(u16),
    /// An address as it is reached from inside the VM, under the VM's policy.
    Address(SocketAddr),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Local(port) => write!(f, "port {port} of the VM"),
            Destination::Address(address) => write!(f, "{address}"),
        }
    }
}

/// What a [`VmListener`] gets its connections from.
#[async_trait]
pub trait Accept: Send {
    /// The next connection, and who made it.
    ///
    /// # Errors
    /// [`NodeError::VmEnded`] when the VM has ended: no further one will come.
    async fn accept(&mut self) -> Result<(VmStream, SocketAddr), NodeError>;
}

/// A port inside a VM that somebody outside listens on. Dropping it closes it.
pub struct VmListener {
    address: SocketAddr,
    incoming: Box<dyn Accept>,
}

impl VmListener {
    /// One that listens at `address`.
    #[must_use]
    pub fn new(address: SocketAddr, incoming: Box<dyn Accept>) -> Self {
        Self { address, incoming }
    }

    /// Where it listens, with the port that was chosen if none was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection, and who made it.
    ///
    /// # Errors
    /// [`NodeError::VmEnded`] when the VM has ended: no further one will come.
    pub async fn accept(&mut self) -> Result<(VmStream, SocketAddr), NodeError> {
        self.incoming.accept().await
    }
}

impl std::fmt::Debug for VmListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmListener")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// The part of a node that connects. Every socket is made inside the VM: nothing of the host can be reached by it.
#[async_trait]
pub trait Connections: Send + Sync {
    /// Connects as a program inside the VM would. No time limit but the kernel's: drop the future to give up.
    ///
    /// # Errors
    /// [`NodeError::Connection`] when nobody listens there or nothing leads there.
    async fn connect(&self, vm: &VmId, to: Destination) -> Result<VmStream, NodeError>;

    /// Listens as a program inside the VM would. Port 0: one that is free.
    ///
    /// # Errors
    /// [`NodeError::Connection`] when the address is not the VM's or the port is taken.
    async fn listen(&self, vm: &VmId, at: SocketAddr) -> Result<VmListener, NodeError>;
}
