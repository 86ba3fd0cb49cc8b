//! The database: connection, embedded migrations, the transaction helper.
//!
//! SQL is one portable text: `$N` parameters, integer microseconds for time, 0 and 1 for booleans, text for JSON and
//! ids, integer ids from the table `counters`. [`Database`], [`Transaction`], [`Value`] and [`Row`] are all that other
//! crates see, so a second kind of database is an addition to this crate alone.
//!
//! Durability: write-ahead log with `synchronous = NORMAL`. A committed transaction survives the end of the process,
//! `kill -9` included; a power loss may cost the last few, never the consistency of the file.
#![forbid(unsafe_code)]

mod database;
mod error;
mod value;

pub use database::{Database, Transaction};
pub use error::StoreError;
pub use value::{FromValue, Row, Value};
