//! The database: connection, embedded migrations, the transaction helper. SQLite or PostgreSQL, which nobody else sees.
//!
//! SQL is one portable text: `$N` parameters, integer microseconds for time, 0 and 1 for booleans, text for JSON and
//! ids, `BLOB` for bytes, integer ids from the table `counters`. Numbers are `BIGINT` everywhere, and what is computed in
//! SQL is cast to it (`CAST(count(*) AS BIGINT)`). [`Database`], [`Transaction`], [`Value`] and [`Row`] are all that
//! other crates see.
//!
//! Transactions: SQLite has one writer at a time. PostgreSQL has many, each seeing what others have committed (`READ
//! COMMITTED`), so a transaction that reads, decides and writes first takes a counter by [`Transaction::next`]: its row
//! stays locked until the end, and transactions of the same kind queue. Several counters are taken in one order:
//! `account`, `api_key`, `ssh_key`, `space`, `account_changes`.
//!
//! Durability: SQLite has a write-ahead log with `synchronous = NORMAL`. A committed transaction survives the end of the
//! process, `kill -9` included; a power loss may cost the last few, never the consistency of the file. PostgreSQL does
//! what its server is set to do.
#![forbid(unsafe_code)]

mod database;
mod error;
mod migrations;
mod owner;
mod postgres;
mod text;
mod transaction;
mod url;
mod value;

pub use database::Database;
pub use error::StoreError;
pub use transaction::Transaction;
pub use url::{PostgresUrl, UrlFault};
pub use value::{FromValue, Row, Value};
