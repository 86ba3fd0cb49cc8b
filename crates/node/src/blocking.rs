//! Work that blocks (the file system's transactions, a freeze, mounts), beside the threads that serve requests.

use instavm_node_api::NodeError;
use instavm_runtime::disk::DiskError;

/// Runs what blocks; returns when it is done.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(internal(operation, panic)))
}

/// The node's error for what should have worked.
pub(crate) fn internal(
    operation: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> NodeError {
    NodeError::Internal {
        operation,
        source: Box::new(source),
    }
}

/// The node's error for a disk operation that failed.
pub(crate) fn disk_error(operation: &'static str) -> impl Fn(DiskError) -> NodeError {
    move |error| match error {
        DiskError::Full { .. } => NodeError::AtCapacity {
            reason: error.to_string(),
        },
        DiskError::Missing { noun, .. } | DiskError::Name { noun, .. } => match noun {
            "snapshot" => NodeError::NoSuchSnapshot,
            "volume" | "checkpoint" => NodeError::NoSuchVolume,
            _ => NodeError::VmEnded,
        },
        DiskError::Exists { .. } | DiskError::BelowUse { .. } => NodeError::Busy {
            reason: error.to_string(),
        },
        error => internal(operation, error),
    }
}
