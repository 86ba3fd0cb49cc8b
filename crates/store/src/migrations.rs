//! The schema's steps, embedded: one text for both kinds of database.

use crate::StoreError;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, PgConnection, SqlSafeStr, SqlitePool};
use std::borrow::Cow;

/// The schema of a PostgreSQL database that everything of ours is in.
pub(crate) const SCHEMA: &str = "instavm";

/// Version, name and text of each step, in their order. What was released is never changed.
const STEPS: &[(i64, &str, &str)] = &[
    (
        1,
        "sessions",
        include_str!("../migrations/0001_sessions.sql"),
    ),
    (
        2,
        "instance",
        include_str!("../migrations/0002_instance.sql"),
    ),
    (
        3,
        "retention",
        include_str!("../migrations/0003_retention.sql"),
    ),
    (4, "disks", include_str!("../migrations/0004_disks.sql")),
    (5, "shares", include_str!("../migrations/0005_shares.sql")),
];

/// The one word that the two dialects do not share.
const BYTES: (&str, &str) = ("BLOB", "BYTEA");

fn migrator(translate: impl Fn(&'static str) -> Cow<'static, str>) -> Migrator {
    let steps = STEPS.iter().map(|(version, name, text)| {
        // Texts of this program, without anything from outside.
        let text = AssertSqlSafe(translate(text).into_owned()).into_sql_str();
        Migration::new(
            *version,
            Cow::Borrowed(name),
            MigrationType::Simple,
            text,
            false,
        )
    });
    Migrator::with_migrations(steps.collect())
}

/// Brings a file's schema up to date. Of several processes that try the same step at once, one does it; the others fail
/// there, and find it done when they look again.
pub(crate) async fn sqlite(writer: &SqlitePool) -> Result<(), StoreError> {
    let migrator = migrator(Cow::Borrowed);
    for _ in STEPS {
        match migrator.run(writer).await {
            Err(MigrateError::ExecuteMigration(..) | MigrateError::Execute(_)) => {}
            done => return done.map_err(StoreError::Migrate),
        }
    }
    migrator.run(writer).await.map_err(StoreError::Migrate)
}

/// Brings a PostgreSQL database's schema up to date. The migrator holds an advisory lock meanwhile, so that of several
/// processes one does it.
pub(crate) async fn postgres(connection: &mut PgConnection) -> Result<(), StoreError> {
    const FIND: &str = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1";
    let found = sqlx::query(FIND)
        .bind(SCHEMA)
        .fetch_optional(&mut *connection)
        .await
        .map_err(|source| StoreError::Statement {
            statement: FIND,
            source,
        })?;
    let mut migrator = migrator(|text| Cow::Owned(text.replace(BYTES.0, BYTES.1)));
    if found.is_none() {
        // Only then: a role that has been given the schema need not have the right to make one.
        migrator.create_schema(SCHEMA);
    }
    migrator.run(connection).await.map_err(StoreError::Migrate)
}
