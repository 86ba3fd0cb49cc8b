//! Connections, and statements outside transactions.

use crate::transaction::{Kind, answered, in_time, postgres as to_postgres, sqlite as to_sqlite};
use crate::{PostgresUrl, Row, StoreError, Transaction, Value, migrations, postgres};
use sqlx::Connection as _;
use sqlx::postgres::PgPool;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use std::path::Path;
use std::time::Duration;

/// How long a writer of SQLite waits for another process to finish its transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections to SQLite that read beside the one that writes.
const READERS: u32 = 4;
/// How often a single statement is done that gave way to others.
const ATTEMPTS: u32 = 5;

/// The platform's database. Cheap to clone; all clones share the connections.
///
/// In SQLite one connection writes, so writers of this process queue instead of colliding; reads go beside it.
#[derive(Clone, Debug)]
pub struct Database(Pools);

#[derive(Clone, Debug)]
enum Pools {
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
    },
    Postgres(PgPool),
}

impl Database {
    /// Opens the file, creates it when it is missing, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Open`] or [`StoreError::Migrate`].
    pub async fn open(file: &Path) -> Result<Database, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = pool(1, options.clone()).await?;
        migrations::sqlite(&writer).await?;
        let readers = pool(READERS, options.read_only(true)).await?;
        Ok(Database(Pools::Sqlite { writer, readers }))
    }

    /// Connects to PostgreSQL and brings the schema `instavm` of the database up to date. Connections that break later
    /// are replaced by themselves.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be reached, is not fit, or its schema cannot be brought up to date.
    pub async fn connect(url: &PostgresUrl) -> Result<Database, StoreError> {
        let mut connection = postgres::connect(url).await?;
        postgres::check_encoding(&mut connection, url).await?;
        migrations::postgres(&mut connection).await?;
        // The schema stands; an unfriendly farewell changes nothing.
        let _ = connection.close().await;
        Ok(Database(Pools::Postgres(postgres::pool(url.options()))))
    }

    /// Reads rows.
    ///
    /// # Errors
    /// [`StoreError::Statement`], [`StoreError::Late`].
    pub async fn fetch(
        &self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        match &self.0 {
            Pools::Sqlite { readers, .. } => {
                let query = to_sqlite(statement, values);
                let rows = answered(statement, query.fetch_all(readers)).await?;
                Ok(rows.into_iter().map(Row::from).collect())
            }
            Pools::Postgres(pool) => {
                let query = to_postgres(statement, values);
                let rows = in_time(statement, query.fetch_all(pool)).await?;
                Ok(rows.into_iter().map(Row::from).collect())
            }
        }
    }

    /// Reads the first row, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Statement`], [`StoreError::Late`].
    pub async fn fetch_optional(
        &self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<Option<Row>, StoreError> {
        match &self.0 {
            Pools::Sqlite { readers, .. } => {
                let query = to_sqlite(statement, values);
                let row = answered(statement, query.fetch_optional(readers)).await?;
                Ok(row.map(Row::from))
            }
            Pools::Postgres(pool) => {
                let query = to_postgres(statement, values);
                let row = in_time(statement, query.fetch_optional(pool)).await?;
                Ok(row.map(Row::from))
            }
        }
    }

    /// Changes rows in a transaction of its own; returns how many. Done again when it gave way to others.
    ///
    /// # Errors
    /// [`StoreError::Statement`], [`StoreError::Late`].
    pub async fn execute(
        &self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<u64, StoreError> {
        let pool = match &self.0 {
            Pools::Postgres(pool) => pool,
            Pools::Sqlite { .. } => {
                let mut transaction = self.begin().await?;
                let changed = transaction.execute(statement, values).await?;
                transaction.commit().await?;
                return Ok(changed);
            }
        };
        let mut attempt = 1;
        loop {
            let query = to_postgres(statement, values.clone());
            match in_time(statement, query.execute(pool)).await {
                Err(error) if error.gave_way() && attempt < ATTEMPTS => attempt += 1,
                done => return done.map(|done| done.rows_affected()),
            }
        }
    }

    /// Begins a transaction that may write.
    ///
    /// # Errors
    /// [`StoreError::Statement`] when the write lock or a connection is not to be had in time.
    pub async fn begin(&self) -> Result<Transaction, StoreError> {
        match &self.0 {
            Pools::Sqlite { writer, .. } => {
                const BEGIN: &str = "BEGIN IMMEDIATE";
                let inner = answered(BEGIN, writer.begin_with(BEGIN)).await?;
                Ok(Transaction(Kind::Sqlite(inner)))
            }
            Pools::Postgres(pool) => {
                let inner = in_time("BEGIN", pool.begin()).await?;
                Ok(Transaction(Kind::Postgres(inner)))
            }
        }
    }

    /// Closes all connections. Calls after it fail.
    pub async fn close(&self) {
        match &self.0 {
            Pools::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Pools::Postgres(pool) => pool.close().await,
        }
    }
}

async fn pool(connections: u32, options: SqliteConnectOptions) -> Result<SqlitePool, StoreError> {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
        .map_err(StoreError::Open)
}
