//! Shares: a reverse proxy to ports of VMs, each under a port or a host name of its own.
//!
//! | module | what |
//! |---|---|
//! | `entry` | one share: who may pass, what is open, how it ends |
//! | `listener`, `tls`, `connection` | sockets, and what comes in by them |
//! | `access`, `cookie`, `login`, `attempts` | who may pass a private share |
//! | `proxy`, `head`, `upstream`, `body`, `tunnel` | the way of a request to the app and of its answer back |
//! | `page` | what the gateway answers by itself |
//!
//! Which VM a request goes to is decided by the socket that it came in by, or by the host name that it asks for, and by
//! nothing else of it.

mod access;
mod attempts;
mod body;
mod connection;
mod cookie;
mod entry;
mod head;
mod listener;
mod login;
mod page;
mod proxy;
mod tls;
mod tunnel;
mod upstream;

use attempts::Attempts;
use cookie::Signer;
use entry::{Entry, Slot};
use instavm_node_api::{Connections, VmId};
use listener::Ports;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use tls::TlsError;

/// Shares that have ended and still say so under their URL; of more, the oldest answer no longer.
const ENDED: usize = 1_024;

/// What a gateway for shares is made from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where shares are found.
    pub place: Place,
    /// Connections at once, of all shares together.
    pub connections: usize,
    /// Requests at once of one share, with what is tunnelled.
    pub requests_per_share: usize,
}

/// Where shares are found.
#[derive(Clone, Debug)]
pub enum Place {
    /// Each has a port of its own.
    Ports {
        /// What is listened on.
        address: IpAddr,
        /// Where the ports are taken from.
        ports: RangeInclusive<u16>,
        /// The host in URLs, where that is not the address.
        public_host: Option<String>,
    },
    /// Each has a host name of its own: its id and this domain.
    Hosts {
        /// The domain.
        domain: String,
        /// What is listened on.
        listen: SocketAddr,
        /// What is served with TLS; `None`: plain, for a proxy in front.
        tls: Option<TlsFiles>,
        /// The scheme in URLs, where a proxy in front has another one.
        public_scheme: Option<Scheme>,
        /// The port in URLs, where a proxy in front has another one.
        public_port: Option<u16>,
    },
}

/// Files with a certificate and its key, in PEM. They are read again when they change.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate and those that it is signed by.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How URLs begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Whose an API key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHolder {
    /// The key's number.
    pub key_id: i64,
    /// The account that it belongs to.
    pub account_id: i64,
}

/// What the gateway asks about API keys.
#[async_trait::async_trait]
pub trait Keys: Send + Sync + 'static {
    /// Whose a key is, from memory alone: no answer means little.
    fn known(&self, key: &str) -> Option<KeyHolder>;

    /// Whose a key is; `None` when it is unknown or revoked.
    async fn holder(&self, key: &str) -> Option<KeyHolder>;

    /// The account of the key of this number; `None` when it is revoked.
    async fn account_of(&self, key_id: i64) -> Option<i64>;
}

/// A share, as it is opened.
#[derive(Clone, Debug)]
pub struct Share {
    /// Its id: a label of host names.
    pub id: String,
    /// The account whose keys open it while it is private.
    pub account_id: i64,
    /// The VM.
    pub vm: VmId,
    /// The VM's port.
    pub port: u16,
    /// Everybody may pass.
    pub is_public: bool,
    /// When it was made.
    pub created_at: SystemTime,
    /// The port that it was found under before.
    pub listen_port: Option<u16>,
    /// It has ended already: its URL is to say so, if it can still be had.
    pub ended: Option<Ended>,
}

/// Why a share ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its owner revoked it.
    Revoked,
    /// Its VM ended.
    VmEnded,
}

/// Why the gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address of host names.
    #[error("cannot listen on {address} (key `share.listen`)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why a share could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No port of the range is free.
    #[error(
        "no port is free for a further share: revoke some, or give a wider range (key `share.ports`)"
    )]
    NoPort,
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (key `share.address`)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The gateway's shares. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Shares {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    node: Arc<dyn Connections>,
    keys: Arc<dyn Keys>,
    signer: Signer,
    attempts: Attempts,
    ports: Ports,
    all: RwLock<All>,
    connections: Arc<Semaphore>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct All {
    entries: HashMap<String, Arc<Entry>>,
    /// Those that have ended, the oldest first.
    ended: std::collections::VecDeque<String>,
}

