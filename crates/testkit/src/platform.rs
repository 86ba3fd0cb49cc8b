//! The control plane on a port of its own.

use crate::{Client, SimulatedNode};
use anyhow::{Context, Result};
use instavm_control::user::service as accounts;
use instavm_control::{Dependencies, Platform, Settings};
use instavm_store::Database;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
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
    /// Its records, which outlive restarts.
    pub database: Database,
    /// The first account's key.
    pub key: String,
    address: SocketAddr,
    server: AbortOnDropHandle<()>,
    settings: Settings,
    folder: TempDir,
}

impl TestPlatform {
    /// A platform with the default limits.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn start() -> Result<TestPlatform> {
        TestPlatform::with(Settings::default()).await
    }

    /// A platform with limits of the caller's choice.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn with(settings: Settings) -> Result<TestPlatform> {
        let folder = tempfile::tempdir()?;
        let database = Database::open(&folder.path().join("instavm.db")).await?;
        let first = accounts::bootstrap(&database, None)
            .await?
            .context("the database is not empty")?;
        let node = Arc::new(SimulatedNode::default());
        let (platform, address, server) = serve(&database, &node, &settings).await?;
        Ok(TestPlatform {
            platform,
            node,
            database,
            key: first.api_key,
            address,
            server,
            settings,
            folder,
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
        Ok(Stopped {
            node: self.node.clone(),
            key: self.key.clone(),
            settings: self.settings.clone(),
            folder: self.folder,
        })
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
    key: String,
    settings: Settings,
    folder: TempDir,
}

impl Stopped {
    /// Starts another platform over the same records and the same node.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn start(self) -> Result<TestPlatform> {
        let database = Database::open(&self.folder.path().join("instavm.db")).await?;
        let (platform, address, server) = serve(&database, &self.node, &self.settings).await?;
        Ok(TestPlatform {
            platform,
            node: self.node,
            database,
            key: self.key,
            address,
            server,
            settings: self.settings,
            folder: self.folder,
        })
    }
}

async fn serve(
    database: &Database,
    node: &Arc<SimulatedNode>,
    settings: &Settings,
) -> Result<(Platform, SocketAddr, AbortOnDropHandle<()>)> {
    let platform = Platform::start(Dependencies {
        database: database.clone(),
        node: node.clone(),
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
