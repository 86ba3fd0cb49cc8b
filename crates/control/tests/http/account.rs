use anyhow::Result;
use instavm_control::user::service::{
    AccountError, bootstrap, create_account, disable_account, list_accounts,
};
use instavm_testkit::{DatabaseKind, TestDatabase, TestPlatform, on_each_database};
use std::time::Duration;

on_each_database!(
    the_key_tells_who_one_is,
    accounts_need_nothing_but_the_database,
    changes_by_another_process_count,
);

async fn the_key_tells_who_one_is(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let me = platform.client().get("/v1/users/me").await?.json();
    assert_eq!(me["email"], "admin@localhost");
    assert_eq!(me["is_verified"], true);
    assert!(me["id"].is_i64() && me["name"].is_string());
    Ok(())
}

async fn accounts_need_nothing_but_the_database(kind: DatabaseKind) -> Result<()> {
    let place = TestDatabase::new(kind)?;
    let database = place.open().await?;
    let first = bootstrap(&database, Some("chosen-key-1")).await?;
    assert_eq!(
        first.map(|first| first.api_key).as_deref(),
        Some("chosen-key-1")
    );
    assert!(bootstrap(&database, Some("chosen-key-2")).await?.is_none());
    for wrong in ["", "short", "with space in it", "ümlauts-in-it"] {
        let refused = bootstrap(&database, Some(wrong)).await;
        assert!(matches!(refused, Err(AccountError::InvalidKey)), "{wrong}");
    }
    let made = create_account(&database, "A@Example.com").await?;
    assert_eq!(made.email, "a@example.com");
    assert!(!format!("{made:?}").contains(&made.api_key));
    let taken = create_account(&database, "a@example.com").await;
    assert!(matches!(taken, Err(AccountError::Taken { .. })));
    let none = create_account(&database, "nobody").await;
    assert!(matches!(none, Err(AccountError::InvalidEmail { .. })));
    let unknown = disable_account(&database, "x@example.com").await;
    assert!(matches!(unknown, Err(AccountError::Unknown { .. })));
    disable_account(&database, "a@example.com").await?;
    let emails: Vec<_> = list_accounts(&database)
        .await?
        .into_iter()
        .map(|account| (account.email, account.is_active))
        .collect();
    let expected = [
        ("admin@localhost".to_owned(), true),
        ("a@example.com".to_owned(), false),
    ];
    assert_eq!(emails, expected);
    Ok(())
}

async fn changes_by_another_process_count(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    // A new account works at once: its key is looked up when it is first used.
    let stranger = platform.stranger("other@example.com").await?;
    assert_eq!(stranger.get("/v1/users/me").await?.status, 200);
    disable_account(&platform.database, "other@example.com").await?;
    platform.platform.reload_accounts().await?;
    assert_eq!(stranger.get("/v1/users/me").await?.status, 401);

    // Without a word to the platform, by connections of another process.
    let elsewhere = platform.place().open().await?;
    let made = create_account(&elsewhere, "third@example.com").await?;
    let third = platform.client_with(Some(&made.api_key));
    assert_eq!(third.get("/v1/users/me").await?.status, 200);
    disable_account(&elsewhere, "third@example.com").await?;
    let noticed = async {
        while third.get("/v1/users/me").await?.status != 401 {}
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(20), noticed).await??;
    Ok(())
}