impl std::fmt::Debug for Shares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shares").finish_non_exhaustive()
    }
}

impl Shares {
    /// A gateway without shares; where they have host names, it listens from now on. `secret` signs the cookies of
    /// private shares. Its tasks run on `tracker` and end on `stop`.
    ///
    /// # Errors
    /// [`StartError`] when it cannot listen, or has no certificate.
    pub async fn start(
        config: Config,
        node: Arc<dyn Connections>,
        keys: Arc<dyn Keys>,
        secret: &[u8],
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let inner = Arc::new(Inner {
            connections: Arc::new(Semaphore::new(config.connections)),
            ports: Ports::default(),
            config,
            node,
            keys,
            signer: Signer::new(secret),
            attempts: Attempts::default(),
            all: RwLock::default(),
            tracker,
            stop,
        });
        if let Place::Hosts { listen, tls, .. } = &inner.config.place {
            let (listen, tls) = (*listen, tls.clone());
            listener::serve_hosts(&inner, listen, tls).await?;
        }
        Ok(Self { inner })
    }

    /// Opens a share, and returns the port that it is found under if it has one of its own: the one from before, or
    /// another if that is taken. One that is open already stays as it is.
    ///
    /// # Errors
    /// [`OpenError`]; the share is not open then.
    pub fn open(&self, share: Share) -> Result<Option<u16>, OpenError> {
        if let Some(entry) = self.inner.entry(&share.id) {
            return Ok(entry.listen_port());
        }
        let (wanted, ended) = (share.listen_port, share.ended);
        let entry = Arc::new(Entry::new(share, self.inner.config.requests_per_share));
        if let Some(why) = ended {
            entry.end(why);
        }
        if let Place::Ports { address, ports, .. } = &self.inner.config.place {
            let place = (*address, ports);
            listener::serve_port(&self.inner, &entry, place, wanted, ended.is_none())?;
        }
        self.inner.keep(entry.clone());
        if ended.is_some() {
            self.inner.retire(&entry.id);
        }
        Ok(entry.listen_port())
    }

    /// Lets everybody pass, or only the owner from now on: what strangers have open is cut.
    pub fn set_public(&self, id: &str, is_public: bool) {
        if let Some(entry) = self.inner.entry(id) {
            entry.set_public(is_public);
        }
    }

    /// Ends a share: what is open is cut, and its URL says for a while that it has ended.
    pub fn end(&self, id: &str, why: Ended) {
        if let Some(entry) = self.inner.entry(id) {
            entry.end(why);
            self.inner.retire(id);
        }
    }

    /// Ends all shares of a VM that has ended.
    pub fn end_vm(&self, vm: &VmId) {
        let of_vm: Vec<String> = {
            let all = self
                .inner
                .all
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            let open = all.entries.values().filter(|entry| entry.vm == *vm);
            open.filter(|entry| entry.ended().is_none())
                .map(|entry| entry.id.clone())
                .collect()
        };
        for id in of_vm {
            self.end(&id, Ended::VmEnded);
        }
    }

    /// The URL of a share that is found under this port, if it has one of its own.
    #[must_use]
    pub fn url(&self, id: &str, listen_port: Option<u16>) -> String {
        self.inner.config.url(id, listen_port)
    }

    /// The ids of the shares that are open.
    #[must_use]
    pub fn open_ids(&self) -> Vec<String> {
        let all = self
            .inner
            .all
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let open = all.entries.values().filter(|entry| entry.ended().is_none());
        open.map(|entry| entry.id.clone()).collect()
    }

    /// Where the host names of shares are listened for, if they have any.
    #[must_use]
    pub fn hosts_address(&self) -> Option<SocketAddr> {
        self.inner.ports.hosts()
    }
}

