//! Shares over real sockets: a gateway in front of apps of this process, which stand for ports of VMs.

use instavm_gateway::share::{Config, Ended, KeyHolder, Keys, Place, Share, Shares};
use instavm_node_api::{Node, VmId, VmSpec};
use instavm_testkit::SimulatedNode;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PATIENCE: Duration = Duration::from_secs(20);
/// The key of the owner, account 1; `revoked` says that it is no more.
const KEY: &str = "instavm_sk_owner";
const STRANGERS_KEY: &str = "instavm_sk_stranger";

#[derive(Default)]
struct TestKeys {
    revoked: AtomicBool,
}

impl TestKeys {
    fn find(&self, key: &str) -> Option<KeyHolder> {
        let holder = |id| KeyHolder {
            key_id: id,
            account_id: id,
        };
        match key {
            KEY if !self.revoked.load(Ordering::SeqCst) => Some(holder(1)),
            STRANGERS_KEY => Some(holder(2)),
            _ => None,
        }
    }
}

#[async_trait::async_trait]
impl Keys for TestKeys {
    fn known(&self, key: &str) -> Option<KeyHolder> {
        self.find(key)
    }

    async fn holder(&self, key: &str) -> Option<KeyHolder> {
        self.find(key)
    }

    async fn account_of(&self, key_id: i64) -> Option<i64> {
        let is_valid = key_id != 1 || !self.revoked.load(Ordering::SeqCst);
        is_valid.then_some(key_id)
    }
}

struct Fixture {
    node: Arc<SimulatedNode>,
    keys: Arc<TestKeys>,
    shares: Shares,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Fixture {
    async fn new() -> Self {
        Self::at(Place::Ports {
            address: Ipv4Addr::LOCALHOST.into(),
            ports: 20_000..=29_999,
            public_host: None,
        })
        .await
    }

    async fn at(place: Place) -> Self {
        let (node, keys) = (
            Arc::new(SimulatedNode::default()),
            Arc::new(TestKeys::default()),
        );
        for id in ["vm_a", "vm_b"] {
            node.create(spec(id)).await.unwrap();
        }
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let config = Config {
            place,
            connections: 64,
            requests_per_share: 4,
        };
        let shares = Shares::start(
            config,
            node.clone(),
            keys.clone(),
            &[7; 32],
            tracker.clone(),
            stop.clone(),
        );
        Self {
            shares: shares.await.unwrap(),
            node,
            keys,
            stop,
            tracker,
        }
    }

    /// Opens a share of port 80 of a VM; where it is found.
    fn open(&self, id: &str, vm: &str, is_public: bool) -> SocketAddr {
        let share = Share {
            id: id.to_owned(),
            account_id: 1,
            vm: VmId(vm.to_owned()),
            port: 80,
            is_public,
            created_at: SystemTime::now(),
            listen_port: None,
            ended: None,
        };
        let port = self.shares.open(share).unwrap();
        let hosts = || self.shares.hosts_address().unwrap();
        port.map_or_else(hosts, |port| (Ipv4Addr::LOCALHOST, port).into())
    }

    async fn close(self) {
        self.stop.cancel();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.unwrap();
    }
}

fn spec(id: &str) -> VmSpec {
    VmSpec {
        id: VmId(id.to_owned()),
        memory_mb: 128,
        vcpu_count: 1,
        disk_bytes: 1 << 20,
        env: BTreeMap::new(),
        lifetime_seconds: 300,
        snapshot: None,
        workdir: None,
        mounts: Vec::new(),
        keep_disk_as: None,
        egress: None,
    }
}

/// What an app has read of a request: the head, until a body begins.
async fn head_of(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.ok()?;
        head.push(byte);
    }
    Some(String::from_utf8(head).unwrap().to_ascii_lowercase())
}

/// An app that answers every request with its name, a newline, and the head of the request.
async fn mirror(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Some(head) = head_of(&mut stream).await {
                    let body = format!("{name}\n{head}");
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nSet-Cookie: instavm_share_sh-a=forged\r\n\r\n{body}",
                        body.len()
                    );
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Sends text, and reads until the end of the connection.
async fn ask(address: SocketAddr, request: &str) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A gateway that refuses may close before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    timeout(PATIENCE, asking).await.unwrap()
}

