//! Databases of both kinds for tests, each test its own.

use crate::postgresql::Server;
use anyhow::{Context, Result};
use instavm_store::{Database, PostgresUrl};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// What kind of database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// A file.
    Sqlite,
    /// A database of a private server.
    Postgresql,
}

/// A database of a test's own, empty at first. Dropping it removes it.
#[derive(Debug)]
pub struct TestDatabase(Place);

#[derive(Debug)]
enum Place {
    Sqlite {
        folder: TempDir,
    },
    Postgresql {
        server: &'static Server,
        name: String,
    },
}

impl TestDatabase {
    /// A new one.
    ///
    /// # Errors
    /// When it cannot be made; for PostgreSQL also when the server's package is not installed.
    pub fn new(kind: DatabaseKind) -> Result<TestDatabase> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let place = match kind {
            DatabaseKind::Sqlite => Place::Sqlite {
                folder: tempfile::tempdir()?,
            },
            DatabaseKind::Postgresql => {
                let server = Server::shared()?;
                let count = COUNT.fetch_add(1, Ordering::Relaxed);
                let name = format!("test_{}_{count}", std::process::id());
                // Of an earlier process with this number, should it have been killed.
                server.run(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))?;
                server.run(&format!("CREATE DATABASE {name} TEMPLATE template0"))?;
                Place::Postgresql { server, name }
            }
        };
        Ok(TestDatabase(place))
    }

    /// Opens it. Each call opens connections of its own, as another process would.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn open(&self) -> Result<Database> {
        Ok(match &self.0 {
            Place::Sqlite { folder } => Database::open(&folder.path().join("instavm.db")).await?,
            Place::Postgresql { .. } => Database::connect(&self.url()?).await?,
        })
    }

    /// Where it is, if it is on a server.
    ///
    /// # Errors
    /// When it is a file.
    pub fn url(&self) -> Result<PostgresUrl> {
        Ok(self.url_text()?.parse()?)
    }

    /// The same as a configuration names it.
    ///
    /// # Errors
    /// When it is a file.
    pub fn url_text(&self) -> Result<String> {
        match &self.0 {
            Place::Postgresql { server, name } => Ok(server.url(name)),
            Place::Sqlite { .. } => None.context("a file has no URL"),
        }
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<PathBuf> {
        match &self.0 {
            Place::Sqlite { folder } => Some(folder.path().join("instavm.db")),
            Place::Postgresql { .. } => None,
        }
    }

    /// Has the server end all connections to this database, and refuse or take further ones from now on.
    ///
    /// # Errors
    /// When it is a file.
    pub fn set_reachable(&self, reachable: bool) -> Result<()> {
        let Place::Postgresql { server, name } = &self.0 else {
            anyhow::bail!("a file cannot be cut off");
        };
        server.run(&format!(
            "ALTER DATABASE {name} ALLOW_CONNECTIONS {reachable}"
        ))?;
        if !reachable {
            server.run(&format!(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'"
            ))?;
        }
        Ok(())
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if let Place::Postgresql { server, name } = &self.0 {
            // What cannot be removed goes with the server.
            let _ = server.run(&format!("DROP DATABASE {name} WITH (FORCE)"));
        }
    }
}

/// Makes tests of functions that take a [`DatabaseKind`]: one for each kind, in the modules `sqlite` and `postgresql`.
///
/// The functions are asynchronous and return `anyhow::Result<()>`.
#[macro_export]
macro_rules! on_each_database {
    ($($test:ident),* $(,)?) => {
        $crate::on_each_database!(@kind sqlite Sqlite $($test)*);
        $crate::on_each_database!(@kind postgresql Postgresql $($test)*);
    };
    (@kind $module:ident $kind:ident $($test:ident)*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $test() -> ::anyhow::Result<()> {
                    super::$test($crate::DatabaseKind::$kind).await
                }
            )*
        }
    };
}
