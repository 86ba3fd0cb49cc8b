//! Transactions, and statements on a connection.

use crate::{Row, StoreError, Value, postgres, text};
use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;
use sqlx::{PgConnection, Postgres, Sqlite, SqliteConnection, query::Query};
use std::future::Future;

/// A transaction that may write. Dropping it without [`Transaction::commit`] undoes it.
#[derive(Debug)]
pub struct Transaction(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Transaction {
    /// Changes rows; returns how many.
    ///
    /// # Errors
    /// [`StoreError::Statement`], [`StoreError::Late`].
    pub async fn execute(
        &mut self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<u64, StoreError> {
        match &mut self.0 {
            Kind::Sqlite(inner) => {
                let connection: &mut SqliteConnection = inner;
                answered(statement, sqlite(statement, values).execute(connection))
                    .await
                    .map(|done| done.rows_affected())
            }
            Kind::Postgres(inner) => {
                let connection: &mut PgConnection = inner;
                in_time(statement, postgres(statement, values).execute(connection))
                    .await
                    .map(|done| done.rows_affected())
            }
        }
    }

    /// Reads the first row, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Statement`], [`StoreError::Late`].
    pub async fn fetch_optional(
        &mut self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<Option<Row>, StoreError> {
        match &mut self.0 {
            Kind::Sqlite(inner) => {
                let connection: &mut SqliteConnection = inner;
                let query = sqlite(statement, values);
                let row = answered(statement, query.fetch_optional(connection)).await?;
                Ok(row.map(Row::from))
            }
            Kind::Postgres(inner) => {
                let connection: &mut PgConnection = inner;
                let query = postgres(statement, values);
                let row = in_time(statement, query.fetch_optional(connection)).await?;
                Ok(row.map(Row::from))
            }
        }
    }

    /// Reads rows.
    ///
    /// # Errors
    /// [`StoreError::Statement`], [`StoreError::Late`].
    pub async fn fetch(
        &mut self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        match &mut self.0 {
            Kind::Sqlite(inner) => {
                let connection: &mut SqliteConnection = inner;
                let query = sqlite(statement, values);
                let rows = answered(statement, query.fetch_all(connection)).await?;
                Ok(rows.into_iter().map(Row::from).collect())
            }
            Kind::Postgres(inner) => {
                let connection: &mut PgConnection = inner;
                let query = postgres(statement, values);
                let rows = in_time(statement, query.fetch_all(connection)).await?;
                Ok(rows.into_iter().map(Row::from).collect())
            }
        }
    }

    /// Raises the named counter and returns its new value: an id that was never used before. Nobody else raises the
    /// counter until this transaction ends.
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
    /// [`StoreError::Statement`], [`StoreError::Late`]; then it is not known whether they are.
    pub async fn commit(self) -> Result<(), StoreError> {
        const COMMIT: &str = "COMMIT";
        match self.0 {
            Kind::Sqlite(inner) => answered(COMMIT, inner.commit()).await,
            Kind::Postgres(inner) => in_time(COMMIT, inner.commit()).await,
        }
    }
}

/// What becomes of a statement.
pub(crate) async fn answered<T>(
    statement: &'static str,
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    asked
        .await
        .map_err(|source| StoreError::Statement { statement, source })
}

/// What becomes of a statement that is sent to a server, which may be cut off.
pub(crate) async fn in_time<T>(
    statement: &'static str,
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(postgres::PATIENCE, answered(statement, asked))
        .await
        .unwrap_or(Err(StoreError::Late { statement }))
}

/// A statement with its values, for SQLite.
pub(crate) fn sqlite(
    statement: &'static str,
    values: Vec<Value>,
) -> Query<'static, Sqlite, SqliteArguments> {
    let query = sqlx::query(statement);
    values.into_iter().fold(query, |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Blob(value) => query.bind(value),
    })
}

/// A statement with its values, for PostgreSQL.
pub(crate) fn postgres(
    statement: &'static str,
    values: Vec<Value>,
) -> Query<'static, Postgres, PgArguments> {
    let query = sqlx::query(statement);
    values.into_iter().fold(query, |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value.map(text::held)),
        Value::Blob(value) => query.bind(value),
    })
}