fn get(extra: &str) -> String {
    format!("GET /path?q=1 HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{extra}\r\n")
}

fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1);
    status.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn cookie_of(answer: &str) -> String {
    let set = answer
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "));
    set.and_then(|set| set.split(';').next())
        .unwrap_or_default()
        .to_owned()
}

async fn log_in(address: SocketAddr, key: &str, extra: &str) -> String {
    let form = format!("api_key={key}&next=%2Fnext");
    let length = form.len();
    let head = "POST /.instavm/login HTTP/1.1\r\nHost: app.test\r\nConnection: close";
    let kind = "Content-Type: application/x-www-form-urlencoded";
    ask(
        address,
        &format!("{head}\r\n{kind}\r\nContent-Length: {length}\r\n{extra}\r\n{form}"),
    )
    .await
}

#[tokio::test]
async fn the_app_sees_the_request_and_nothing_of_ours() {
    let f = Fixture::new().await;
    f.node.serve_port("vm_a", 80, mirror("a").await);
    let public = f.open("sh-a", "vm_a", true);
    let extra = format!(
        "X-API-Key: {KEY}\r\nAuthorization: Bearer {STRANGERS_KEY}\r\nX-Forwarded-For: 6.6.6.6\r\n\
         Cookie: a=1; instavm_share_sh-z=secret\r\nProxy-Authorization: x\r\nUpgrade: h2c\r\n"
    );
    let answer = ask(public, &get(&extra)).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains("get /path?q=1 http/1.1\r\n"), "{answer}");
    assert!(
        answer.contains("host: app.test\r\n") && answer.contains("cookie: a=1\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("x-forwarded-for: 127.0.0.1\r\n"),
        "{answer}"
    );
    for absent in [
        "instavm_s",
        "6.6.6.6",
        "proxy-auth",
        "h2c",
        "authorization",
        "x-api-key",
        "forged",
    ] {
        assert!(!answer.contains(absent), "{absent}: {answer}");
    }
    let own = ask(
        public,
        &get("X-API-Key: the-apps-own\r\nAuthorization: Basic eDp5\r\n"),
    )
    .await;
    assert!(
        own.contains("the-apps-own") && own.contains("basic edp5"),
        "{own}"
    );
    f.close().await;
}

#[tokio::test]
async fn nothing_of_a_request_leads_to_another_vm() {
    let f = Fixture::new().await;
    f.node.serve_port("vm_a", 80, mirror("a").await);
    let other = mirror("b").await;
    f.node.serve_port("vm_b", 80, other);
    let (a, b) = (f.open("sh-a", "vm_a", true), f.open("sh-b", "vm_b", true));
    for host in [
        b.to_string(),
        other.to_string(),
        "sh-b".to_owned(),
        "169.254.169.254".to_owned(),
    ] {
        let plain = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let absolute =
            format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        for request in [plain, absolute] {
            let answer = ask(a, &request).await;
            assert!(answer.contains("\r\n\r\na\n"), "{request}: {answer}");
        }
    }
    for (request, wanted) in [
        (
            format!("GET http://{b}/ HTTP/1.1\r\nHost: {a}\r\n\r\n"),
            400,
        ),
        (format!("CONNECT {b} HTTP/1.1\r\nHost: {b}\r\n\r\n"), 400),
        (
            format!("GET / HTTP/1.1\r\nHost: {a}\r\nHost: {b}\r\n\r\n"),
            400,
        ),
        ("GET / HTTP/1.1\r\nHost: x@y\r\n\r\n".to_owned(), 400),
    ] {
        let request = request.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        let answer = ask(a, &request).await;
        assert_eq!(status(&answer), wanted, "{request}: {answer}");
    }
    f.close().await;
}

