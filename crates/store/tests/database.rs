//! The database through its public door, the same for both kinds.
#![allow(missing_docs, reason = "tests")]

use anyhow::{Context, Result};
use instavm_store::{Database, StoreError, Value};
use instavm_testkit::{DatabaseKind, TestDatabase, on_each_database};
use std::collections::BTreeSet;

on_each_database!(
    rows_survive_reopening_and_ids_are_never_used_twice,
    a_dropped_transaction_leaves_nothing,
    a_second_row_with_the_same_unique_value_is_told_apart_from_other_failures,
    bytes_texts_and_nothing_come_back_as_they_went,
    texts_with_nul_are_found_again,
    writers_of_several_processes_wait_for_each_other,
    several_processes_make_the_schema_at_once,
    the_first_claim_counts,
);

async fn account(database: &Database, email: &str) -> Result<i64, StoreError> {
    let mut transaction = database.begin().await?;
    let id = transaction.next("account").await?;
    transaction
        .execute(
            "INSERT INTO accounts (id, email, name, is_active, created_at) VALUES ($1, $2, $3, $4, $5)",
            vec![id.into(), email.into(), "".into(), true.into(), 7i64.into()],
        )
        .await?;
    transaction.commit().await?;
    Ok(id)
}

async fn rows_survive_reopening_and_ids_are_never_used_twice(kind: DatabaseKind) -> Result<()> {
    let place = TestDatabase::new(kind)?;
    let database = place.open().await?;
    let first = account(&database, "a@b.c").await?;
    let deleted = database
        .execute("DELETE FROM accounts WHERE id = $1", vec![first.into()])
        .await?;
    assert_eq!(deleted, 1);
    let second = account(&database, "a@b.c").await?;
    assert!(second > first);
    database.close().await;
    assert!(account(&database, "closed@b.c").await.is_err());

    let database = place.open().await?;
    let row = database
        .fetch_optional("SELECT id, email, is_active FROM accounts", vec![])
        .await?
        .context("no row")?;
    assert_eq!(row.get::<i64>("id")?, second);
    assert_eq!(row.get::<String>("email")?, "a@b.c");
    assert!(row.get::<bool>("is_active")?);
    assert!(row.get::<i64>("email").is_err());
    assert!(row.get::<i64>("nowhere").is_err());
    Ok(())
}

async fn a_dropped_transaction_leaves_nothing(kind: DatabaseKind) -> Result<()> {
    let place = TestDatabase::new(kind)?;
    let database = place.open().await?;
    let mut transaction = database.begin().await?;
    transaction.next("account").await?;
    drop(transaction);
    assert_eq!(account(&database, "a@b.c").await?, 1);
    Ok(())
}

async fn a_second_row_with_the_same_unique_value_is_told_apart_from_other_failures(
    kind: DatabaseKind,
) -> Result<()> {
    let place = TestDatabase::new(kind)?;
    let database = place.open().await?;
    account(&database, "a@b.c").await?;
    let again = account(&database, "a@b.c").await;
    let again = again.err().context("it was added")?;
    assert!(again.is_duplicate() && !again.is_away(), "{again:?}");
    let other = database.execute("DELETE FROM nowhere", vec![]).await;
    let other = other.err().context("it was done")?;
    assert!(!other.is_duplicate() && !other.is_away(), "{other:?}");
    let mut transaction = database.begin().await?;
    assert!(transaction.next("nothing").await.is_err());
    Ok(())
}

async fn bytes_texts_and_nothing_come_back_as_they_went(kind: DatabaseKind) -> Result<()> {
    let place = TestDatabase::new(kind)?;
    let database = place.open().await?;
    let row = database
        .fetch_optional(
            "SELECT $1 AS bytes, $2 AS absent, $3 AS letters, $4 AS silent",
            vec![
                vec![0u8, 255].into(),
                Value::Int(None),
                "\u{1F600}\0x\u{1}".into(),
                Value::Text(None),
            ],
        )
        .await?
        .context("no row")?;
    assert_eq!(row.get::<Vec<u8>>("bytes")?, [0, 255]);
    assert_eq!(row.get::<Option<i64>>("absent")?, None);
    assert_eq!(row.get::<String>("letters")?, "\u{1F600}\0x\u{1}");
    assert_eq!(row.get::<Option<String>>("silent")?, None);
    Ok(())
}

async fn texts_with_nul_are_found_again(kind: DatabaseKind) -> Result<()> {
    let place = TestDatabase::new(kind)?;
    let database = place.open().await?;
    let odd = ["a\0b", "a\u{1}0b", "a\u{1}b", "ab"];
    for email in odd {
        account(&database, email).await?;
    }
    for email in odd {
        let found = database
            .fetch(
                "SELECT email FROM accounts WHERE email = $1",
                vec![email.into()],
            )
            .await?;
        assert_eq!(found.len(), 1, "{email:?}");
        assert_eq!(found[0].get::<String>("email")?, email);
    }
    Ok(())
}

async fn writers_of_several_processes_wait_for_each_other(kind: DatabaseKind) -> Result<()> {
    const EACH: usize = 20;
    let place = TestDatabase::new(kind)?;
    let mut writers = Vec::new();
    for writer in 0..3 {
        let database = place.open().await?;
        writers.push(tokio::spawn(async move {
            let mut ids = Vec::new();
            for number in 0..EACH {
                ids.push(account(&database, &format!("{writer}.{number}@b.c")).await?);
            }
            Ok::<_, StoreError>(ids)
        }));
    }
    let mut ids = BTreeSet::new();
    for writer in writers {
        ids.extend(writer.await??);
    }
    assert_eq!(ids, (1..=3 * EACH as i64).collect());
    Ok(())
}

async fn several_processes_make_the_schema_at_once(kind: DatabaseKind) -> Result<()> {
    let place = TestDatabase::new(kind)?;
    let (one, two, three) = tokio::join!(place.open(), place.open(), place.open());
    for (number, database) in [one?, two?, three?].into_iter().enumerate() {
        account(&database, &format!("{number}@b.c")).await?;
    }
    Ok(())
}

async fn the_first_claim_counts(kind: DatabaseKind) -> Result<()> {
    let place = TestDatabase::new(kind)?;
    let (one, two) = (place.open().await?, place.open().await?);
    assert_eq!(one.owner().await?, None);
    let (first, second) = tokio::join!(one.claim("first"), two.claim("second"));
    let owner = first?;
    assert_eq!(second?, owner);
    assert!(owner.as_deref() == Some("first") || owner.as_deref() == Some("second"));
    assert_eq!(two.claim("third").await?, owner);
    Ok(())
}
