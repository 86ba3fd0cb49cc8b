//! What there is with a server alone.
#![allow(missing_docs, reason = "tests")]

use anyhow::{Context, Result};
use instavm_store::{Database, PostgresUrl, StoreError};
use instavm_testkit::{DatabaseKind, TestDatabase};

async fn counter(database: &Database) -> Result<i64, StoreError> {
    let mut transaction = database.begin().await?;
    let value = transaction.next("account").await?;
    transaction.commit().await?;
    Ok(value)
}

#[tokio::test]
async fn a_lost_server_is_told_apart_and_found_again() -> Result<()> {
    let place = TestDatabase::new(DatabaseKind::Postgresql)?;
    let database = place.open().await?;
    counter(&database).await?;
    let mut cut_off = database.begin().await?;
    assert_eq!(cut_off.next("account").await?, 2);
    place.set_reachable(false)?;

    assert!(cut_off.next("account").await.unwrap_err().is_away());
    assert!(cut_off.commit().await.is_err());
    let refused = counter(&database).await.unwrap_err();
    assert!(refused.is_away(), "{refused:?}");
    let refused = place.open().await.unwrap_err();
    assert!(format!("{refused:#}").contains(place.url()?.place()));

    place.set_reachable(true)?;
    assert_eq!(
        counter(&database).await?,
        2,
        "what was cut off left nothing"
    );
    Ok(())
}

#[tokio::test]
async fn nobody_listens_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let text = format!(
        "postgres:///nothing?host={}&user=karl&password=geheim",
        folder.path().display()
    );
    let url: PostgresUrl = text.parse()?;
    for refused in [
        Database::connect(&url).await.map(drop).unwrap_err(),
        url.owner().await.map(drop).unwrap_err(),
    ] {
        assert!(refused.is_away());
        let debug = format!("{refused:?}");
        let told = format!("{:#} {debug}", anyhow::Error::from(refused));
        assert!(told.contains("nothing at "), "{told}");
        assert!(!told.contains("geheim"), "{told}");
    }
    Ok(())
}

#[tokio::test]
async fn what_an_instance_has_is_removed_for_its_owner_alone() -> Result<()> {
    let place = TestDatabase::new(DatabaseKind::Postgresql)?;
    let url = place.url()?;
    assert_eq!(url.owner().await?, None, "looking changes nothing");
    assert!(!url.erase("ours").await?);
    let database = place.open().await?;
    assert_eq!(url.owner().await?, None);
    database.claim("ours").await?;
    assert_eq!(url.owner().await?.as_deref(), Some("ours"));
    assert!(!url.erase("theirs").await?);
    assert_eq!(counter(&database).await?, 1);
    database.close().await;

    assert!(url.erase("ours").await?);
    assert_eq!(url.owner().await?, None);
    let database = place.open().await?;
    let tables = database
        .fetch(
            "SELECT CAST(schemaname AS TEXT) AS schema FROM pg_catalog.pg_tables \
             WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'instavm')",
            vec![],
        )
        .await?;
    assert!(tables.is_empty(), "all that is ours is in one schema");
    assert_eq!(counter(&database).await?, 1, "it begins anew");
    Ok(())
}

#[tokio::test]
async fn a_statement_that_gives_way_is_done_again() -> Result<()> {
    const RAISE: &str = "UPDATE counters SET value = value + 1 WHERE name = $1";
    let place = TestDatabase::new(DatabaseKind::Postgresql)?;
    let database = place.open().await?;
    // A deadlock: each side has one row and wants the other's; the server ends the one that waits longest for it.
    let mut other = database.begin().await?;
    other.next("api_key").await?;
    let waiting = database.execute(
        "UPDATE counters SET value = value + 1 WHERE name IN \
         (SELECT name FROM counters WHERE name IN ('account', 'api_key') ORDER BY name FOR UPDATE)",
        vec![],
    );
    let crossing = async {
        // Only when the first side waits for our row does it hold the one that we want.
        loop {
            let row = database
                .fetch_optional(
                    "SELECT CAST(count(*) AS BIGINT) AS waiting FROM pg_catalog.pg_stat_activity \
                     WHERE datname = current_database() AND wait_event_type = 'Lock'",
                    vec![],
                )
                .await?
                .context("no row")?;
            if row.get::<i64>("waiting")? > 0 {
                break;
            }
        }
        let raised = other.execute(RAISE, vec!["account".into()]).await;
        match raised {
            Ok(_) => other.commit().await?,
            Err(_) => drop(other),
        }
        anyhow::Ok(())
    };
    let (waited, crossed) = tokio::join!(waiting, crossing);
    crossed?;
    assert_eq!(waited?, 2, "the statement by itself is done in any case");
    Ok(())
}
