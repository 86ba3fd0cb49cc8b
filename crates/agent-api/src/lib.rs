//! The protocol between a node and the agent inside a VM.
//!
//! Transport: one Unix socket connection (or one virtio-serial/vsock stream) for **each operation**. The node
//! sends [`Hello`] and one [`Request`] without waiting in between; the agent answers [`Welcome`] and then the
//! [`Event`]s of the operation until its last one ([`Event::is_last`]); then it closes. While an operation runs the
//! node may send [`Control`] frames. Closing the connection early cancels the operation, except a detached
//! execution. A connection for each operation gives every stream its own flow control: the socket's.
//!
//! Framing: a little-endian `u32` length, then that many bytes of postcard. See [`frame`].
//!
//! Versioning: [`GENERATION`] is one number. Enum variants and struct fields are only ever added at the end, and every
//! addition raises it; the agent embedded in a daemon may be older than the daemon that adopts its VM, so the node
//! never sends what the generation in [`Welcome`] does not know.
#![forbid(unsafe_code)]

pub mod frame;
pub mod launch;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The newest generation of this protocol that this crate speaks.
pub const GENERATION: u32 = 2;

/// The bytes of the secret that tells the agent that its peer is the node.
pub const TOKEN_BYTES: usize = 32;

/// The first frame of every connection, node to agent.
#[derive(Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The generation that the node speaks.
    pub generation: u32,
    /// The VM's secret, handed to the agent at launch. A wrong one ends the connection without an answer.
    pub token: [u8; TOKEN_BYTES],
}

/// The agent's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The generation that the agent speaks; the lower of the two is in force.
    pub generation: u32,
}

/// What the node asks for: one a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Are you there? Answered by [`Event::Done`].
    Ping,
    /// Takes on an identity: sent once to a pool VM when it is handed out, later to clones and forks. Answered by
    /// [`Event::Done`].
    Rejoin(Rejoin),
    /// Starts the Python interpreter if none runs. Answered by [`Event::Done`] when it is ready to execute.
    WarmInterpreter,
    /// Runs code. Answered by [`Event::Stdout`] and [`Event::Stderr`] as they come and one [`Event::Finished`];
    /// a detached one by [`Event::Done`] as soon as it is accepted.
    Execute(Execute),
    /// Follows a detached execution to its end: the whole output so far, what comes, and [`Event::Finished`].
    /// May be repeated (after a daemon restart, say) until [`Request::Forget`].
    Attach {
        /// The id given in [`Execute::id`].
        id: String,
    },
    /// Drops what the agent keeps of a finished detached execution. Answered by [`Event::Done`], also when the id is
    /// unknown.
    Forget {
        /// The id given in [`Execute::id`].
        id: String,
    },
    /// Reads a regular file. Answered by [`Event::File`], [`Event::Data`] … and [`Event::Done`].
    ReadFile {
        /// Absolute, or relative to [`WORKDIR`].
        path: String,
    },
    /// Writes a regular file, creating parent directories. The node sends [`Control::Data`] … [`Control::End`];
    /// the agent answers [`Event::Written`]. The content appears under `path` at once (rename), and a connection that
    /// ends before [`Control::End`] leaves the old content.
    WriteFile {
        /// Absolute, or relative to [`WORKDIR`].
        path: String,
        /// Permission bits of a new file; an existing file keeps its own.
        mode: u32,
    },
    /// Opens a terminal with a program in it. Answered by [`Event::Done`]; what the program writes is kept until
    /// somebody attaches.
    OpenPty(OpenPty),
    /// Gives the terminal to this connection; one that had it before is closed. The agent sends [`Event::Stdout`] …
    /// and one [`Event::Exited`]; the node sends [`Control::Data`] and [`Control::Resize`]. A terminal whose connection
    /// is lost waits a minute for another one, then its program gets a hangup.
    AttachPty {
        /// The id given in [`OpenPty::id`].
        id: String,
    },
    /// Changes the size of a terminal. Answered by [`Event::Done`].
    ResizePty {
        /// The id given in [`OpenPty::id`].
        id: String,
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// Hangs a terminal up and forgets it. Answered by [`Event::Done`], also when the id is unknown.
    ClosePty {
        /// The id given in [`OpenPty::id`].
        id: String,
    },
    /// Lists the terminals. Answered by [`Event::Ptys`].
    Ptys,
}

/// Where relative paths and executions start, unless [`Rejoin::workdir`] says otherwise.
pub const WORKDIR: &str = "/app";

/// The identity that a VM takes on when it is handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejoin {
    /// The host name to take.
    pub hostname: String,
    /// Addresses to configure on `eth0`, replacing those it has; empty keeps them.
    pub addresses: Vec<launch::Address>,
    /// The node's wall clock in microseconds since the Unix epoch. A VM with a clock of its own sets it; in a VM that
    /// shares the host's clock it is not needed and is ignored.
    pub clock_micros: Option<i64>,
    /// Bytes to mix into the VM's random pool; empty for none.
    pub entropy: Vec<u8>,
    /// Environment of every execution from now on, the running interpreter included.
    pub env: BTreeMap<String, String>,
    /// Further authorities (PEM) to add to every trust store of the VM.
    pub trust: Vec<String>,
    /// Where executions and relative paths start from now on, made where it is missing; `None` keeps what is, at first
    /// [`WORKDIR`]. Since generation 2.
    pub workdir: Option<String>,
}

