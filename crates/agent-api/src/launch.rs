//! What the node tells the agent binary when it starts a VM in *launch* mode.
//!
//! The daemon runs `instavm-agent launch` with a [`Launch`] (one frame) on standard input and reads [`Progress`] frames
//! from standard output. The launcher becomes the parent of the VM's PID 1, which goes on as the agent; the
//! launcher ends when the agent listens, so that PID 1 belongs to the host's init and outlives the daemon.

use crate::TOKEN_BYTES;
use serde::{Deserialize, Serialize};

/// Everything that a VM is made from. Paths are the host's.
#[derive(Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The secret that [`crate::Hello`] must carry.
    pub token: [u8; TOKEN_BYTES],
    /// The VM's host name.
    pub hostname: String,
    /// The root disk: a directory whose files have ordinary owners (0 is the VM's root).
    pub root: String,
    /// First of the 65,536 host user and group ids that the VM's ids 0 to 65535 map to.
    pub id_base: u32,
    /// Directories of cgroup hierarchies that the VM's processes are put into.
    pub cgroups: Vec<String>,
    /// Where the agent's listening socket is bound; outside of everything that the VM can see.
    pub socket: String,
    /// The link's name inside the VM and its addresses; `None` for a VM without a network.
    pub network: Option<Network>,
    /// Hard and soft limit of open files for a process; lowered to what the host grants.
    pub open_files: u64,
    /// Bytes of `/dev/shm`, and four times those of `/run`; what is in them counts as the VM's memory.
    pub shm_bytes: u64,
    /// Starts the Python interpreter as soon as the agent is there, before anybody asks.
    pub warm: bool,
}

impl std::fmt::Debug for Launch {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// A VM's network as seen from inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Addresses of `eth0`.
    pub addresses: Vec<Address>,
    /// The default gateway, which is also the resolver.
    pub gateway: std::net::Ipv4Addr,
    /// Contents of `/etc/resolv.conf`.
    pub resolver: std::net::Ipv4Addr,
}

/// An IPv4 address with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: std::net::Ipv4Addr,
    /// The length of the network's prefix, 0 to 32.
    pub prefix: u8,
}

/// What the launcher reports, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// The VM's first process exists, in its new namespaces; it waits for one [`Proceed`] frame on the launcher's
    /// standard input. The node gives the VM its link in between.
    Spawned {
        /// Its process id on the host.
        pid: i32,
    },
    /// The agent listens and the launcher is about to end.
    Ready,
    /// The launch failed; nothing of it is left running.
    Failed {
        /// The step, and the system's error.
        message: String,
    },
}

/// The node's answer to [`Progress::Spawned`]: the link is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proceed;
