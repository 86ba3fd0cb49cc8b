//! Paths of a volume's files, as users write them.

use super::{DRAFT, VolumeFileError};

/// The longest path that the kernel takes.
const LONGEST: usize = 4095;
/// The longest name of a file that file systems take.
const LONGEST_NAME: usize = 255;

/// A path relative to a volume's root: no empty part, no `.`, no `..`.
#[derive(Debug)]
pub(super) struct VolumePath {
    asked: String,
    path: String,
}

impl VolumePath {
    /// The path of a file or folder below the root.
    pub(super) fn entry(asked: &str) -> Result<Self, VolumeFileError> {
        let parsed = Self::parse(asked)?;
        if parsed.path.is_empty() {
            return Err(parsed.unsuitable("is the volume itself"));
        }
        Ok(parsed)
    }

    /// The path of a file.
    pub(super) fn file(asked: &str) -> Result<Self, VolumeFileError> {
        let parsed = Self::entry(asked)?;
        if asked.ends_with('/') || asked.ends_with("/.") {
            return Err(parsed.unsuitable("names a directory"));
        }
        Ok(parsed)
    }

    fn parse(asked: &str) -> Result<Self, VolumeFileError> {
        let mut parsed = Self {
            asked: asked.to_owned(),
            path: String::new(),
        };
        if asked.len() > LONGEST {
            parsed.asked = format!("{}…", asked.chars().take(64).collect::<String>());
            return Err(parsed.unsuitable("is too long a path"));
        }
        if asked.contains('\0') {
            return Err(parsed.unsuitable("contains a NUL"));
        }
        if asked.starts_with('/') {
            return Err(parsed.unsuitable("is absolute; paths are relative to the volume's root"));
        }
        let parts: Vec<&str> = asked
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
            .collect();
        if parts.contains(&"..") {
            return Err(parsed.unsuitable("must not have a part `..`"));
        }
        if parts.iter().any(|part| part.len() > LONGEST_NAME) {
            return Err(parsed.unsuitable("has a part that is too long"));
        }
        if parts.first().is_some_and(|first| first.starts_with(DRAFT)) {
            return Err(parsed.unsuitable("begins with a name that is not for users"));
        }
        parsed.path = parts.join("/");
        Ok(parsed)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.path
    }

    /// As it was asked for.
    pub(super) fn asked(&self) -> &str {
        &self.asked
    }

    /// The folder that it is in, and its name there.
    pub(super) fn split(&self) -> (&str, &str) {
        self.path.rsplit_once('/').unwrap_or(("", &self.path))
    }

    pub(super) fn unsuitable(&self, reason: &'static str) -> VolumeFileError {
        VolumeFileError::Unsuitable {
            path: self.asked.clone(),
            reason,
        }
    }
}

/// What a listing asks for: a folder, and how the names of its entries begin.
#[derive(Debug)]
pub(super) struct Prefix {
    pub(super) folder: String,
    pub(super) name: String,
}

impl Prefix {
    pub(super) fn parse(asked: &str) -> Result<Self, VolumeFileError> {
        let path = VolumePath::parse(asked)?.path;
        if path.is_empty() || asked.ends_with('/') {
            return Ok(Self {
                folder: path,
                name: String::new(),
            });
        }
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        Ok(Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
        })
    }
}
