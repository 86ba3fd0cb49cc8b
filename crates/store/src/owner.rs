//! Whose records a database holds: the id of the data directory that they belong to.

use crate::migrations::SCHEMA;
use crate::{Database, PostgresUrl, StoreError, postgres};
use sqlx::{Connection as _, PgConnection};

const OWNER: &str = "SELECT id FROM instance WHERE slot = 1";

impl Database {
    /// The id of the instance that has claimed this database.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    pub async fn owner(&self) -> Result<Option<String>, StoreError> {
        let row = self.fetch_optional(OWNER, vec![]).await?;
        row.map(|row| row.get("id")).transpose()
    }

    /// Claims the database for the instance of this id, unless one has claimed it; returns whose it is now.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read or written.
    pub async fn claim(&self, instance: &str) -> Result<Option<String>, StoreError> {
        self.execute(
            "INSERT INTO instance (slot, id) VALUES (1, $1) ON CONFLICT (slot) DO NOTHING",
            vec![instance.into()],
        )
        .await?;
        self.owner().await
    }
}

impl PostgresUrl {
    /// The id of the instance that has claimed the database. Changes nothing there, whatever program it belongs to.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be reached or read.
    pub async fn owner(&self) -> Result<Option<String>, StoreError> {
        let mut connection = postgres::connect(self).await?;
        let owner = owner(&mut connection).await;
        // What was asked is answered; an unfriendly farewell changes nothing.
        let _ = connection.close().await;
        owner
    }

    /// Removes everything that an instance has in the database, if it is the one that has claimed it; whether it is.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be reached or written.
    pub async fn erase(&self, instance: &str) -> Result<bool, StoreError> {
        const ERASE: &str = "DROP SCHEMA instavm CASCADE";
        debug_assert!(ERASE.contains(SCHEMA));
        let mut connection = postgres::connect(self).await?;
        let ours = owner(&mut connection).await?.as_deref() == Some(instance);
        if ours {
            sqlx::query(ERASE)
                .execute(&mut connection)
                .await
                .map_err(failed(ERASE))?;
        }
        let _ = connection.close().await;
        Ok(ours)
    }
}

async fn owner(connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
    const FIND: &str = "SELECT to_regclass('instavm.instance') IS NOT NULL";
    let claimable: bool = sqlx::query_scalar(FIND)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed(FIND))?;
    if !claimable {
        return Ok(None);
    }
    sqlx::query_scalar(OWNER)
        .fetch_optional(connection)
        .await
        .map_err(failed(OWNER))
}

fn failed(statement: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Statement { statement, source }
}