#[tokio::test]
async fn a_private_share_opens_for_its_owner_alone() {
    let f = Fixture::new().await;
    f.node.serve_port("vm_a", 80, mirror("a").await);
    let private = f.open("sh-a", "vm_a", false);
    let page = ask(private, &get("")).await;
    assert_eq!(status(&page), 200, "{page}");
    assert!(
        page.contains("API key") && page.contains("default-src 'none'"),
        "{page}"
    );
    assert!(!page.contains("get /path"), "the app was asked");
    let post =
        "POST / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(status(&ask(private, post).await), 401);
    let upgrade = get("").replace(
        "Connection: close",
        "Connection: Upgrade\r\nUpgrade: websocket",
    );
    assert!(
        ask_head(private, &upgrade)
            .await
            .starts_with("HTTP/1.1 401")
    );
    for (header, wanted) in [
        (format!("X-API-Key: {KEY}\r\n"), 200),
        (format!("Authorization: Bearer {KEY}\r\n"), 200),
        (format!("X-API-Key: {STRANGERS_KEY}\r\n"), 401),
        ("X-API-Key: wrong\r\n".to_owned(), 401),
        (
            "Cookie: instavm_share_sh-a=1.99999999999.00\r\n".to_owned(),
            200,
        ),
    ] {
        let answer = ask(private, &get(&header)).await;
        assert_eq!(status(&answer), wanted, "{header}: {answer}");
        assert_eq!(
            answer.contains("get /path"),
            header.contains(KEY),
            "{header}: {answer}"
        );
        assert!(!answer.contains("instavm_sk"), "{answer}");
    }
    f.close().await;
}

/// Reads one head, of a connection that stays open.
async fn ask_head(address: SocketAddr, request: &str) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut line = vec![0; 256];
        let length = stream.read(&mut line).await.unwrap();
        String::from_utf8_lossy(&line[..length]).into_owned()
    };
    timeout(PATIENCE, asking).await.unwrap()
}

#[tokio::test]
async fn a_login_is_good_for_one_share_as_long_as_its_key() {
    let f = Fixture::new().await;
    f.node.serve_port("vm_a", 80, mirror("a").await);
    let (a, b) = (f.open("sh-a", "vm_a", false), f.open("sh-b", "vm_a", false));
    let wrong = log_in(a, STRANGERS_KEY, "").await;
    assert_eq!(status(&wrong), 401, "{wrong}");
    let foreign = log_in(a, KEY, "Origin: http://other.test\r\n").await;
    assert_eq!(status(&foreign), 403, "{foreign}");
    let answer = log_in(a, KEY, "Origin: http://app.test\r\n").await;
    assert_eq!(status(&answer), 303, "{answer}");
    assert!(
        answer.contains("location: /next\r\n") && answer.contains("HttpOnly; SameSite=Lax"),
        "{answer}"
    );
    let cookie = format!("Cookie: {}; own=1\r\n", cookie_of(&answer));
    let seen = ask(a, &get(&cookie)).await;
    assert!(
        seen.contains("get /path") && seen.contains("cookie: own=1\r\n"),
        "{seen}"
    );
    assert!(!seen.contains("instavm_share"), "{seen}");
    assert!(!ask(b, &get(&cookie)).await.contains("get /path"));
    // A page of another share is of the same site, and its requests come with the cookie.
    let forged = format!("{cookie}Origin: http://app.test:1\r\nContent-Length: 0\r\n");
    let forged = get(&forged).replacen("GET", "POST", 1);
    assert_eq!(status(&ask(a, &forged).await), 401);
    f.keys.revoked.store(true, Ordering::SeqCst);
    assert!(!ask(a, &get(&cookie)).await.contains("get /path"));
    f.close().await;
}