/// The language of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Language {
    /// The session's Python interpreter.
    Python,
    /// A new bash process.
    Bash,
}

/// A terminal to open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenPty {
    /// Unique among the VM's terminals.
    pub id: String,
    /// The program, looked for as a shell would, and its arguments.
    pub program: Vec<String>,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// Additions to the session's environment.
    pub env: BTreeMap<String, String>,
}

/// A terminal as [`Request::Ptys`] shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtyState {
    /// Its id.
    pub id: String,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// How its program ended; `None` while it runs.
    pub exit_code: Option<i32>,
    /// A connection has it.
    pub attached: bool,
    /// When it was opened, in microseconds since the Unix epoch by the VM's clock.
    pub created_micros: i64,
}

/// One run of code.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Execute {
    /// Unique within the VM.
    pub id: String,
    /// `None`: Python, unless the text is no Python and starts with a program of the VM.
    pub language: Option<Language>,
    /// The source text.
    pub code: String,
    /// Additions to the environment for a shell; Python executions see the session's environment only.
    pub env: BTreeMap<String, String>,
    /// Runs on when the connection ends; its output is kept until [`Request::Forget`].
    pub detached: bool,
}

/// Frames that the node may send while an operation runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Control {
    /// Interrupts the execution: SIGINT to Python, SIGINT to the shell's process group; one that has not started yet
    /// finishes at once with `interrupted`.
    Interrupt,
    /// Ends the execution for certain: SIGKILL to what it started. A killed interpreter is replaced and
    /// [`Finished::state_lost`] says so.
    Kill,
    /// Content of a file that is being written, or what is typed on a terminal (up to 64 KiB a frame).
    Data(#[serde(with = "frame::bytes")] Vec<u8>),
    /// The end of that content.
    End,
    /// The size of the terminal that this connection has.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
}

/// Frames that the agent sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The request is done; nothing else follows.
    Done,
    /// The request failed; nothing else follows.
    Failed(Failure),
    /// Bytes of standard output.
    Stdout(#[serde(with = "frame::bytes")] Vec<u8>),
    /// Bytes of standard error.
    Stderr(#[serde(with = "frame::bytes")] Vec<u8>),
    /// The execution has ended; nothing else follows.
    Finished(Finished),
    /// The file that is about to come.
    File {
        /// Its size in bytes when it was opened; exactly so many follow, or the operation fails.
        size: u64,
        /// Its permission bits.
        mode: u32,
    },
    /// Content of a file.
    Data(#[serde(with = "frame::bytes")] Vec<u8>),
    /// A file has been written; nothing else follows.
    Written {
        /// Its size in bytes.
        size: u64,
    },
    /// The program of a terminal has ended; nothing else follows.
    Exited {
        /// Its exit status, or 128 + the signal that ended it.
        exit_code: i32,
    },
    /// The terminals; nothing else follows.
    Ptys(Vec<PtyState>),
}

impl std::fmt::Debug for Hello {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl Event {
    /// Does the operation end with this event?
    pub fn is_last(&self) -> bool {
        matches!(
            self,
            Event::Done
                | Event::Failed(_)
                | Event::Finished(_)
                | Event::Written { .. }
                | Event::Exited { .. }
                | Event::Ptys(_)
        )
    }
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// What ran it.
    pub language: Language,
    /// Exit status of the shell, or of Python: 0, 1 after an uncaught exception, the argument of `sys.exit`.
    /// 128 + the number when a signal ended it.
    pub exit_code: i32,
    /// From start to end, without the time in the queue, in microseconds.
    pub wall_micros: u64,
    /// Processor time of the execution and the children it waited for, in microseconds.
    pub cpu_micros: u64,
    /// [`Control::Interrupt`] or [`Control::Kill`] came before the end.
    pub interrupted: bool,
    /// Why the interpreter's variables are gone, when they are: it was killed or ended itself.
    pub state_lost: Option<String>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class of the failure.
    pub kind: FailureKind,
    /// One line for a person. From inside the VM: untrusted text.
    pub message: String,
}

/// Classes of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such file, directory or execution.
    NotFound,
    /// The path names something that the operation cannot work on (a directory, a device, a path through a file).
    Unsuitable,
    /// The VM's disk is full or its quota reached.
    NoSpace,
    /// The VM may not do this (read-only file system, permissions).
    Denied,
    /// The VM ran out of something: processes, memory, open files.
    Exhausted,
    /// Anything else.
    Internal,
    /// There is one already.
    Exists,
}
