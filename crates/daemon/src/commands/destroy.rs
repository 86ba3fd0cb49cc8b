//! `instavmd destroy`: nothing of an instance is left.
//!
//! The lock file is the mark of an instance and goes last, so that a destroy that was cut off can be repeated.

use crate::cli::DestroyArgs;
use crate::commands::block_on;
use crate::config::{Config, Overrides};
use crate::lock::{self, DataDirLock, LockError};
use crate::process::Other;
use crate::{output, wiring};
use anyhow::{Context, bail};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long the daemon may take to end by itself, and how long to be gone once it is killed.
const GRACE: Duration = Duration::from_secs(15);
/// Between two looks at whether a killed daemon's lock is free.
const ATTEMPTS: usize = 3;

/// Ends the instance's VMs and removes every kernel object and the data.
pub(crate) fn run(args: DestroyArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides {
        config: args.config,
        data_dir: Some(args.data_dir),
    };
    let config = crate::load(&overrides)?;
    let dir = config.data_dir.as_path();
    if !is_instance(&config)? {
        output::note(&format!("{}: nothing there", dir.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let held = take_over(dir, args.force)?;
    block_on(async {
        wiring::destroy(&config)
            .await
            .map_err(anyhow::Error::from_boxed)
            .context("not everything could be removed; the data stays so that this can be repeated")
    })?;
    remove_data(dir).with_context(|| format!("the data in {} cannot be removed", dir.display()))?;
    drop(held);
    Ok(ExitCode::SUCCESS)
}

/// Whether the directory is an instance's; an error when it is something else that must not be touched.
fn is_instance(config: &Config) -> anyhow::Result<bool> {
    let dir = config.data_dir.as_path();
    // One that was never served has no lock: it may have accounts nevertheless.
    if dir.join(lock::FILE_NAME).is_file() || wiring::has_records(config) {
        return Ok(true);
    }
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(false),
            Some(_) => bail!(
                "{} is not empty and no instance's: nothing is removed",
                dir.display()
            ),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => {
            Err(error).with_context(|| format!("{} cannot be looked into", dir.display()))
        }
    }
}

/// Takes the directory, after its daemon was ended when that is wanted.
fn take_over(dir: &Path, force: bool) -> anyhow::Result<DataDirLock> {
    for _ in 0..ATTEMPTS {
        let holder = match DataDirLock::take(dir, "destroy") {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { holder, .. }) if force => holder,
            Err(error @ LockError::Held { .. }) => {
                return Err(anyhow::Error::from(error)
                    .context("the instance is not destroyed; stop it first, or give --force"));
            }
            Err(error) => return Err(error.into()),
        };
        let pid = holder
            .pid
            .with_context(|| format!("{} is in use by an unknown process", dir.display()))?;
        if let Some(process) = Other::open(pid)? {
            // The holder may have ended, and its number be another's, before we took hold of it.
            if still_held_by(dir, pid)? {
                if !has_open(pid, &dir.join(lock::FILE_NAME)) {
                    bail!("{holder} runs in another process namespace: stop it there");
                }
                process
                    .end(GRACE)
                    .with_context(|| format!("{holder} cannot be ended"))?;
            }
        }
    }
    bail!(
        "{} is taken again and again by further processes",
        dir.display()
    )
}

fn still_held_by(dir: &Path, pid: u32) -> anyhow::Result<bool> {
    match DataDirLock::take(dir, "destroy") {
        Ok(_) => Ok(false),
        Err(LockError::Held { holder, .. }) => Ok(holder.pid == Some(pid)),
        Err(error) => Err(error.into()),
    }
}

/// Whether a process of this number, in our numbering, has the file open.
fn has_open(pid: u32, file: &Path) -> bool {
    let Ok(wanted) = fs::metadata(file) else {
        return false;
    };
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .filter_map(|descriptor| fs::metadata(descriptor.path()).ok())
        .any(|open| (open.dev(), open.ino()) == (wanted.dev(), wanted.ino()))
}

/// Removes what is in the directory, the mark last, then the directory itself unless it is a mount point.
fn remove_data(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == lock::FILE_NAME {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_file(dir.join(lock::FILE_NAME))?;
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::ResourceBusy => Err(error),
        _ => Ok(()),
    }
}
