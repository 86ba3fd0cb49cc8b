//! `instavmd serve`: the start-up order, the `ready` line, and the end.
//!
//! Start: configuration, data directory's lock, log, control socket, the API's address, then the rooms (store, node,
//! platform), and only when all of that stands is the API's socket opened for connections. End: no further connections,
//! requests that are under way get a deadline, the rooms close; VMs run on.

use crate::admin::{self, Admin};
use crate::config::{Config, ListenAddress, Secrets};
use crate::http::{self, ServerLimits};
use crate::lock::{DataDirLock, LockError};
use crate::logging::{self, LoggingError};
use crate::process::{self, StopSignals};
use crate::rooms::{RoomError, Rooms};
use crate::{agent_binary, output, wiring};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// How long requests that are under way may go on after the first signal.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the rooms may take to close.
const CLOSE: Duration = Duration::from_secs(10);
/// How long threads that block may keep the process.
const LINGER: Duration = Duration::from_millis(500);
/// For a request's head, and for an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections that the kernel keeps for us.
const BACKLOG: u32 = 1024;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data directory is not to be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The log could not be started.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// This program carries no agent.
    #[error(transparent)]
    Agent(#[from] agent_binary::NoAgent),
    /// The runtime or the signals could not be set up.
    #[error("the process cannot be set up")]
    Process(#[source] io::Error),
    /// The API's address is not to be had.
    #[error("cannot listen on {address} (key `listen`, flag --listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The control socket could not be made.
    #[error("the control socket cannot be made in the data directory")]
    ControlSocket(#[source] io::Error),
    /// A room did not open.
    #[error("the platform cannot start")]
    Rooms(#[source] RoomError),
    /// Standard output was closed.
    #[error("the ready line cannot be written")]
    Announce(#[source] io::Error),
}

/// How a daemon that started came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Asked to stop; everything was drained or cut off at its deadline.
    Drained,
    /// Asked a second time before that.
    Forced,
}

/// Runs the daemon until it is asked to stop.
///
/// # Errors
/// When it does not start.
pub fn run(config: Config, secrets: Secrets) -> Result<ExitCode, ServeError> {
    process::unblock_signals().map_err(|error| ServeError::Process(error.into()))?;
    let lock = DataDirLock::take(&config.data_dir, "serve")?;
    logging::start(&config)?;
    match process::raise_open_files() {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Process)?;
    let end = runtime.block_on(async {
        let mut signals = StopSignals::listen().map_err(ServeError::Process)?;
        let (ask, asked) = mpsc::channel(2);
        let _signals = AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                signals.next().await;
                if ask.send(()).await.is_err() {
                    return;
                }
            }
        }));
        let doors = Doors::bind(&config)?;
        let agent = agent_binary::embedded()?;
        let open = |tracker| wiring::open(&config, &secrets, agent, tracker);
        let announce = |base: &str| output::line(&format!("ready {base}"));
        serve(&config, doors, open, announce, asked).await
    });
    runtime.shutdown_timeout(LINGER);
    drop(lock);
    Ok(match end? {
        End::Drained => ExitCode::SUCCESS,
        End::Forced => ExitCode::FAILURE,
    })
}

/// The addresses of a daemon: taken early, so that a busy port is found before the long work.
#[derive(Debug)]
pub struct Doors {
    api: TcpSocket,
    address: SocketAddr,
    control: UnixListener,
}

impl Doors {
    /// Takes the API's address, without accepting connections yet, and opens the control socket.
    ///
    /// # Errors
    /// When the address is taken by another, or the data directory takes no socket.
    pub fn bind(config: &Config) -> Result<Self, ServeError> {
        let ListenAddress(address) = config.listen;
        let (api, address) =
            bind_api(address).map_err(|source| ServeError::Listen { address, source })?;
        let control = admin::bind(&config.data_dir).map_err(ServeError::ControlSocket)?;
        Ok(Self {
            api,
            address,
            control,
        })
    }
}

fn bind_api(address: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

/// The daemon between its doors: opens the rooms, announces the base URL, serves until asked to stop, drains.
///
/// # Errors
/// When the rooms do not open. Being asked to stop meanwhile is none.
pub async fn serve<O>(
    config: &Config,
    doors: Doors,
    open: impl FnOnce(TaskTracker) -> O,
    announce: impl FnOnce(&str) -> io::Result<()>,
    mut stop_asked: mpsc::Receiver<()>,
) -> Result<End, ServeError>
where
    O: Future<Output = Result<Arc<dyn Rooms>, RoomError>>,
{
    let stop = CancellationToken::new();
    let control_stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let (publish, published) = watch::channel(None);
    let admin = Admin::new(published);
    let limits = ServerLimits {
        connections: usize::try_from(config.limits_connections).unwrap_or(usize::MAX),
        head_timeout: HEAD_TIMEOUT,
        drain_timeout: DRAIN,
    };
    tasks.spawn(http::serve(
        doors.control,
        admin.router(),
        limits,
        control_stop.clone(),
    ));

    let rooms = tokio::select! {
        opened = open(tasks.clone()) => opened.map_err(ServeError::Rooms)?,
        _ = stop_asked.recv() => {
            tracing::info!("asked to stop while starting");
            return Ok(End::Drained);
        }
    };
    publish.send_replace(Some(Arc::clone(&rooms)));
    if admin.reload_wanted() {
        rooms.reload_accounts().await.map_err(ServeError::Rooms)?;
    }

    let listener = listen(doors.api, doors.address)?;
    let served = tokio::spawn(http::serve(listener, rooms.router(), limits, stop.clone()));
    let base = base_url(doors.address);
    tracing::info!(%base, "ready");
    announce(&base).map_err(ServeError::Announce)?;

    stop_asked.recv().await;
    tracing::info!("asked to stop: no further connections, requests under way may end");
    let drained = drain(rooms, served, &stop, &control_stop, &tasks);
    Ok(tokio::select! {
        () = drained => {
            tracing::info!("stopped; VMs run on");
            End::Drained
        }
        _ = stop_asked.recv() => {
            tracing::warn!("asked again: stopped at once");
            End::Forced
        }
    })
}

async fn drain(
    rooms: Arc<dyn Rooms>,
    served: tokio::task::JoinHandle<()>,
    stop: &CancellationToken,
    control_stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    stop.cancel();
    if let Err(error) = served.await {
        tracing::error!(%error, "the API's server ended badly");
    }
    control_stop.cancel();
    tasks.close();
    let closed = pin!(async {
        rooms.close().await;
        tasks.wait().await;
    });
    if tokio::time::timeout(CLOSE, closed).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "some tasks did not end in time");
    }
}

fn listen(socket: TcpSocket, address: SocketAddr) -> Result<TcpListener, ServeError> {
    socket
        .listen(BACKLOG)
        .map_err(|source| ServeError::Listen { address, source })
}

/// The URL that reaches a listener from this host.
fn base_url(address: SocketAddr) -> String {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(host, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_url_reaches_the_listener() {
        let url = |text: &str| base_url(text.parse().unwrap());
        assert_eq!(url("127.0.0.1:80"), "http://127.0.0.1:80");
        assert_eq!(url("0.0.0.0:8080"), "http://127.0.0.1:8080");
        assert_eq!(url("[::]:8080"), "http://[::1]:8080");
        assert_eq!(url("10.0.0.3:1"), "http://10.0.0.3:1");
    }
}
