//! Connections and transactions.

use crate::{Row, StoreError, Value};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool,
    SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, query::Query};
use std::path::Path;
use std::time::Duration;

/// How long a writer waits for another process to finish its transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read beside the one that writes.
const READERS: u32 = 4;

/// The platform's database. Cheap to clone; all clones share the connections.
///
/// One connection writes, so writers of this process queue instead of colliding; reads go beside it.
#[derive(Clone, Debug)]
pub struct Database {
    writer: SqlitePool,
    readers: SqlitePool,
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
        sqlx::migrate!("./migrations/sqlite")
            .run(&writer)
            .await
            .map_err(StoreError::Migrate)?;
        let readers = pool(READERS, options.read_only(true)).await?;
        Ok(Database { writer, readers })
    }

    /// Reads rows.
    ///
    /// # Errors
    /// [`StoreError::Statement`].
    pub async fn fetch(
        &self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        let rows = bound(statement, values)
            .fetch_all(&self.readers)
            .await
            .map_err(|source| StoreError::Statement { statement, source })?;
        Ok(rows.into_iter().map(Row).collect())
    }

    /// Reads the first row, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Statement`].
    pub async fn fetch_optional(
        &self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<Option<Row>, StoreError> {
        let row = bound(statement, values)
            .fetch_optional(&self.readers)
            .await
            .map_err(|source| StoreError::Statement { statement, source })?;
        Ok(row.map(Row))
    }

    /// Changes rows in a transaction of its own; returns how many.
    ///
    /// # Errors
    /// [`StoreError::Statement`].
    pub async fn execute(
        &self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        let changed = transaction.execute(statement, values).await?;
        transaction.commit().await?;
        Ok(changed)
    }

    /// Begins a transaction that may write. Dropping it without [`Transaction::commit`] undoes it.
    ///
    /// # Errors
    /// [`StoreError::Statement`] when the write lock is not to be had in time.
    pub async fn begin(&self) -> Result<Transaction, StoreError> {
        const BEGIN: &str = "BEGIN IMMEDIATE";
        let inner =
            self.writer
                .begin_with(BEGIN)
                .await
                .map_err(|source| StoreError::Statement {
                    statement: BEGIN,
                    source,
                })?;
        Ok(Transaction { inner })
    }

    /// Closes all connections. Calls after it fail.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// A transaction that may write.
#[derive(Debug)]
pub struct Transaction {
    inner: sqlx::Transaction<'static, Sqlite>,
}

impl Transaction {
    /// Changes rows; returns how many.
    ///
    /// # Errors
    /// [`StoreError::Statement`].
    pub async fn execute(
        &mut self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<u64, StoreError> {
        let connection: &mut SqliteConnection = &mut self.inner;
        bound(statement, values)
            .execute(connection)
            .await
            .map(|done| done.rows_affected())
            .map_err(|source| StoreError::Statement { statement, source })
    }

    /// Reads the first row, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Statement`].
    pub async fn fetch_optional(
        &mut self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<Option<Row>, StoreError> {
        let connection: &mut SqliteConnection = &mut self.inner;
        let row = bound(statement, values)
            .fetch_optional(connection)
            .await
            .map_err(|source| StoreError::Statement { statement, source })?;
        Ok(row.map(Row))
    }

    /// Raises the named counter and returns its new value: an id that was never used before.
    ///
    /// # Errors
    /// [`StoreError`] when there is no such counter, or the statement fails.
    pub async fn next(&mut self, counter: &'static str) -> Result<i64, StoreError> {
        let row = self
            .fetch_optional(
                "UPDATE counters SET value = value + 1 WHERE name = $1 RETURNING value",
                vec![counter.into()],
            )
            .await?;
        match row {
            Some(row) => row.get("value"),
            None => Err(StoreError::Content {
                column: "name",
                found: format!("there is no counter {counter}"),
            }),
        }
    }

    /// Makes the changes lasting.
    ///
    /// # Errors
    /// [`StoreError::Statement`].
    pub async fn commit(self) -> Result<(), StoreError> {
        self.inner
            .commit()
            .await
            .map_err(|source| StoreError::Statement {
                statement: "COMMIT",
                source,
            })
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

fn bound(statement: &'static str, values: Vec<Value>) -> Query<'static, Sqlite, SqliteArguments> {
    let mut query = sqlx::query(statement);
    for value in values {
        query = match value {
            Value::Int(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
            Value::Blob(value) => query.bind(value),
        };
    }
    query
}
