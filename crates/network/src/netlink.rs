//! A thread that talks routing netlink with the kernel.
//!
//! The kernel works a netlink request off inside the `send` system call, under one lock for the whole host; deleting a
//! link holds that lock for tens of milliseconds. So no request is ever sent from a thread of the async runtime: each
//! [`Worker`] is one blocking task of its own that runs the jobs it is given, one after the other.

use futures::future::BoxFuture;
use rtnetlink::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

type Job = Box<dyn FnOnce(Handle) -> BoxFuture<'static, ()> + Send>;

/// Why a job was not run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The socket cannot be made.
    #[error("opening a netlink socket")]
    Open(#[source] std::io::Error),
    /// The worker has ended.
    #[error("the network is shutting down")]
    Stopped,
}

/// The sending end of a worker. The worker ends when all of them are dropped, or on `stop`, after the jobs it has.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Worker {
    /// Starts a worker; it opens its socket in the network namespace of the calling thread.
    pub(crate) async fn start(
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, WorkerError> {
        let (jobs, queue) = mpsc::unbounded_channel();
        let (opened, ready) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        tracker.spawn_blocking(move || runtime.block_on(work(queue, opened, stop)));
        ready
            .await
            .map_err(|_| WorkerError::Stopped)?
            .map_err(WorkerError::Open)?;
        Ok(Self { jobs })
    }

    /// Runs `job` on the worker and gives its result.
    pub(crate) async fn run<T, F, Fut>(&self, job: F) -> Result<T, WorkerError>
    where
        T: Send + 'static,
        F: FnOnce(Handle) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |handle| {
            Box::pin(async move {
                // The asker may have gone away; the job is done all the same.
                let _ = done.send(job(handle).await);
            })
        });
        self.jobs.send(job).map_err(|_| WorkerError::Stopped)?;
        result.await.map_err(|_| WorkerError::Stopped)
    }
}

async fn work(
    mut queue: mpsc::UnboundedReceiver<Job>,
    opened: oneshot::Sender<std::io::Result<()>>,
    stop: CancellationToken,
) {
    let (connection, handle, _) = match rtnetlink::new_connection() {
        Ok(parts) => parts,
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    let _ = opened.send(Ok(()));
    let jobs = async {
        loop {
            tokio::select! {
                biased;
                job = queue.recv() => match job {
                    Some(job) => job(handle.clone()).await,
                    None => break,
                },
                () = stop.cancelled() => break,
            }
        }
    };
    tokio::select! {
        () = connection => tracing::error!("the netlink connection has ended"),
        () = jobs => {}
    }
}
