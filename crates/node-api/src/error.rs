//! Why a node refused or failed.

/// Why a node refused or failed. The text is for the user who asked; the source, for the operator's log only.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No such VM lives on this node.
    #[error("the VM does not exist or has ended")]
    NoSuchVm,
    /// The VM ended while the call was under way.
    #[error("the VM ended while this was under way")]
    VmEnded,
    /// The VM does not know this execution.
    #[error("the VM does not know this execution")]
    NoSuchExecution,
    /// The node has no such snapshot.
    #[error("the snapshot does not exist")]
    NoSuchSnapshot,
    /// The node has no such volume, or the volume no such checkpoint.
    #[error("the volume or checkpoint does not exist")]
    NoSuchVolume,
    /// The VM has no such terminal.
    #[error("there is no terminal with this id")]
    NoSuchPty,
    /// What is there now does not allow it: in use, or there already.
    #[error("{reason}")]
    Busy {
        /// Who or what is in the way, and what to do.
        reason: String,
    },
    /// The build of a snapshot failed for a reason that lies in what was asked for.
    #[error("{step}: {message}")]
    Build {
        /// The step, as in [`crate::BuildProgress::step`].
        step: &'static str,
        /// Why; untrusted text.
        message: String,
    },
    /// There is no room for a further VM.
    #[error("{reason}")]
    AtCapacity {
        /// What is exhausted, and what to do.
        reason: String,
    },
    /// A file operation failed for a reason that lies in the VM.
    #[error("{message}")]
    File {
        /// The class of the failure.
        kind: FileErrorKind,
        /// One line for the user.
        message: String,
    },
    /// The VM has run out of something (processes, memory, open files) and cannot do this now.
    #[error("{message}")]
    VmExhausted {
        /// One line for the user.
        message: String,
    },
    /// A connection could not be made, or a port not be listened on, for a reason that lies in the VM or beyond it.
    #[error("{message}")]
    Connection {
        /// The class of the failure: refused, timed out, unreachable, in use …
        kind: std::io::ErrorKind,
        /// One line for the user.
        message: String,
    },
    /// The caller's stream broke off.
    #[error("the upload broke off")]
    CallerGone,
    /// The caller's stream was refused while it was read (too long, malformed).
    #[error("{0}")]
    Caller(#[source] std::io::Error),
    /// Something that should work on this host did not.
    #[error("{operation} failed")]
    Internal {
        /// What was tried.
        operation: &'static str,
        /// Why it failed; not for users.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Classes of failed file operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileErrorKind {
    /// No such file or directory.
    NotFound,
    /// A directory, a device, or a path through a file.
    Unsuitable,
    /// The VM's disk is full.
    NoSpace,
    /// Read-only, or not permitted.
    Denied,
    /// It is there already.
    Exists,
}
