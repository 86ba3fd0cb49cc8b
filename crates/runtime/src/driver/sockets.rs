//! Sockets that are made inside machines.
//!
//! A socket belongs for life to the network namespace in which it was made. So the node makes one as if it were a
//! program of the machine, and uses it from outside: it reaches the machine's loopback, and beyond it only what the
//! machine reaches. Nothing of the host can be reached by it, whatever address it is told to connect to.

use instavm_linux::namespace;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

/// The thread's own network, while it is in another one.
const HOME: &str = "/proc/thread-self/ns/net";

/// The way into a machine's network: its first process, whatever may have its number later.
#[derive(Clone, Debug)]
pub struct MachineNetwork {
    process: Arc<OwnedFd>,
}

impl MachineNetwork {
    pub(super) fn of(process: Arc<OwnedFd>) -> Self {
        Self { process }
    }
}

struct Order {
    machine: MachineNetwork,
    family: AddressFamily,
    reply: oneshot::Sender<io::Result<OwnedFd>>,
}

/// Makes sockets inside machines, on one thread of its own: a thread that visits another namespace must serve nothing
/// else. The thread ends with this.
#[derive(Debug, Default)]
pub struct SocketMaker {
    orders: Mutex<Option<mpsc::Sender<Order>>>,
}

impl SocketMaker {
    /// A TCP socket of the machine, for addresses of the family of `address`.
    ///
    /// # Errors
    /// The system's; `ESRCH` when the machine has ended.
    pub async fn tcp(
        &self,
        machine: &MachineNetwork,
        address: SocketAddr,
    ) -> io::Result<TcpSocket> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let (reply, made) = oneshot::channel();
        self.order(Order {
            machine: machine.clone(),
            family,
            reply,
        })?;
        let socket = made
            .await
            .map_err(|_| io::Error::other("the thread that makes sockets has ended"))??;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    fn order(&self, order: Order) -> io::Result<()> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let order = match orders.as_ref() {
            None => order,
            Some(sender) => match sender.send(order) {
                Ok(()) => return Ok(()),
                // It could not come home, and has ended: the next one starts at home.
                Err(mpsc::SendError(order)) => order,
            },
        };
        let (sender, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("vm-sockets".to_owned())
            .spawn(move || work(&queue))?;
        // The queue is the thread's, which waits for it.
        let sent = sender.send(order).map_err(io::Error::other);
        *orders = Some(sender);
        sent
    }
}

/// Works orders off until nobody can give any more.
fn work(queue: &mpsc::Receiver<Order>) {
    let home = match std::fs::File::open(HOME) {
        Ok(home) => home,
        Err(error) => {
            tracing::error!(%error, "no sockets can be made in VMs");
            return;
        }
    };
    while let Ok(order) = queue.recv() {
        let made = make(&order);
        if let Err(error) = namespace::enter(home.as_fd(), namespace::NETWORK) {
            tracing::error!(%error, "a thread is lost in a VM's network, and ends");
            return;
        }
        // Whoever ordered it may have gone away.
        let _ = order.reply.send(made);
    }
}

fn make(order: &Order) -> io::Result<OwnedFd> {
    namespace::enter(order.machine.process.as_fd(), namespace::NETWORK)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(order.family, SocketType::STREAM, flags, None)?)
}
