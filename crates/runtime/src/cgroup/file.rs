//! The files of a group, with the path in every error.

use super::CgroupError;
use std::io;
use std::path::Path;

pub(super) fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::File {
        action,
        path,
        source,
    }
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    std::fs::write(path, text).map_err(error("write", path))
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(error("read", path))
}

/// Reads a file that holds one number.
pub(super) fn read_number(path: &Path) -> Result<u64, CgroupError> {
    let text = read(path)?;
    text.trim()
        .parse()
        .map_err(|e| error("read", path)(io::Error::other(e)))
}

/// Makes a folder with its parents; one that is there is no error.
pub(super) fn make(path: &Path) -> Result<(), CgroupError> {
    std::fs::create_dir_all(path).map_err(error("make", path))
}

/// Removes a folder; one that is not there is no error.
pub(super) fn remove(path: &Path) -> Result<(), CgroupError> {
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error("remove", path)(e)),
        _ => Ok(()),
    }
}

pub(super) fn subfolders(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