impl Inner {
    fn entry(&self, id: &str) -> Option<Arc<Entry>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.entries.get(id).cloned()
    }

    fn keep(&self, entry: Arc<Entry>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.entries.insert(entry.id.clone(), entry);
    }

    /// Counts a share among those that have ended, and lets the oldest of them go.
    fn retire(&self, id: &str) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if all.ended.iter().any(|ended| ended == id) {
            return;
        }
        all.ended.push_back(id.to_owned());
        while all.ended.len() > ENDED {
            let oldest = all.ended.pop_front();
            if let Some(gone) = oldest.and_then(|id| all.entries.remove(&id)) {
                gone.close();
            }
        }
    }

    /// Lets the share go that ended first, and gives its port away; `None` when there is none.
    fn take_slot(&self) -> Option<Arc<Slot>> {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let oldest = all.ended.pop_front()?;
        all.entries.remove(&oldest)?.slot()
    }
}

impl Config {
    /// How URLs of shares begin.
    fn scheme(&self) -> Scheme {
        match &self.place {
            Place::Ports { .. } => Scheme::Http,
            Place::Hosts {
                public_scheme: Some(scheme),
                ..
            } => *scheme,
            Place::Hosts { tls: Some(_), .. } => Scheme::Https,
            Place::Hosts { .. } => Scheme::Http,
        }
    }

    fn url(&self, id: &str, listen_port: Option<u16>) -> String {
        let scheme = self.scheme();
        let (host, port) = match &self.place {
            Place::Ports {
                address,
                public_host,
                ..
            } => {
                let host = public_host.clone().unwrap_or_else(|| host_of(*address));
                (host, listen_port.unwrap_or(0))
            }
            Place::Hosts {
                domain,
                listen,
                public_port,
                ..
            } => {
                let port = public_port.unwrap_or(listen.port());
                (format!("{id}.{domain}"), port)
            }
        };
        if port == scheme.default_port() {
            format!("{}://{host}", scheme.as_str())
        } else {
            format!("{}://{host}:{port}", scheme.as_str())
        }
    }
}

/// An address as the host of a URL that reaches it from this host.
fn host_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        IpAddr::V6(ip) if ip.is_unspecified() => format!("[{}]", Ipv6Addr::LOCALHOST),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(tls: bool, scheme: Option<Scheme>, port: Option<u16>) -> Config {
        let file = || PathBuf::from("/nowhere");
        Config {
            place: Place::Hosts {
                domain: "apps.example.com".to_owned(),
                listen: "127.0.0.1:8443".parse().unwrap(),
                tls: tls.then(|| TlsFiles {
                    certificate: file(),
                    key: file(),
                }),
                public_scheme: scheme,
                public_port: port,
            },
            connections: 1,
            requests_per_share: 1,
        }
    }

    #[test]
    fn urls_say_how_shares_are_reached_from_outside() {
        let ports = |address: &str, host: Option<&str>| Config {
            place: Place::Ports {
                address: address.parse().unwrap(),
                ports: 20_000..=29_999,
                public_host: host.map(str::to_owned),
            },
            ..hosts(false, None, None)
        };
        let url = |config: Config| config.url("sh-1", Some(20_001));
        assert_eq!(url(ports("127.0.0.1", None)), "http://127.0.0.1:20001");
        assert_eq!(url(ports("0.0.0.0", None)), "http://127.0.0.1:20001");
        assert_eq!(url(ports("::", None)), "http://[::1]:20001");
        assert_eq!(url(ports("::", Some("box.lan"))), "http://box.lan:20001");
        let of = |config: Config| config.url("sh-1", None);
        assert_eq!(
            of(hosts(true, None, None)),
            "https://sh-1.apps.example.com:8443"
        );
        assert_eq!(
            of(hosts(true, None, Some(443))),
            "https://sh-1.apps.example.com"
        );
        assert_eq!(
            of(hosts(false, None, None)),
            "http://sh-1.apps.example.com:8443"
        );
        assert_eq!(
            of(hosts(false, Some(Scheme::Https), Some(443))),
            "https://sh-1.apps.example.com"
        );
    }
}
