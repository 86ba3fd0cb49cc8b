//! The database through its public door.
#![allow(missing_docs, reason = "tests")]

use instavm_store::{Database, Value};

async fn open(folder: &tempfile::TempDir) -> Result<Database, instavm_store::StoreError> {
    Database::open(&folder.path().join("instavm.db")).await
}

async fn account(database: &Database, email: &str) -> Result<i64, instavm_store::StoreError> {
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

#[tokio::test]
async fn rows_survive_reopening_and_ids_are_never_used_twice() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder).await.unwrap();
    let first = account(&database, "a@b.c").await.unwrap();
    database
        .execute("DELETE FROM accounts WHERE id = $1", vec![first.into()])
        .await
        .unwrap();
    let second = account(&database, "a@b.c").await.unwrap();
    assert!(second > first);
    database.close().await;

    let database = open(&folder).await.unwrap();
    let row = database
        .fetch_optional("SELECT id, email, is_active FROM accounts", vec![])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.get::<i64>("id").unwrap(), second);
    assert_eq!(row.get::<String>("email").unwrap(), "a@b.c");
    assert!(row.get::<bool>("is_active").unwrap());
    assert!(row.get::<i64>("email").is_err());
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder).await.unwrap();
    let mut transaction = database.begin().await.unwrap();
    transaction.next("account").await.unwrap();
    drop(transaction);
    assert_eq!(account(&database, "a@b.c").await.unwrap(), 1);
}

#[tokio::test]
async fn a_second_row_with_the_same_unique_value_is_told_apart_from_other_failures() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder).await.unwrap();
    account(&database, "a@b.c").await.unwrap();
    assert!(
        account(&database, "a@b.c")
            .await
            .unwrap_err()
            .is_duplicate()
    );
    let other = database
        .execute("DELETE FROM nowhere", vec![])
        .await
        .unwrap_err();
    assert!(!other.is_duplicate());
}

#[tokio::test]
async fn bytes_and_nothing_come_back_as_they_went() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder).await.unwrap();
    let row = database
        .fetch_optional(
            "SELECT $1 AS bytes, $2 AS absent, $3 AS letters",
            vec![
                vec![0u8, 255].into(),
                Value::Int(None),
                "\u{1F600}\0x".into(),
            ],
        )
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.get::<Vec<u8>>("bytes").unwrap(), [0, 255]);
    assert_eq!(row.get::<Option<i64>>("absent").unwrap(), None);
    assert_eq!(row.get::<String>("letters").unwrap(), "\u{1F600}\0x");
}

#[tokio::test]
async fn two_processes_worth_of_writers_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(&folder).await.unwrap(), open(&folder).await.unwrap());
    let (a, b) = tokio::join!(account(&one, "a@b.c"), account(&two, "b@b.c"));
    assert_ne!(a.unwrap(), b.unwrap());
}
