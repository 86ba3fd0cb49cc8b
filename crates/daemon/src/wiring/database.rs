//! Opens the database of a data directory, and no other one's.
//!
//! The mark `D/database.json` says which instance the directory is and where its records are; the database says whose
//! records it holds. A daemon starts only when the two agree: with somebody else's records, or with none, it would end
//! every VM that it finds.

use crate::config::{Config, DatabaseUrl};
use crate::output;
use instavm_store::{Database, PostgresUrl, StoreError};
use rand::Rng;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The records' file in the data directory, where there is no server.
const FILE: &str = "instavm.db";
/// The mark's name in the data directory.
const MARK: &str = "database.json";

/// Why a database could not be opened, or its records not removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file could not be made.
    #[error("the database's file {} cannot be made", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The mark could not be read or written.
    #[error("the mark of the instance, {}, cannot be read or written", .path.display())]
    Mark {
        /// The mark.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database is somebody else's.
    #[error(
        "the database {place} holds the records of another instance: give this data directory a database of its own \
         (key `database.url`), or serve the data directory that the records belong to"
    )]
    Foreign {
        /// Which database.
        place: String,
    },
    /// The records are elsewhere.
    #[error(
        "the records of this data directory are in {recorded}, and the key `database.url` names {place}: set it back. \
         Records are not moved; `instavmd destroy` ends the instance with its VMs"
    )]
    Elsewhere {
        /// Where they are.
        recorded: String,
        /// What the configuration says.
        place: String,
    },
    /// The records are gone.
    #[error(
        "the database {place} has lost the records of this instance: restore them, or end the instance with its VMs \
         by `instavmd destroy`"
    )]
    Lost {
        /// Which database.
        place: String,
    },
}

/// What a data directory says about its records.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Mark {
    /// The instance's id.
    instance: String,
    /// Where its records are, once the database has been claimed.
    records: Option<Records>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Records {
    Sqlite,
    /// At this place, as it was called when it was claimed.
    Postgresql(String),
}

impl Records {
    fn of(config: &Config) -> Records {
        match &config.database_url {
            DatabaseUrl(None) => Records::Sqlite,
            DatabaseUrl(Some(url)) => Records::Postgresql(url.place().to_owned()),
        }
    }

    fn place(&self) -> String {
        match self {
            Records::Sqlite => format!("SQLite ({FILE})"),
            Records::Postgresql(place) => format!("PostgreSQL ({place})"),
        }
    }

    /// Whether both are of the same kind. A server may move; its records know whose they are.
    fn is_kind_of(&self, other: &Records) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// Opens the records of this data directory; claims an unclaimed database for a directory that has none yet.
pub(super) async fn open(config: &Config) -> Result<Database, DatabaseError> {
    let dir = config.data_dir.as_path();
    let wanted = Records::of(config);
    let mark = read(dir)?;
    let recorded = match &mark {
        Some(mark) => mark.records.clone(),
        // Older than marks are.
        None => dir.join(FILE).exists().then_some(Records::Sqlite),
    };
    if let Some(recorded) = recorded.filter(|recorded| !recorded.is_kind_of(&wanted)) {
        return Err(DatabaseError::Elsewhere {
            recorded: recorded.place(),
            place: wanted.place(),
        });
    }
    match &config.database_url {
        DatabaseUrl(None) => open_file(dir, mark).await,
        DatabaseUrl(Some(url)) => connect(dir, url, mark).await,
    }
}

/// The file belongs to the directory that it lies in; its side files get the same mode from SQLite.
async fn open_file(dir: &Path, mark: Option<Mark>) -> Result<Database, DatabaseError> {
    let path = dir.join(FILE);
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| DatabaseError::File { path, source })?;
    let database = Database::open(&dir.join(FILE)).await?;
    let mark = match (mark, database.owner().await?) {
        (Some(mark), _) => mark,
        (None, Some(instance)) => make(dir, instance)?,
        (None, None) => make(dir, new_id())?,
    };
    settle(dir, &database, mark, Records::Sqlite).await?;
    Ok(database)
}

