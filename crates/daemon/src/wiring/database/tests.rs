use super::*;
use crate::config::{self, Overrides};
use anyhow::Result;
use instavm_control::user::service::{create_account, list_accounts};
use instavm_testkit::{DatabaseKind, TestDatabase};
use tempfile::TempDir;

/// An instance of its own: its directory, and its configuration with this database.
fn instance(url: Option<&str>) -> Result<(TempDir, Config)> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("instavm.toml");
    std::fs::write(&file, "")?;
    let data_dir = dir.path().join("data");
    std::fs::create_dir(&data_dir)?;
    let overrides = Overrides {
        config: Some(file),
        data_dir: Some(data_dir),
    };
    let (mut config, _) = config::load(&overrides, None)?;
    set(&mut config, url)?;
    Ok((dir, config))
}

fn set(config: &mut Config, url: Option<&str>) -> Result<()> {
    config.database_url = DatabaseUrl(url.map(str::parse).transpose()?);
    Ok(())
}

async fn accounts(config: &Config) -> Result<usize> {
    let database = open(config).await?;
    let accounts = list_accounts(&database).await?.len();
    database.close().await;
    Ok(accounts)
}

async fn add_account(config: &Config) -> Result<()> {
    let database = open(config).await?;
    create_account(&database, "a@b.c").await?;
    database.close().await;
    Ok(())
}

async fn refusal(config: &Config) -> Result<DatabaseError> {
    match open(config).await {
        Ok(_) => anyhow::bail!("it was opened"),
        Err(error) => Ok(error),
    }
}

#[tokio::test]
async fn a_directory_finds_its_records_again_on_a_server() -> Result<()> {
    let place = TestDatabase::new(DatabaseKind::Postgresql)?;
    let (_dir, config) = instance(Some(&place.url_text()?))?;
    assert!(!is_there(&config));
    add_account(&config).await?;
    assert!(is_there(&config));
    assert_eq!(accounts(&config).await?, 1);
    assert!(!config.data_dir.join(FILE).exists());
    Ok(())
}

#[tokio::test]
async fn a_database_serves_one_directory() -> Result<()> {
    let place = TestDatabase::new(DatabaseKind::Postgresql)?;
    let (_one, first) = instance(Some(&place.url_text()?))?;
    let (_two, second) = instance(Some(&place.url_text()?))?;
    add_account(&first).await?;
    let refused = refusal(&second).await?;
    assert!(matches!(refused, DatabaseError::Foreign { .. }));
    assert!(refused.to_string().contains(place.url()?.place()));
    // Also when that directory has an instance of its own already.
    let (_three, mut third) = instance(None)?;
    add_account(&third).await?;
    set(&mut third, Some(&place.url_text()?))?;
    let refused = refusal(&third).await?;
    assert!(matches!(refused, DatabaseError::Elsewhere { .. }));
    assert_eq!(accounts(&first).await?, 1);
    Ok(())
}

#[tokio::test]
async fn two_that_begin_at_once_do_not_share() -> Result<()> {
    let place = TestDatabase::new(DatabaseKind::Postgresql)?;
    let (_one, first) = instance(Some(&place.url_text()?))?;
    let (_two, second) = instance(Some(&place.url_text()?))?;
    let (a, b) = tokio::join!(open(&first), open(&second));
    assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|ok| **ok).count(), 1);
    // The directory that lost may have another one.
    let other = TestDatabase::new(DatabaseKind::Postgresql)?;
    let mut loser = if a.is_ok() { second } else { first };
    set(&mut loser, Some(&other.url_text()?))?;
    assert_eq!(accounts(&loser).await?, 0);
    Ok(())
}

#[tokio::test]
async fn processes_of_one_directory_that_begin_at_once_share() -> Result<()> {
    for kind in [DatabaseKind::Sqlite, DatabaseKind::Postgresql] {
        let place = TestDatabase::new(kind)?;
        let (_dir, config) = instance(place.url_text().ok().as_deref())?;
        let (a, b, c) = tokio::join!(open(&config), open(&config), open(&config));
        let owner = a?.owner().await?;
        assert!(owner.is_some());
        assert_eq!(b?.owner().await?, owner);
        assert_eq!(c?.owner().await?, owner);
    }
    Ok(())
}

#[tokio::test]
async fn records_that_are_elsewhere_or_gone_are_not_begun_anew() -> Result<()> {
    let place = TestDatabase::new(DatabaseKind::Postgresql)?;
    let (_dir, mut config) = instance(Some(&place.url_text()?))?;
    add_account(&config).await?;
    set(&mut config, None)?;
    let refused = refusal(&config).await?;
    assert!(matches!(refused, DatabaseError::Elsewhere { .. }));
    assert!(refused.to_string().contains(place.url()?.place()));
    assert!(!config.data_dir.join(FILE).exists());
    let empty = TestDatabase::new(DatabaseKind::Postgresql)?;
    set(&mut config, Some(&empty.url_text()?))?;
    assert!(matches!(
        refusal(&config).await?,
        DatabaseError::Lost { .. }
    ));
    assert_eq!(empty.url()?.owner().await?, None, "it was left alone");

    // A directory without a mark, which had a file.
    let (_other, mut older) = instance(None)?;
    add_account(&older).await?;
    std::fs::remove_file(older.data_dir.join(MARK))?;
    set(&mut older, Some(&empty.url_text()?))?;
    assert!(matches!(
        refusal(&older).await?,
        DatabaseError::Elsewhere { .. }
    ));
    set(&mut older, None)?;
    assert_eq!(accounts(&older).await?, 1);
    Ok(())
}

#[tokio::test]
async fn the_end_of_an_instance_takes_its_records_along_and_nobody_elses() -> Result<()> {
    let place = TestDatabase::new(DatabaseKind::Postgresql)?;
    let (_one, first) = instance(Some(&place.url_text()?))?;
    add_account(&first).await?;
    let (_two, stranger) = instance(Some(&place.url_text()?))?;
    erase(&stranger).await?;
    refusal(&stranger).await?;
    erase(&stranger).await?;
    let mut silent = first.clone();
    set(&mut silent, None)?;
    erase(&silent).await?;
    assert_eq!(accounts(&first).await?, 1);

    erase(&first).await?;
    assert_eq!(place.url()?.owner().await?, None);
    erase(&first).await?;
    assert_eq!(accounts(&stranger).await?, 0, "it is free for another one");
    Ok(())
}
