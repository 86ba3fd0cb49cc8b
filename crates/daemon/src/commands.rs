//! The commands besides `serve`, one file each.

pub(crate) mod account;
pub(crate) mod check;
pub(crate) mod destroy;
pub(crate) mod doctor;
pub(crate) mod image;

use anyhow::Context;
use std::future::Future;

/// Runs a command's asynchronous work to its end.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the process cannot be set up")?
        .block_on(work)
}
