use super::*;
use crate::http::{self, ServerLimits};
use crate::rooms::RoomError;
use async_trait::async_trait;
use std::sync::atomic::AtomicUsize;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct FakeRooms {
    reloads: AtomicUsize,
    broken: bool,
}

#[async_trait]
impl Rooms for FakeRooms {
    fn router(&self) -> Router {
        Router::new()
    }

    async fn check(&self, settle: Duration) -> Result<Vec<String>, RoomError> {
        if self.broken {
            return Err("the store is closed".into());
        }
        Ok(vec![format!("settled within {}", settle.as_secs())])
    }

    async fn reload_accounts(&self) -> Result<(), RoomError> {
        self.reloads.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn status(&self) -> serde_json::Value {
        serde_json::json!({"vms": 3})
    }

    async fn close(&self) {}
}

const LIMITS: ServerLimits = ServerLimits {
    connections: 4,
    head_timeout: Duration::from_secs(5),
    drain_timeout: Duration::from_secs(5),
};

struct Running {
    dir: tempfile::TempDir,
    admin: Admin,
    publish: watch::Sender<Option<Arc<dyn Rooms>>>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

/// A daemon's control socket in a directory whose path is longer than a socket address.
fn running() -> Running {
    let dir = tempfile::Builder::new()
        .prefix(&"long".repeat(40))
        .tempdir()
        .unwrap();
    let (publish, rooms) = watch::channel(None);
    let admin = Admin::new(rooms);
    let listener = bind(dir.path()).unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(http::serve(listener, admin.router(), LIMITS, stop.clone()));
    Running {
        dir,
        admin,
        publish,
        stop,
        server,
    }
}

#[tokio::test]
async fn nobody_listens_where_no_daemon_runs() {
    let dir = tempfile::tempdir().unwrap();
    assert!(AdminClient::connect(dir.path()).await.unwrap().is_none());
    let missing = dir.path().join("missing");
    assert!(AdminClient::connect(&missing).await.unwrap().is_none());
    // What a killed daemon leaves behind.
    drop(bind(dir.path()).unwrap());
    assert!(AdminClient::connect(dir.path()).await.unwrap().is_none());
}

#[tokio::test]
async fn the_socket_belongs_to_its_user_alone() {
    let running = running();
    let mode = std::fs::metadata(running.dir.path().join(SOCKET_NAME))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_check_waits_until_the_rooms_are_open() {
    let running = running();
    let mut client = AdminClient::connect(running.dir.path())
        .await
        .unwrap()
        .unwrap();
    let asked = tokio::spawn(async move { client.check(Duration::from_secs(30)).await });
    running
        .publish
        .send_replace(Some(Arc::new(FakeRooms::default())));
    assert_eq!(asked.await.unwrap().unwrap(), ["settled within 30"]);
    running.stop.cancel();
    running.server.await.unwrap();
}

#[tokio::test]
async fn a_check_of_a_daemon_that_does_not_get_ready_is_refused() {
    let running = running();
    let mut client = AdminClient::connect(running.dir.path())
        .await
        .unwrap()
        .unwrap();
    let refusal = client.check(Duration::ZERO).await.unwrap_err();
    assert!(refusal.to_string().contains("still starting"), "{refusal}");
}

#[tokio::test]
async fn a_failed_check_says_why() {
    let running = running();
    let rooms = FakeRooms {
        broken: true,
        ..FakeRooms::default()
    };
    running.publish.send_replace(Some(Arc::new(rooms)));
    let mut client = AdminClient::connect(running.dir.path())
        .await
        .unwrap()
        .unwrap();
    let refusal = client.check(Duration::ZERO).await.unwrap_err();
    assert!(refusal.to_string().contains("the store is closed"));
}

#[tokio::test]
async fn a_reload_reaches_the_rooms_or_is_noted_for_them() {
    let running = running();
    let mut client = AdminClient::connect(running.dir.path())
        .await
        .unwrap()
        .unwrap();
    assert!(!running.admin.reload_wanted());
    client.reload_accounts().await.unwrap();
    assert!(running.admin.reload_wanted());
    let rooms = Arc::new(FakeRooms::default());
    running.publish.send_replace(Some(rooms.clone()));
    client.reload_accounts().await.unwrap();
    assert_eq!(rooms.reloads.load(Ordering::SeqCst), 1);
}
