//! The host-wide cache of images.
//!
//! ```text
//! sha256-<hex>/root.tar     the content
//! sha256-<hex>/image.json   what it is
//! names/<name>              a symbolic link to one of these directories
//! locks/<name>              held while an image of that name is built
//! locks/@                   held while a name or a directory appears or goes
//! building/<name>@<random>  a build under way; a leftover when nobody holds the lock of its name
//! building/@<random>        a directory on its way out
//! ```
//! A build becomes visible by two renames, each after what it shows is synced. So a process may die anywhere: what it
//! leaves is under `building/` and goes when the cache is opened next. An image without a name is removed.

use super::lock::FileLock;
use super::{Image, ImageError, Source, archive, debian, host};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The name of the image that VMs start from unless something else is asked for.
pub const DEFAULT_IMAGE: &str = "default";

const NAMES: &str = "names";
const LOCKS: &str = "locks";
const BUILDING: &str = "building";
const STORE_LOCK: &str = "@";
const DESCRIPTION: &str = "image.json";
const CONTENT: &str = "root.tar";
const LONGEST_NAME: usize = 63;

/// What `image.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    digest: String,
    source: Source,
    size_bytes: u64,
    created_unix: u64,
}

/// The host-wide cache of images, shared by every daemon of the host.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
}

