//! Terminals in VMs.

use crate::{NodeError, VmId};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::time::SystemTime;
use tokio::sync::mpsc;

/// A terminal to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PtyRequest {
    /// Unique among the VM's terminals.
    pub id: String,
    /// The program, looked for as a shell would, and its arguments.
    pub program: Vec<String>,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// A terminal as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PtyInfo {
    /// Its id.
    pub id: String,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// How its program ended: the exit status, or 128 + the signal; `None` while it runs.
    pub exit_code: Option<i32>,
    /// Somebody is attached.
    pub attached: bool,
    /// When it was opened.
    pub created_at: SystemTime,
}

/// What an attached caller says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PtyInput {
    /// What is typed.
    Bytes(Bytes),
    /// The terminal has this size now.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
}

/// What an attached caller hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PtyOutput {
    /// What the program wrote.
    Bytes(Bytes),
    /// The program has ended; nothing else follows.
    Exited {
        /// Its exit status, or 128 + the signal.
        exit_code: i32,
    },
}

/// An attached terminal. Dropping both halves detaches it.
pub struct PtyStream {
    /// What is typed. A send waits while the program does not read.
    pub input: mpsc::Sender<PtyInput>,
    /// What is written, beginning with what was kept from before. The program waits while this is not read. It ends
    /// without [`PtyOutput::Exited`] when another caller attached or the terminal was closed.
    pub output: BoxStream<'static, Result<PtyOutput, NodeError>>,
}

impl std::fmt::Debug for PtyStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PtyStream").finish_non_exhaustive()
    }
}

/// The part of a node that keeps terminals. They live in the VM, so they outlive a restart of the node.
#[async_trait]
pub trait Ptys: Send + Sync {
    /// Opens a terminal; its program runs when this returns.
    ///
    /// # Errors
    /// [`NodeError::Busy`] when the id is taken, [`NodeError::VmExhausted`] when the VM has too many.
    async fn open_pty(&self, vm: &VmId, request: PtyRequest) -> Result<(), NodeError>;

    /// The terminals of a VM, oldest first.
    async fn ptys(&self, vm: &VmId) -> Result<Vec<PtyInfo>, NodeError>;

    /// Attaches to a terminal; one who was attached is cut off. After a loss the terminal waits a minute for another
    /// one before its program gets a hangup.
    ///
    /// # Errors
    /// [`NodeError::NoSuchPty`].
    async fn attach_pty(&self, vm: &VmId, id: &str) -> Result<PtyStream, NodeError>;

    /// Changes the size of a terminal.
    ///
    /// # Errors
    /// [`NodeError::NoSuchPty`].
    async fn resize_pty(&self, vm: &VmId, id: &str, cols: u16, rows: u16) -> Result<(), NodeError>;

    /// Hangs a terminal up and forgets it; one that is not there is no error.
    async fn close_pty(&self, vm: &VmId, id: &str) -> Result<(), NodeError>;
}
