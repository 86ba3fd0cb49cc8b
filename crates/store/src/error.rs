//! Why the database refused or failed.

/// Why the database refused or failed. Never for users: it may hold values.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be opened.
    #[error("opening the database failed")]
    Open(#[source] sqlx::Error),
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
        source: sqlx::Error,
    },
    /// A row has no such column, or one of another type.
    #[error("column {column} of a row cannot be read")]
    Column {
        /// Its name.
        column: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
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

impl StoreError {
    /// Whether a unique constraint refused the statement: the thing is there already.
    pub fn is_duplicate(&self) -> bool {
        match self {
            StoreError::Statement { source, .. } => source
                .as_database_error()
                .is_some_and(sqlx::error::DatabaseError::is_unique_violation),
            _ => false,
        }
    }
}
