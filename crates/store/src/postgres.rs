//! Connections to PostgreSQL: how they are set up, and when they are given up.

use crate::migrations::SCHEMA;
use crate::{PostgresUrl, StoreError};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Error, PgConnection};
use std::time::Duration;

/// The most connections of a process.
const CONNECTIONS: u32 = 10;
/// How long the first connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a statement waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(5);
/// How long a statement may take before we no longer wait for it: longer than the server lets it run.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection that is given back may take to say that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// What every connection is told: where our tables are, what a transaction sees, how long statements and idle
/// transactions (of a process that was cut off) may last.
const SETTINGS: &str = "SET search_path TO instavm; \
     SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED; \
     SET statement_timeout TO '15s'; \
     SET idle_in_transaction_session_timeout TO '60s'";

async fn set_up(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::raw_sql(SETTINGS).execute(connection).await.map(drop)
}

/// A connection by itself, for what is done once.
pub(crate) async fn connect(url: &PostgresUrl) -> Result<PgConnection, StoreError> {
    debug_assert!(SETTINGS.contains(SCHEMA));
    let connecting = async {
        let mut connection = url.options().connect().await?;
        set_up(&mut connection).await?;
        // Migrations may take as long as they need.
        sqlx::raw_sql("SET statement_timeout TO 0")
            .execute(&mut connection)
            .await?;
        Ok(connection)
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(connected) => connected.map_err(|source| StoreError::Connect {
            place: url.place().to_owned(),
            source,
        }),
        Err(_) => Err(StoreError::NoAnswer {
            place: url.place().to_owned(),
            seconds: CONNECT.as_secs(),
        }),
    }
}

/// Refuses a database that cannot hold every text.
pub(crate) async fn check_encoding(
    connection: &mut PgConnection,
    url: &PostgresUrl,
) -> Result<(), StoreError> {
    const ENCODING: &str = "SHOW server_encoding";
    let encoding: String = sqlx::query_scalar(ENCODING)
        .fetch_one(connection)
        .await
        .map_err(|source| StoreError::Statement {
            statement: ENCODING,
            source,
        })?;
    if encoding == "UTF8" {
        Ok(())
    } else {
        Err(StoreError::Encoding {
            place: url.place().to_owned(),
            encoding,
        })
    }
}

/// The pool. It connects when it is asked, tests a connection before it gives it out, and replaces broken ones, so it
/// works again as soon as the server does.
pub(crate) fn pool(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE)
        .after_connect(|connection, _| Box::pin(set_up(connection)))
        .after_release(|connection, _| {
            Box::pin(async move {
                match tokio::time::timeout(SIGN_OF_LIFE, connection.ping()).await {
                    Ok(pinged) => pinged.map(|()| true),
                    Err(_) => Err(Error::Protocol("the connection gives no answer".to_owned())),
                }
            })
        })
        .connect_lazy_with(options.clone())
}