async fn connect(
    dir: &Path,
    url: &PostgresUrl,
    mark: Option<Mark>,
) -> Result<Database, DatabaseError> {
    let place = url.place().to_owned();
    // Before anything is changed there.
    let owner = url.owner().await?;
    let mark = match (mark, owner) {
        (Some(mark), Some(owner)) if mark.instance == owner => mark,
        (_, Some(_)) => return Err(DatabaseError::Foreign { place }),
        (Some(mark), None) if mark.records.is_some() => return Err(DatabaseError::Lost { place }),
        (Some(mark), None) => mark,
        (None, None) => make(dir, new_id())?,
    };
    let database = Database::connect(url).await?;
    settle(dir, &database, mark, Records::Postgresql(place)).await?;
    Ok(database)
}

/// Claims the database, and notes in the mark that it is ours.
async fn settle(
    dir: &Path,
    database: &Database,
    mark: Mark,
    records: Records,
) -> Result<(), DatabaseError> {
    let owner = match database.owner().await? {
        None => database.claim(&mark.instance).await?,
        found => found,
    };
    if owner.as_deref() != Some(mark.instance.as_str()) {
        database.close().await;
        return Err(DatabaseError::Foreign {
            place: records.place(),
        });
    }
    let settled = Mark {
        records: Some(records),
        ..mark.clone()
    };
    if settled != mark {
        write(dir, &settled, NamedTempFile::persist)?;
    }
    Ok(())
}

/// Whether the directory has records.
pub(super) fn is_there(config: &Config) -> bool {
    [FILE, MARK]
        .iter()
        .any(|name| config.data_dir.join(name).exists())
}

/// Removes the records of this directory from their server. Those in a file go with the directory.
pub(super) async fn erase(config: &Config) -> Result<(), DatabaseError> {
    let Some(mark) = read(&config.data_dir)? else {
        return Ok(());
    };
    match (&config.database_url, mark.records) {
        (DatabaseUrl(Some(url)), _) => {
            if !url.erase(&mark.instance).await? {
                output::note(&format!(
                    "the database {url} holds no records of this instance: nothing is removed there"
                ));
            }
        }
        (DatabaseUrl(None), Some(records @ Records::Postgresql(_))) => output::note(&format!(
            "the records stay in {}, because `database.url` is not set: remove them by DROP SCHEMA instavm CASCADE",
            records.place()
        )),
        (DatabaseUrl(None), _) => {}
    }
    Ok(())
}

fn new_id() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

fn failed(dir: &Path) -> impl Fn(io::Error) -> DatabaseError {
    let path = dir.join(MARK);
    move |source| DatabaseError::Mark {
        path: path.clone(),
        source,
    }
}

fn read(dir: &Path) -> Result<Option<Mark>, DatabaseError> {
    match std::fs::read(dir.join(MARK)) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| failed(dir)(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(dir)(error)),
    }
}

/// Makes the mark. When another process makes one at the same time, there is only the first one's.
fn make(dir: &Path, instance: String) -> Result<Mark, DatabaseError> {
    let mark = Mark {
        instance,
        records: None,
    };
    match write(dir, &mark, NamedTempFile::persist_noclobber) {
        Ok(()) => Ok(mark),
        Err(error) => read(dir)?.ok_or(error),
    }
}

/// Writes the mark for its owner alone, whole or not at all.
fn write(
    dir: &Path,
    mark: &Mark,
    place: impl FnOnce(NamedTempFile, PathBuf) -> Result<File, tempfile::PersistError>,
) -> Result<(), DatabaseError> {
    let written = || -> io::Result<()> {
        let mut draft = NamedTempFile::new_in(dir)?;
        serde_json::to_writer(&mut draft, mark)?;
        draft.flush()?;
        draft.as_file().sync_all()?;
        place(draft, dir.join(MARK)).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    written().map_err(failed(dir))
}

#[cfg(test)]
mod tests;
