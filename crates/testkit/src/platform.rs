//! The control plane on a port of its own.

use crate::{Client, DatabaseKind, SimulatedDoors, SimulatedNode, TestDatabase};
use anyhow::{Context, Result};
use instavm_control::user::service as accounts;
use instavm_control::{Dependencies, Platform, Settings};
use instavm_store::Database;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// How long ends may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A served control plane over a simulated node and a database of its own. Dropping it stops it.
#[derive(Debug)]
pub struct TestPlatform {
    /// The platform.
    pub platform: Platform,
    /// Its node, which outlives restarts.
    pub node: Arc<SimulatedNode>,
    /// Its gateway.
    pub doors: Arc<SimulatedDoors>,
    /// Its records, which outlive restarts.
    pub database: Database,
    /// The first account's key.
    pub key: String,
    address: SocketAddr,
    server: AbortOnDropHandle<()>,
    settings: Settings,
    place: TestDatabase,
}

impl TestPlatform {
    /// A platform with the default limits, on SQLite.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn start() -> Result<TestPlatform> {
        TestPlatform::on(DatabaseKind::Sqlite).await
    }

    /// A platform with the default limits, on this kind of database.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn on(kind: DatabaseKind) -> Result<TestPlatform> {
        TestPlatform::with(kind, Settings::default()).await
    }

    /// A platform with limits of the caller's choice.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn with(kind: DatabaseKind, settings: Settings) -> Result<TestPlatform> {
        let place = TestDatabase::new(kind)?;
        let database = place.open().await?;
        let first = accounts::bootstrap(&database, None)
            .await?
            .context("the database is not empty")?;
        let node = Arc::new(SimulatedNode::default());
        let doors = Arc::new(SimulatedDoors::default());
        let (platform, address, server) = serve(&database, &node, &doors, &settings).await?;
        Ok(TestPlatform {
            platform,
            node,
            doors,
            database,
            key: first.api_key,
            address,
            server,
            settings,
            place,
        })
    }

    /// Stops the platform and starts another one over the same records and the same node.
    ///
    /// # Errors
    /// When it does not end in time, or the other one cannot start.
    pub async fn restart(self) -> Result<TestPlatform> {
        let stopped = self.stop().await?;
        stopped.start().await
    }

    /// Stops the platform; its node and records remain.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop(self) -> Result<Stopped> {
        anyhow::ensure!(
            self.platform.drain(PATIENCE).await,
            "the platform does not end"
        );
        drop(self.server);
        self.database.close().await;
        self.doors.close_all();
        Ok(Stopped {
            node: self.node.clone(),
            doors: self.doors.clone(),
            key: self.key.clone(),
            settings: self.settings.clone(),
            place: self.place,
        })
    }

    /// Where its records are.
    pub fn place(&self) -> &TestDatabase {
        &self.place
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client with the first account's key.
    pub fn client(&self) -> Client {
        Client::new(self.address, Some(&self.key))
    }

    /// A client with this key, or without one.
    pub fn client_with(&self, key: Option<&str>) -> Client {
        Client::new(self.address, key)
    }

    /// A client of a further account.
    ///
    /// # Errors
    /// When the account cannot be made.
    pub async fn stranger(&self, email: &str) -> Result<Client> {
        let account = accounts::create_account(&self.database, email).await?;
        Ok(Client::new(self.address, Some(&account.api_key)))
    }
}

/// What remains of a platform that was stopped.
#[derive(Debug)]
pub struct Stopped {
    /// Its node.
    pub node: Arc<SimulatedNode>,
    /// Its gateway, which has forgotten what was open.
    pub doors: Arc<SimulatedDoors>,
    key: String,
    settings: Settings,
    place: TestDatabase,
}

impl Stopped {
    /// Starts another platform over the same records and the same node.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn start(self) -> Result<TestPlatform> {
        let database = self.place.open().await?;
        let (platform, address, server) =
            serve(&database, &self.node, &self.doors, &self.settings).await?;
        Ok(TestPlatform {
            platform,
            node: self.node,
            doors: self.doors,
            database,
            key: self.key,
            address,
            server,
            settings: self.settings,
            place: self.place,
        })
    }
}

async fn serve(
    database: &Database,
    node: &Arc<SimulatedNode>,
    doors: &Arc<SimulatedDoors>,
    settings: &Settings,
) -> Result<(Platform, SocketAddr, AbortOnDropHandle<()>)> {
    let platform = Platform::start(Dependencies {
        database: database.clone(),
        node: node.clone(),
        doors: doors.clone(),
        settings: settings.clone(),
    })
    .await?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let router = platform.router();
    let server = AbortOnDropHandle::new(tokio::spawn(async move {
        // It serves until it is aborted.
        let _ = axum::serve(listener, router).await;
    }));
    Ok((platform, address, server))
}