impl ImageStore {
    /// Opens the cache, making it when it is missing, and removes what interrupted builds left.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the directory cannot be made or written.
    pub fn open(cache_dir: &Path) -> Result<ImageStore, ImageError> {
        let store = ImageStore {
            root: cache_dir.to_owned(),
        };
        for folder in [NAMES, LOCKS, BUILDING] {
            let path = store.root.join(folder);
            std::fs::create_dir_all(&path).map_err(ImageError::io("create", path))?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// Builds an image from `source` and gives it `name`, in place of the image that had it.
    ///
    /// # Errors
    /// [`ImageError`] naming the step; the image that had the name stays.
    pub fn build(
        &self,
        source: Source,
        name: &str,
        progress: &dyn Fn(&str),
    ) -> Result<Image, ImageError> {
        let _lock = self.lock_name(name, progress)?;
        self.build_locked(source, name, progress)
    }

    /// Makes an image of a tar stream and gives it `name`, in place of the image that had it.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the stream breaks off or the cache cannot be written.
    pub fn add(
        &self,
        source: Source,
        name: &str,
        content: impl Read,
        progress: &dyn Fn(&str),
    ) -> Result<Image, ImageError> {
        let _lock = self.lock_name(name, progress)?;
        self.stage_and_publish(source, name, |directory| {
            archive::write_file(content, &directory.join(CONTENT))
        })
    }

    /// [`ImageStore::ensure`] for [`DEFAULT_IMAGE`] from the best source.
    ///
    /// # Errors
    /// [`ImageError::NoSource`] when neither source gives one.
    pub fn ensure_default(&self, progress: &dyn Fn(&str)) -> Result<Image, ImageError> {
        self.ensure(DEFAULT_IMAGE, None, progress)
    }

    /// The image of this name, built when it is missing or damaged: from `source`, or without one from Debian's
    /// packages where they can be had, else from this host. Processes that ask at once build it once.
    ///
    /// # Errors
    /// [`ImageError`] naming the step that failed; [`ImageError::NoSource`] when neither source gives one.
    pub fn ensure(
        &self,
        name: &str,
        source: Option<Source>,
        progress: &dyn Fn(&str),
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.usable(name, progress)? {
            return Ok(image);
        }
        let _lock = self.lock_name(name, progress)?;
        if let Some(image) = self.usable(name, progress)? {
            return Ok(image);
        }
        if let Some(source) = source {
            return self.build_locked(source, name, progress);
        }
        let debian = match self.build_locked(Source::Debian, name, progress) {
            Ok(image) => return Ok(image),
            Err(error) => error,
        };
        progress(&format!(
            "no image from Debian's packages: {debian}{}; copying this host's /usr instead",
            cause(&debian)
        ));
        self.build_locked(Source::Host, name, progress)
            .map_err(|host| ImageError::NoSource {
                debian: Box::new(debian),
                host: Box::new(host),
            })
    }

    /// All images, by name.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the cache cannot be read; [`ImageError::Damaged`] for an image whose files are gone.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let names = self.root.join(NAMES);
        let mut images = Vec::new();
        for name in file_names(&names)? {
            if !is_name(&name) {
                continue;
            }
            match self.get(&name) {
                Ok(image) => images.push(image),
                // Removed since the directory was read.
                Err(ImageError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// The image of this name.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; [`ImageError::Damaged`] when its files are not what was built.
    pub fn get(&self, name: &str) -> Result<Image, ImageError> {
        let link = self.name_path(name)?;
        let mut target = read_name(&link, name)?;
        loop {
            let found = read_image(&link, &target, name);
            if !matches!(found, Err(ImageError::Damaged { .. })) {
                return found;
            }
            // The name may have been taken away or given to another image since it was read.
            let now = read_name(&link, name)?;
            if now == target {
                return found;
            }
            target = now;
        }
    }

    /// Takes the name away; an image without a name is removed. VMs that started from it are not touched.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] when no image has the name.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let link = self.name_path(name)?;
        let _lock = self.lock_store()?;
        match std::fs::remove_file(&link) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ImageError::NotFound(name.to_owned()));
            }
            Err(error) => return Err(ImageError::io("remove", link)(error)),
        }
        sync_directory(&self.root.join(NAMES))?;
        self.remove_nameless()
    }

    /// Unpacks an image into an empty directory, keeping owners, modes, extended attributes and capabilities.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] when the content is not what was built; the target is then to be thrown away.
    pub fn import(
        &self,
        image: &Image,
        target_dir: &Path,
        progress: &dyn Fn(&str),
    ) -> Result<(), ImageError> {
        progress(&format!(
            "unpacking the image {} ({} MB)",
            image.name,
            image.size_bytes / 1_000_000
        ));
        archive::unpack(image, target_dir)
    }

    /// The image of this name; one that is damaged counts as missing, after saying so.
    fn usable(&self, name: &str, progress: &dyn Fn(&str)) -> Result<Option<Image>, ImageError> {
        match self.get(name) {
            Ok(image) => Ok(Some(image)),
            Err(ImageError::NotFound(_)) => Ok(None),
            Err(error @ ImageError::Damaged { .. }) => {
                progress(&format!("{error}; building it again"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn build_locked(
        &self,
        source: Source,
        name: &str,
        progress: &dyn Fn(&str),
    ) -> Result<Image, ImageError> {
        archive::require_root()?;
        let started = std::time::Instant::now();
        let image = self.stage_and_publish(source, name, |directory| {
            let content = directory.join(CONTENT);
            match source {
                Source::Debian => debian::build(directory, &content, progress),
                Source::Host => host::build(directory, &content, progress),
            }
        })?;
        progress(&format!(
            "the image {name} is ready: {} MB from {source} in {:.0} s",
            image.size_bytes / 1_000_000,
            started.elapsed().as_secs_f64()
        ));
        Ok(image)
    }

    /// Lets `produce` fill a directory with `root.tar`, then shows it under `name`. The lock of the name is held.
    fn stage_and_publish(
        &self,
        source: Source,
        name: &str,
        produce: impl FnOnce(&Path) -> Result<archive::Written, ImageError>,
    ) -> Result<Image, ImageError> {
        let building = self.root.join(BUILDING);
        self.sweep_builds_of(name)?;
        let staged = tempfile::Builder::new()
            .prefix(&format!("{name}@"))
            .tempdir_in(&building)
            .map_err(ImageError::io("make a directory in", &building))?;
        let written = produce(staged.path())?;
        let description = Description {
            digest: written.digest,
            source,
            size_bytes: written.size_bytes,
            created_unix: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        };
        self.publish(name, staged, &description)?;
        self.get(name)
    }

    fn publish(
        &self,
        name: &str,
        staged: tempfile::TempDir,
        description: &Description,
    ) -> Result<(), ImageError> {
        let complete = self.root.join(BUILDING).join(format!("{name}@complete"));
        std::fs::create_dir(&complete).map_err(ImageError::io("create", &complete))?;
        let content = complete.join(CONTENT);
        std::fs::rename(staged.path().join(CONTENT), &content)
            .map_err(ImageError::io("rename to", &content))?;
        let path = complete.join(DESCRIPTION);
        let text = serde_json::to_vec_pretty(description)
            .map_err(|error| ImageError::io("describe the image in", &path)(error.into()))?;
        archive::write_file(text.as_slice(), &path)?;
        sync_directory(&complete)?;
        set_readable(&complete)?;

        let _lock = self.lock_store()?;
        let folder = description.digest.replace(':', "-");
        let target = self.root.join(&folder);
        self.put_in_place(&complete, &target)?;
        sync_directory(&self.root)?;
        self.point(name, &folder)?;
        self.remove_nameless()
    }

    /// Renames a directory to its place; what was there is exchanged in one step, so that readers always find one.
    fn put_in_place(&self, complete: &Path, target: &Path) -> Result<(), ImageError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, complete, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => self.discard(complete),
            Err(rustix::io::Errno::NOENT) => {
                std::fs::rename(complete, target).map_err(ImageError::io("rename to", target))
            }
            Err(errno) => Err(ImageError::io("rename to", target)(errno.into())),
        }
    }

    /// Lets a name mean a directory, at once.
    fn point(&self, name: &str, folder: &str) -> Result<(), ImageError> {
        let names = self.root.join(NAMES);
        let fresh = self.root.join(BUILDING).join(format!("{name}@name"));
        std::os::unix::fs::symlink(Path::new("..").join(folder), &fresh)
            .map_err(ImageError::io("create", &fresh))?;
        let link = names.join(name);
        std::fs::rename(&fresh, &link).map_err(ImageError::io("rename to", &link))?;
        sync_directory(&names)
    }

    /// Removes images that no name means. The store's lock is held.
    fn remove_nameless(&self) -> Result<(), ImageError> {
        let names = self.root.join(NAMES);
        let mut named = Vec::new();
        for name in file_names(&names)? {
            if let Ok(target) = std::fs::read_link(names.join(&name)) {
                named.extend(target.file_name().map(std::ffi::OsStr::to_owned));
            }
        }
        for folder in file_names(&self.root)? {
            if folder.starts_with("sha256-") && !named.iter().any(|name| *name == *folder) {
                self.discard(&self.root.join(folder))?;
            }
        }
        Ok(())
    }

    /// Takes a directory out of sight, then removes it. One that is not there is fine.
    fn discard(&self, directory: &Path) -> Result<(), ImageError> {
        let building = self.root.join(BUILDING);
        let hidden = tempfile::Builder::new()
            .prefix(STORE_LOCK)
            .tempdir_in(&building)
            .map_err(ImageError::io("make a directory in", &building))?;
        match std::fs::rename(directory, hidden.path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(ImageError::io("remove", directory)(error))
            }
            _ => hidden.close().map_err(ImageError::io("remove", directory)),
        }
    }

    /// Removes what builds left whose process is gone.
    fn sweep(&self) -> Result<(), ImageError> {
        for leftover in file_names(&self.root.join(BUILDING))? {
            let owner = match leftover.split_once('@') {
                Some((name, _)) if is_name(name) => name,
                _ => STORE_LOCK,
            };
            if let Some(_lock) = FileLock::try_take(&self.lock_path(owner))? {
                remove_leftover(&self.root.join(BUILDING).join(leftover));
            }
        }
        Ok(())
    }

    fn sweep_builds_of(&self, name: &str) -> Result<(), ImageError> {
        for leftover in file_names(&self.root.join(BUILDING))? {
            if leftover
                .split_once('@')
                .is_some_and(|(owner, _)| owner == name)
            {
                remove_leftover(&self.root.join(BUILDING).join(leftover));
            }
        }
        Ok(())
    }

    fn lock_name(&self, name: &str, progress: &dyn Fn(&str)) -> Result<FileLock, ImageError> {
        self.name_path(name)?;
        FileLock::take(&self.lock_path(name), || {
            progress(&format!(
                "another process builds the image {name}; waiting for it"
            ));
        })
    }

    fn lock_store(&self) -> Result<FileLock, ImageError> {
        FileLock::take(&self.lock_path(STORE_LOCK), || {})
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.root.join(LOCKS).join(name)
    }

    fn name_path(&self, name: &str) -> Result<PathBuf, ImageError> {
        if is_name(name) {
            Ok(self.root.join(NAMES).join(name))
        } else {
            Err(ImageError::BadName(name.to_owned()))
        }
    }
}

/// The directory that a name means, relative to the directory of names.
fn read_name(link: &Path, name: &str) -> Result<PathBuf, ImageError> {
    std::fs::read_link(link).map_err(|error| match error.kind() {
        ErrorKind::NotFound => ImageError::NotFound(name.to_owned()),
        _ => ImageError::io("read", link)(error),
    })
}

/// The image in a directory, checked as far as its size.
fn read_image(link: &Path, target: &Path, name: &str) -> Result<Image, ImageError> {
    let damaged = |reason: String| ImageError::Damaged {
        name: name.to_owned(),
        reason,
    };
    let directory = link.parent().unwrap_or(Path::new("/")).join(target);
    let text = std::fs::read(directory.join(DESCRIPTION))
        .map_err(|error| damaged(format!("{DESCRIPTION}: {error}")))?;
    let description: Description = serde_json::from_slice(&text)
        .map_err(|error| damaged(format!("{DESCRIPTION}: {error}")))?;
    let path = directory.join(CONTENT);
    let length = std::fs::metadata(&path)
        .map_err(|error| damaged(format!("{CONTENT}: {error}")))?
        .len();
    if length != description.size_bytes {
        let built = description.size_bytes;
        return Err(damaged(format!(
            "{CONTENT} has {length} bytes, not {built}"
        )));
    }
    Ok(Image {
        name: name.to_owned(),
        digest: description.digest,
        source: description.source,
        size_bytes: description.size_bytes,
        created: SystemTime::UNIX_EPOCH + Duration::from_secs(description.created_unix),
        path,
    })
}

fn is_name(name: &str) -> bool {
    let letter_or_digit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= LONGEST_NAME
        && name.starts_with(letter_or_digit)
        && name
            .chars()
            .all(|c| letter_or_digit(c) || matches!(c, '.' | '_' | '-'))
}

fn file_names(directory: &Path) -> Result<Vec<String>, ImageError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(ImageError::io("list", directory))? {
        let entry = entry.map_err(ImageError::io("list", directory))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// A leftover that cannot be removed only takes room; the next opening tries again.
fn remove_leftover(path: &Path) {
    let removed = if path.is_symlink() {
        std::fs::remove_file(path)
    } else {
        std::fs::remove_dir_all(path)
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a leftover of an image build stays");
        }
        _ => {}
    }
}

fn sync_directory(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(ImageError::io("sync", path))
}

fn set_readable(directory: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
        .map_err(ImageError::io("set the mode of", directory))
}

/// The chain of an error's sources, as text after the error's own.
fn cause(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}
