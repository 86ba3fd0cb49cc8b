//! Listings of a volume, in the order of the paths, without holding more than a part of a folder.

use super::path::Prefix;
use super::{DRAFT, FOLDER, VolumeFileError, VolumeFiles, resolve};
use rustix::fs::{AtFlags, Dir, FileType, ResolveFlags, statat};
use rustix::io::Errno;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

/// Names of a folder that are held at once.
const AT_ONCE: usize = 4096;
/// Names that one listing looks at.
const BUDGET: usize = 4_000_000;

/// A file or folder of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Relative to the volume's root.
    pub path: String,
    /// Bytes; 0 for a folder.
    pub size: u64,
    /// It is a folder.
    pub is_dir: bool,
    /// When its content last changed.
    pub modified_at: SystemTime,
}

/// A folder that is being listed.
#[derive(Default)]
struct Level {
    /// From where the listing starts.
    path: String,
    /// What the names begin with.
    name: String,
    names: VecDeque<String>,
    progress: Progress,
}

/// How far a folder has been read.
#[derive(Default)]
enum Progress {
    #[default]
    Begin,
    /// There are more names, behind this one.
    After(String),
    End,
}

struct Listing {
    /// Where it starts, and the path of that in the volume.
    start: OwnedFd,
    prefix: String,
    recursive: bool,
    limit: usize,
    budget: usize,
    found: Vec<VolumeEntry>,
}

impl VolumeFiles {
    /// The files whose path begins with `prefix`, by path, at most `limit`. Recursive: all regular files; else the regular
    /// files and folders of the folder that the prefix names, or of its parent.
    ///
    /// # Errors
    /// [`VolumeFileError`].
    pub fn list(
        &self,
        prefix: &str,
        recursive: bool,
        limit: usize,
    ) -> Result<Vec<VolumeEntry>, VolumeFileError> {
        let asked = Prefix::parse(prefix)?;
        self.list_from(asked, recursive, limit)
            .map_err(|e| match e {
                Errno::OVERFLOW => VolumeFileError::Unsuitable {
                    path: prefix.to_owned(),
                    reason: "names too many files to be listed in order; ask for a longer prefix",
                },
                e => VolumeFileError::of("list", prefix, e),
            })
    }

    fn list_from(
        &self,
        mut asked: Prefix,
        recursive: bool,
        limit: usize,
    ) -> Result<Vec<VolumeEntry>, Errno> {
        if !recursive && !asked.name.is_empty() {
            let named = join(&asked.folder, &asked.name);
            if self.resolve(&named, FOLDER).is_ok() {
                (asked.folder, asked.name) = (named, String::new());
            }
        }
        // Links on the way to where the listing starts are followed as far as they stay in the volume; none below.
        let start = match self.resolve(&asked.folder, FOLDER) {
            // A folder that is not there has no files.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            other => other?,
        };
        let mut listing = Listing {
            start,
            prefix: asked.folder,
            recursive,
            limit,
            budget: BUDGET,
            found: Vec::new(),
        };
        listing.run(asked.name)?;
        Ok(listing.found)
    }
}

impl Listing {
    fn run(&mut self, name: String) -> Result<(), Errno> {
        let mut levels = vec![Level {
            name,
            ..Level::default()
        }];
        while self.found.len() < self.limit {
            let Some(level) = levels.last_mut() else {
                break;
            };
            let below = match resolve(&self.start, &level.path, FOLDER, ResolveFlags::NO_SYMLINKS) {
                Ok(folder) => self.advance(&folder, level)?,
                // Gone meanwhile, or too deep to have a path.
                Err(_) => None,
            };
            match below {
                Some(below) => levels.push(below),
                None => {
                    levels.pop();
                }
            }
        }
        Ok(())
    }

    /// Lists on in a folder, to a folder in it that must be listed first, or to the end.
    fn advance(&mut self, folder: &OwnedFd, level: &mut Level) -> Result<Option<Level>, Errno> {
        while self.found.len() < self.limit {
            let Some(key) = level.names.pop_front() else {
                match std::mem::replace(&mut level.progress, Progress::End) {
                    Progress::Begin => self.read(folder, level, "")?,
                    Progress::After(last) => self.read(folder, level, &last)?,
                    Progress::End => return Ok(None),
                }
                continue;
            };
            let name = key.strip_suffix('/').unwrap_or(&key);
            let path = join(&level.path, name);
            if key.ends_with('/') && self.recursive {
                return Ok(Some(Level {
                    path,
                    ..Level::default()
                }));
            }
            // What vanished meanwhile is not there.
            if let Ok(entry) = entry(folder, name, join(&self.prefix, &path)) {
                self.found.extend(entry);
            }
        }
        Ok(None)
    }

    /// Reads the next names of a folder, in order; those of folders end in `/`, as they do in paths.
    fn read(&mut self, folder: &OwnedFd, level: &mut Level, last: &str) -> Result<(), Errno> {
        let mut names = BTreeSet::new();
        let at_root = self.prefix.is_empty() && level.path.is_empty();
        let mut more = false;
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            self.budget = self.budget.checked_sub(1).ok_or(Errno::OVERFLOW)?;
            // A name that is no UTF-8 could not be asked for.
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let hidden = at_root && name.starts_with(DRAFT);
            if name == "." || name == ".." || hidden || !name.starts_with(&level.name) {
                continue;
            }
            let key = match kind(folder, name, entry.file_type()) {
                Some(FileType::Directory) => format!("{name}/"),
                Some(FileType::RegularFile) => name.to_owned(),
                _ => continue,
            };
            if *key > *last {
                names.insert(key);
            }
            if names.len() > AT_ONCE {
                names.pop_last();
                more = true;
            }
        }
        level.names = names.into_iter().collect();
        if let Some(last) = level.names.back().filter(|_| more) {
            level.progress = Progress::After(last.clone());
        }
        Ok(())
    }
}

fn kind(folder: &OwnedFd, name: &str, told: FileType) -> Option<FileType> {
    match told {
        FileType::Unknown => super::kind_of(folder, name).ok().flatten(),
        kind => Some(kind),
    }
}

fn entry(folder: &OwnedFd, name: &str, path: String) -> Result<Option<VolumeEntry>, Errno> {
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_dir = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => true,
        FileType::RegularFile => false,
        _ => return Ok(None),
    };
    let size = if is_dir { 0 } else { stat.st_size };
    Ok(Some(VolumeEntry {
        path,
        size: u64::try_from(size).unwrap_or_default(),
        is_dir,
        modified_at: modified(stat.st_mtime, stat.st_mtime_nsec),
    }))
}

/// Root of a VM may have set any time at all.
fn modified(seconds: i64, nanoseconds: impl TryInto<u32>) -> SystemTime {
    let nanoseconds = nanoseconds.try_into().unwrap_or_default();
    let seconds_of = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds_of)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds_of)
    };
    at.and_then(|at| at.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}