#[tokio::test]
async fn what_is_not_there_is_told_soon() {
    let f = Fixture::new().await;
    let share = f.open("sh-a", "vm_a", true);
    let answer = ask(share, &get("")).await;
    assert_eq!(status(&answer), 502);
    assert!(answer.contains("Nothing listens on port 80"), "{answer}");

    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    f.node.serve_port("vm_a", 80, mute.local_addr().unwrap());
    let begun = std::time::Instant::now();
    let answer = ask(share, &get("")).await;
    assert_eq!(status(&answer), 504, "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(5));

    f.shares.end("sh-a", Ended::Revoked);
    assert_eq!(status(&ask(share, &get("")).await), 410);
    let second = f.open("sh-b", "vm_b", true);
    f.shares.end_vm(&VmId("vm_b".to_owned()));
    assert_eq!(status(&ask(second, &get("")).await), 404);
    assert!(f.shares.open_ids().is_empty());
    f.close().await;
}

#[tokio::test]
async fn tunnels_pass_bytes_until_the_share_closes() {
    let f = Fixture::new().await;
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    f.node.serve_port("vm_a", 80, app.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = app.accept().await {
            tokio::spawn(async move {
                let head = head_of(&mut stream).await.unwrap();
                assert!(head.contains("upgrade: websocket\r\n"), "{head}");
                let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let share = f.open("sh-a", "vm_a", true);
    let upgrade = get("").replace(
        "Connection: close",
        "Connection: Upgrade\r\nUpgrade: websocket",
    );
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(share).await.unwrap();
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        let head = head_of(&mut stream).await.unwrap();
        assert!(
            head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"),
            "{head}"
        );
        stream.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        timeout(PATIENCE, stream.read_exact(&mut echo))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&echo, b"ping");
        streams.push(stream);
    }
    f.shares.set_public("sh-a", false);
    for mut stream in streams {
        let end = timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
        assert!(!matches!(end, Ok(1..)), "{end:?}");
    }
    f.close().await;
}

#[tokio::test]
async fn greedy_callers_are_bounded() {
    let f = Fixture::new().await;
    f.node.serve_port("vm_a", 80, mirror("a").await);
    let share = f.open("sh-a", "vm_a", true);
    let large = format!("X-Large: {}\r\n", "x".repeat(10 << 20));
    let answer = ask(share, &get(&large)).await;
    assert!(matches!(status(&answer), 431 | 0), "{answer}");
    assert_eq!(status(&ask(share, &get("")).await), 200);

    // Four requests that the app does not answer take all places of the share.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = f.open("sh-b", "vm_b", true);
    f.node.serve_port("vm_b", 80, mute.local_addr().unwrap());
    let mut waiting = Vec::new();
    let post = "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 0\r\n\r\n";
    for _ in 0..4 {
        let mut stream = TcpStream::connect(other).await.unwrap();
        stream.write_all(post.as_bytes()).await.unwrap();
        // It has come to the app, so it has its place.
        let (mut reached, _) = timeout(PATIENCE, mute.accept()).await.unwrap().unwrap();
        assert!(head_of(&mut reached).await.is_some());
        waiting.push((stream, reached));
    }
    assert_eq!(status(&ask(other, &get("")).await), 503);
    assert_eq!(status(&ask(share, &get("")).await), 200);
    drop(waiting);
    f.close().await;
}

#[tokio::test]
async fn hosts_have_names_of_their_own() {
    let f = Fixture::at(Place::Hosts {
        domain: "apps.test".to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        public_scheme: None,
        public_port: None,
    })
    .await;
    f.node.serve_port("vm_a", 80, mirror("a").await);
    f.node.serve_port("vm_b", 80, mirror("b").await);
    let at = f.open("sh-a", "vm_a", true);
    f.open("sh-b", "vm_b", true);
    for (host, wanted) in [
        ("sh-a.apps.test", "\r\n\r\na\n"),
        ("SH-B.Apps.Test.:8443", "\r\n\r\nb\n"),
        ("sh-c.apps.test", "There is no share"),
        ("apps.test", "There is no share"),
        ("sh-asapps.test", "There is no share"),
        ("sh-a.apps.test.evil.test", "There is no share"),
        ("127.0.0.1", "There is no share"),
    ] {
        let answer = ask(at, &get("").replace("app.test", host)).await;
        assert!(answer.contains(wanted), "{host}: {answer}");
    }
    f.close().await;
}

#[tokio::test]
async fn the_port_of_a_share_that_has_ended_is_given_away_when_there_is_no_other() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let f = Fixture::at(Place::Ports {
        address: Ipv4Addr::LOCALHOST.into(),
        ports: port..=port,
        public_host: None,
    })
    .await;
    f.node.serve_port("vm_a", 80, mirror("a").await);
    f.node.serve_port("vm_b", 80, mirror("b").await);
    let at = f.open("sh-a", "vm_a", true);
    assert!(ask(at, &get("")).await.contains("\r\n\r\na\n"));
    f.shares.end("sh-a", Ended::Revoked);
    assert_eq!(status(&ask(at, &get("")).await), 410);
    assert_eq!(f.open("sh-b", "vm_b", true), at);
    assert!(ask(at, &get("")).await.contains("\r\n\r\nb\n"));
    f.close().await;
}
