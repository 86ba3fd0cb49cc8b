//! What goes on beside requests and is waited for at shutdown.

use std::future::Future;
use std::pin::Pin;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// The tasks of a platform.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks(TaskTracker);

impl Tasks {
    /// Starts a task. It is boxed here, so that the runtime's machinery is compiled once for each kind of answer
    /// instead of once for each task.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let work: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(work);
        self.0.spawn(work)
    }

    /// No task is expected any more, so [`Tasks::wait`] may come to its end.
    pub(crate) fn close(&self) {
        self.0.close();
    }

    /// Waits until every task has ended; after [`Tasks::close`] only.
    pub(crate) async fn wait(&self) {
        self.0.wait().await;
    }
}
