//! Parameters of statements and rows of answers.

use crate::{StoreError, text};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

/// A parameter of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number, a time in microseconds, or a boolean as 0 or 1.
    Int(Option<i64>),
    /// A text, an id, or JSON.
    Text(Option<String>),
    /// Bytes.
    Blob(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(Some(value))
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::Int(Some(i64::from(value)))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Int(Some(i64::from(value)))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Value::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(Some(value))
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        Value::Text(value.map(str::to_owned))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Value::Text(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Value::Blob(value)
    }
}

/// One row of an answer.
pub struct Row(pub(crate) Kind);

/// Whose row it is.
pub(crate) enum Kind {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl From<SqliteRow> for Row {
    fn from(row: SqliteRow) -> Self {
        Row(Kind::Sqlite(row))
    }
}

impl From<PgRow> for Row {
    fn from(row: PgRow) -> Self {
        Row(Kind::Postgres(row))
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Row")
    }
}

impl Row {
    /// The content of a column.
    ///
    /// # Errors
    /// [`StoreError::Column`] when there is no such column or it has another type.
    pub fn get<T: FromValue>(&self, column: &'static str) -> Result<T, StoreError> {
        T::from_row(self, column)
    }
}

/// What a column can be read as.
pub trait FromValue: Sized {
    /// Reads the column.
    ///
    /// # Errors
    /// [`StoreError::Column`] when there is no such column or it has another type.
    fn from_row(row: &Row, column: &'static str) -> Result<Self, StoreError>;
}

macro_rules! readable {
    ($($kind:ty: $held:expr),*) => {$(
        impl FromValue for $kind {
            fn from_row(row: &Row, column: &'static str) -> Result<Self, StoreError> {
                match &row.0 {
                    Kind::Sqlite(row) => row.try_get(column),
                    Kind::Postgres(row) => row.try_get(column).map($held),
                }
                .map_err(|source| StoreError::Column { column, source })
            }
        }
    )*};
}

readable!(
    i64: std::convert::identity,
    Option<i64>: std::convert::identity,
    String: text::given,
    Option<String>: |held: Option<String>| held.map(text::given),
    Vec<u8>: std::convert::identity
);

impl FromValue for bool {
    fn from_row(row: &Row, column: &'static str) -> Result<Self, StoreError> {
        Ok(i64::from_row(row, column)? != 0)
    }
}

impl FromValue for u32 {
    fn from_row(row: &Row, column: &'static str) -> Result<Self, StoreError> {
        let value = i64::from_row(row, column)?;
        u32::try_from(value).map_err(|_| StoreError::Content {
            column,
            found: value.to_string(),
        })
    }
}
