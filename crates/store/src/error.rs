//! Why the database refused or failed.

use sqlx::error::{DatabaseError, Error};
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// Why the database refused or failed. Never for users: it may hold values.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be opened.
    #[error("opening the database failed")]
    Open(#[source] Error),
    /// The server could not be reached, or did not let us in.
    #[error("connecting to the PostgreSQL database {place} failed")]
    Connect {
        /// The database's name and where its server is.
        place: String,
        /// Why.
        #[source]
        source: Error,
    },
    /// The server did not answer in time when it was connected to.
    #[error("the PostgreSQL database {place} did not answer within {seconds} seconds")]
    NoAnswer {
        /// The database's name and where its server is.
        place: String,
        /// How long it had.
        seconds: u64,
    },
    /// The database is not fit for texts of all languages.
    #[error(
        "the PostgreSQL database {place} has the encoding {encoding}: make one with the encoding UTF8 \
         (createdb --encoding UTF8 --template template0)"
    )]
    Encoding {
        /// The database's name and where its server is.
        place: String,
        /// What it has.
        encoding: String,
    },
    /// The schema could not be brought up to date.
    #[error("migrating the database failed")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error("the statement failed: {statement}")]
    Statement {
        /// The SQL text, which holds no values.
        statement: &'static str,
        /// Why.
        #[source]
        source: Error,
    },
    /// A statement took too long.
    #[error("the database did not answer in time: {statement}")]
    Late {
        /// The SQL text, which holds no values.
        statement: &'static str,
    },
    /// A row has no such column, or one of another type.
    #[error("column {column} of a row cannot be read")]
    Column {
        /// Its name.
        column: &'static str,
        /// Why.
        #[source]
        source: Error,
    },
    /// The text in a column is not what the program once wrote there.
    #[error("column {column} of a row holds something unexpected: {found}")]
    Content {
        /// Its name.
        column: &'static str,
        /// What is wrong with it.
        found: String,
    },
}

/// Beginnings of PostgreSQL's codes that say that the server cannot be used now: connection lost, read-only (a standby),
/// out of connections, shutting down or starting, statement cut off by its time limit.
const AWAY: &[&str] = &["08", "25006", "53300", "57P", "57014"];
/// PostgreSQL's codes of transactions that gave way to others: a serialisation failure and a deadlock.
const GAVE_WAY: &[&str] = &["40001", "40P01"];

impl StoreError {
    /// Whether a unique constraint refused the statement: the thing is there already.
    pub fn is_duplicate(&self) -> bool {
        self.refusal()
            .is_some_and(DatabaseError::is_unique_violation)
    }

    /// Whether the database cannot be reached at present, so that the same may work later.
    pub fn is_away(&self) -> bool {
        match self {
            StoreError::Late { .. } | StoreError::NoAnswer { .. } | StoreError::Connect { .. } => {
                true
            }
            StoreError::Statement { source, .. } => match source {
                Error::Io(_)
                | Error::Tls(_)
                | Error::Protocol(_)
                | Error::PoolTimedOut
                | Error::BeginFailed
                | Error::WorkerCrashed => true,
                Error::Database(refusal) => {
                    has_code(refusal.as_ref(), AWAY) || ended_the_connection(refusal.as_ref())
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the transaction gave way to another one: done again, it may work.
    pub(crate) fn gave_way(&self) -> bool {
        self.refusal()
            .is_some_and(|refusal| has_code(refusal, GAVE_WAY))
    }

    fn refusal(&self) -> Option<&dyn DatabaseError> {
        match self {
            StoreError::Statement { source, .. } => source.as_database_error(),
            _ => None,
        }
    }
}

/// Whether the server refused or ended the connection, and not only the statement.
fn ended_the_connection(refusal: &dyn DatabaseError) -> bool {
    refusal
        .try_downcast_ref::<PgDatabaseError>()
        .is_some_and(|refusal| matches!(refusal.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether PostgreSQL's code begins with one of these. SQLite's are numbers of fewer digits.
fn has_code(refusal: &dyn DatabaseError, beginnings: &[&str]) -> bool {
    refusal.code().is_some_and(|code| {
        code.len() == 5
            && beginnings
                .iter()
                .any(|beginning| code.starts_with(beginning))
    })
}
