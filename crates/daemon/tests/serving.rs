//! The daemon between its doors: start, serve, drain, with rooms that only note what is asked of them.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where its ground gives way"
)]

use async_trait::async_trait;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use instavm_daemon::config::{self, Config, Overrides};
use instavm_daemon::rooms::{RoomError, Rooms};
use instavm_daemon::serve::{Doors, End, ServeError, serve};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};

/// Rooms whose `/slow` answers when it is released.
#[derive(Default)]
struct QuietRooms {
    entered: Arc<Notify>,
    release: Arc<Notify>,
    closed: AtomicBool,
}

#[async_trait]
impl Rooms for QuietRooms {
    fn router(&self) -> Router {
        let (entered, release) = (Arc::clone(&self.entered), Arc::clone(&self.release));
        let slow = move || async move {
            entered.notify_one();
            release.notified().await;
            "slow"
        };
        let peer =
            |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.ip().to_string() };
        Router::new()
            .route("/slow", get(slow))
            .route("/peer", get(peer))
    }

    async fn check(&self, _settle: Duration) -> Result<Vec<String>, RoomError> {
        Ok(Vec::new())
    }

    async fn reload_accounts(&self) -> Result<(), RoomError> {
        Ok(())
    }

    async fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

/// A daemon in this process.
struct Daemon {
    rooms: Arc<QuietRooms>,
    address: SocketAddr,
    stop: mpsc::Sender<()>,
    ended: tokio::task::JoinHandle<Result<End, ServeError>>,
    _dir: tempfile::TempDir,
}

fn configuration(dir: &tempfile::TempDir, listen: &str) -> Config {
    let file = dir.path().join("instavm.toml");
    std::fs::write(&file, "").unwrap();
    let overrides = Overrides {
        config: Some(file),
        data_dir: Some(dir.path().to_owned()),
    };
    config::load(&overrides, Some(listen)).unwrap().0
}

async fn start() -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let config = configuration(&dir, "127.0.0.1:0");
    let rooms = Arc::new(QuietRooms::default());
    let opened: Arc<dyn Rooms> = rooms.clone();
    let (ready, base) = oneshot::channel();
    let (stop, asked) = mpsc::channel(2);
    let ended = tokio::spawn(async move {
        let doors = Doors::bind(&config)?;
        let announce = |base: &str| ready.send(base.to_owned()).map_err(std::io::Error::other);
        serve(&config, doors, |_| async { Ok(opened) }, announce, asked).await
    });
    let base = base.await.unwrap();
    let address = base.strip_prefix("http://").unwrap().parse().unwrap();
    Daemon {
        rooms,
        address,
        stop,
        ended,
        _dir: dir,
    }
}

async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn the_announced_url_is_the_real_one_and_handlers_know_their_peer() {
    let daemon = start().await;
    assert_ne!(daemon.address.port(), 0);
    let text = rest(ask(daemon.address, "/peer").await).await;
    daemon.stop.send(()).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("127.0.0.1"), "{text}");
    assert_eq!(daemon.ended.await.unwrap().unwrap(), End::Drained);
}

#[tokio::test]
async fn a_request_under_way_is_answered_and_no_further_connection_is_taken() {
    let daemon = start().await;
    let slow = ask(daemon.address, "/slow").await;
    daemon.rooms.entered.notified().await;
    let idle = TcpStream::connect(daemon.address).await.unwrap();
    daemon.stop.send(()).await.unwrap();
    // The idle connection is closed: draining has begun.
    assert_eq!(rest(idle).await, "");
    assert!(TcpStream::connect(daemon.address).await.is_err());
    assert!(!daemon.rooms.closed.load(Ordering::SeqCst));
    daemon.rooms.release.notify_one();
    assert!(rest(slow).await.ends_with("slow"));
    assert_eq!(daemon.ended.await.unwrap().unwrap(), End::Drained);
    assert!(daemon.rooms.closed.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_second_request_to_stop_ends_at_once() {
    let daemon = start().await;
    let _slow = ask(daemon.address, "/slow").await;
    daemon.rooms.entered.notified().await;
    daemon.stop.send(()).await.unwrap();
    daemon.stop.send(()).await.unwrap();
    assert_eq!(daemon.ended.await.unwrap().unwrap(), End::Forced);
}

#[tokio::test]
async fn no_connection_is_taken_before_the_rooms_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let config = configuration(&dir, &address.to_string());
    let doors = Doors::bind(&config).unwrap();
    let open = |_| async move {
        assert!(TcpStream::connect(address).await.is_err());
        Err("no room".into())
    };
    let (_stop, asked) = mpsc::channel(1);
    let refused = serve(&config, doors, open, |_| Ok(()), asked).await;
    assert!(matches!(refused, Err(ServeError::Rooms(_))), "{refused:?}");
}

#[tokio::test]
async fn being_asked_to_stop_while_starting_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let config = configuration(&dir, "127.0.0.1:0");
    let doors = Doors::bind(&config).unwrap();
    let (stop, asked) = mpsc::channel(1);
    stop.send(()).await.unwrap();
    let open = |_| std::future::pending();
    let end = serve(&config, doors, open, |_| Ok(()), asked).await;
    assert_eq!(end.unwrap(), End::Drained);
}

#[tokio::test]
async fn a_busy_address_is_reported_before_anything_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap();
    let config = configuration(&dir, &address.to_string());
    let Err(ServeError::Listen { address: named, .. }) = Doors::bind(&config) else {
        panic!("the address was taken twice");
    };
    assert_eq!(named, address);
}
