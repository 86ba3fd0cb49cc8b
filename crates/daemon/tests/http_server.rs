//! The HTTP server's bounds.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where its ground gives way"
)]

use axum::Router;
use axum::routing::get;
use instavm_daemon::http::{ServerLimits, serve};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

const LIMITS: ServerLimits = ServerLimits {
    connections: 2,
    head_timeout: Duration::from_secs(60),
    drain_timeout: Duration::from_secs(60),
};

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

async fn start(router: Router, limits: ServerLimits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(listener, router, limits, stop.clone()));
    Server {
        address,
        stop,
        served,
    }
}

async fn exchange(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_head_that_does_not_come_to_its_end_is_not_waited_for() {
    let limits = ServerLimits {
        head_timeout: Duration::from_millis(50),
        ..LIMITS
    };
    let server = start(Router::new(), limits).await;
    let answer = exchange(server.address, "GET / HTTP/1.1\r\nhost: h\r\nx-slow: ").await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
}

#[tokio::test]
async fn a_malformed_head_is_refused() {
    let server = start(Router::new(), LIMITS).await;
    let answer = exchange(server.address, "nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (arrived, leave) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let handler = {
        let (now, most) = (now.clone(), most.clone());
        let (arrived, leave) = (arrived.clone(), leave.clone());
        move || async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            arrived.add_permits(1);
            leave.acquire().await.unwrap().forget();
            now.fetch_sub(1, Ordering::SeqCst);
            "done"
        }
    };
    let server = start(Router::new().route("/", get(handler)), LIMITS).await;
    let head = "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let callers: Vec<_> = (0..6)
        .map(|_| tokio::spawn(exchange(server.address, head)))
        .collect();
    for _ in 0..6 {
        arrived.acquire().await.unwrap().forget();
        leave.add_permits(1);
    }
    for caller in callers {
        assert!(caller.await.unwrap().ends_with("done"));
    }
    assert!(most.load(Ordering::SeqCst) <= LIMITS.connections);
    server.stop.cancel();
    server.served.await.unwrap();
}

#[tokio::test]
async fn a_request_that_outlives_the_drain_is_cut_off() {
    let entered = Arc::new(Semaphore::new(0));
    let handler = {
        let entered = entered.clone();
        move || async move {
            entered.add_permits(1);
            std::future::pending::<&str>().await
        }
    };
    let limits = ServerLimits {
        drain_timeout: Duration::from_millis(50),
        ..LIMITS
    };
    let server = start(Router::new().route("/", get(handler)), limits).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .unwrap();
    entered.acquire().await.unwrap().forget();
    server.stop.cancel();
    server.served.await.unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text).await;
    assert_eq!(text, "");
}
