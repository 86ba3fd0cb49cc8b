//! The thread that drives the asynchronous client for callers that wait.

use crate::error::{Error, Result};
use futures::future::BoxFuture;
use std::future::Future;
use std::sync::{Arc, mpsc};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

type Job = BoxFuture<'static, ()>;

/// A runtime on a thread of its own, so that callers may wait wherever they are, in asynchronous code too. It ends with
/// its last handle.
#[derive(Clone, Debug)]
pub(crate) struct Worker(Arc<UnboundedSender<Job>>);

fn unavailable(operation: &'static str, source: std::io::Error) -> Error {
    Error::File {
        operation,
        path: None,
        source,
    }
}

impl Worker {
    pub(crate) fn start() -> Result<Worker> {
        const OPERATION: &str = "start the client's thread";
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| unavailable(OPERATION, source))?;
        let (sender, mut jobs) = unbounded_channel::<Job>();
        std::thread::Builder::new()
            .name("instavm".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    while let Some(job) = jobs.recv().await {
                        tokio::spawn(job);
                    }
                });
            })
            .map_err(|source| unavailable(OPERATION, source))?;
        Ok(Worker(Arc::new(sender)))
    }

    /// Waits for a result.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let job = Box::pin(async move {
            // The receiver waits below.
            let _ = sender.send(work.await);
        });
        let gone = || {
            unavailable(
                "wait for the client's thread",
                std::io::Error::other("it has ended"),
            )
        };
        self.0.send(job).map_err(|_| gone())?;
        receiver.recv().map_err(|_| gone())?
    }
}
