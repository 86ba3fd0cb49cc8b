//! `instavmd check`: do rows, disks and kernel agree?

use crate::admin::AdminClient;
use crate::commands::block_on;
use crate::config::Config;
use crate::lock::{self, DataDirLock, LockError};
use crate::{output, wiring};
use anyhow::{Context, bail};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a running daemon may take to settle.
const SETTLE: Duration = Duration::from_secs(30);
/// How long to wait for a daemon that is just starting or ending.
const TURN: Duration = Duration::from_secs(30);
const TURN_STEP: Duration = Duration::from_millis(100);

/// Prints one line a mismatch; fails when there is one.
pub(crate) fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let dir = &config.data_dir;
    if !dir.join(lock::FILE_NAME).exists() {
        bail!("{} holds no instance (--data-dir)", dir.display());
    }
    let mismatches = block_on(mismatches(config))?;
    for mismatch in &mismatches {
        output::line(mismatch)?;
    }
    Ok(if mismatches.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Asks the daemon; compares by itself when none runs, holding the directory so that none starts meanwhile.
async fn mismatches(config: &Config) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + TURN;
    loop {
        if let Some(mut daemon) = AdminClient::connect(&config.data_dir).await? {
            return Ok(daemon.check(SETTLE).await?);
        }
        match DataDirLock::take(&config.data_dir, "check") {
            Ok(_held) => {
                return wiring::check_offline(config)
                    .await
                    .map_err(anyhow::Error::from_boxed)
                    .context("the instance cannot be checked");
            }
            Err(LockError::Held { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(TURN_STEP).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
