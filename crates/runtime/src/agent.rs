//! Talking to the agent inside a VM: one connection an operation.

use instavm_agent_api::frame::{CHUNK, Decoder, FrameError, encode};
use instavm_agent_api::{
    Control, Event, Failure, FailureKind, GENERATION, Hello, Request, TOKEN_BYTES, Welcome,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The name of the agent's socket in its machine's folder.
pub const SOCKET: &str = "agent.sock";

/// Why an operation with the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The connection could not be made, or broke off: the VM is ending, or something in it killed what served us.
    #[error("the connection to the VM's agent broke off")]
    Gone(#[source] io::Error),
    /// The agent sent something that this protocol does not allow.
    #[error("the VM's agent broke the protocol: {0}")]
    Protocol(String),
    /// The agent refused or failed.
    #[error("{}", .0.message)]
    Failed(Failure),
}

impl AgentError {
    fn frame(error: FrameError) -> Self {
        AgentError::Protocol(error.to_string())
    }

    /// The class of the agent's failure, when it was one.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            AgentError::Failed(failure) => Some(failure.kind),
            _ => None,
        }
    }
}

/// The way to one VM's agent.
#[derive(Clone)]
pub struct AgentDoor {
    /// The machine's folder: connections go through its descriptor, since a socket's path has 107 bytes at most.
    folder: Arc<OwnedFd>,
    token: [u8; TOKEN_BYTES],
}

impl std::fmt::Debug for AgentDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentDoor").finish_non_exhaustive()
    }
}

impl AgentDoor {
    /// The agent whose socket lies in `folder`.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn new(folder: &Path, token: [u8; TOKEN_BYTES]) -> io::Result<Self> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        Ok(Self {
            folder: Arc::new(folder),
            token,
        })
    }

    /// Starts an operation. The agent's welcome is checked when its first event is read.
    ///
    /// # Errors
    /// [`AgentError::Gone`] when nobody listens.
    pub async fn open(&self, request: &Request) -> Result<Conversation, AgentError> {
        let path = format!("/proc/self/fd/{}/{SOCKET}", self.folder.as_raw_fd());
        let stream = UnixStream::connect(path).await.map_err(AgentError::Gone)?;
        let (read, write) = stream.into_split();
        let mut sender = Sender { write };
        let hello = Hello {
            generation: GENERATION,
            token: self.token,
        };
        let mut frames = encode(&hello).map_err(AgentError::frame)?;
        frames.extend_from_slice(&encode(request).map_err(AgentError::frame)?);
        sender.write_all(&frames).await?;
        let events = Events {
            read,
            decoder: Decoder::default(),
            welcomed: false,
        };
        Ok(Conversation { sender, events })
    }

    /// An operation that is answered by [`Event::Done`] alone.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn call(&self, request: &Request) -> Result<(), AgentError> {
        match self.open(request).await?.events.next().await? {
            Event::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

/// The error for an event that does not belong here.
pub fn unexpected(event: &Event) -> AgentError {
    let name = match event {
        Event::Done => "Done",
        Event::Failed(failure) => return AgentError::Failed(failure.clone()),
        Event::Stdout(_) => "Stdout",
        Event::Stderr(_) => "Stderr",
        Event::Finished(_) => "Finished",
        Event::File { .. } => "File",
        Event::Data(_) => "Data",
        Event::Written { .. } => "Written",
        Event::Exited { .. } => "Exited",
        Event::Ptys(_) => "Ptys",
    };
    AgentError::Protocol(format!("{name} came out of turn"))
}

/// An operation under way. Dropping it cancels the operation.
#[derive(Debug)]
pub struct Conversation {
    /// What the node says.
    pub sender: Sender,
    /// What the agent says.
    pub events: Events,
}

/// The node's side of an operation.
#[derive(Debug)]
pub struct Sender {
    write: OwnedWriteHalf,
}

impl Sender {
    /// Sends one frame; waits while the agent does not read.
    ///
    /// # Errors
    /// [`AgentError::Gone`].
    pub async fn send(&mut self, control: &Control) -> Result<(), AgentError> {
        self.write_all(&encode(control).map_err(AgentError::frame)?)
            .await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        self.write.write_all(bytes).await.map_err(AgentError::Gone)
    }
}

/// The agent's side of an operation.
#[derive(Debug)]
pub struct Events {
    read: OwnedReadHalf,
    decoder: Decoder,
    welcomed: bool,
}

impl Events {
    /// The next event. A failure of the agent is an error here. Cancel-safe: what has been read is kept.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn next(&mut self) -> Result<Event, AgentError> {
        if !self.welcomed {
            let Welcome { generation } = self.message().await?;
            if generation == 0 || generation > GENERATION {
                return Err(AgentError::Protocol(format!(
                    "unknown generation {generation}"
                )));
            }
            self.welcomed = true;
        }
        match self.message().await? {
            Event::Failed(failure) => Err(AgentError::Failed(failure)),
            event => Ok(event),
        }
    }

    async fn message<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, AgentError> {
        loop {
            if let Some(message) = self.decoder.pop().map_err(AgentError::frame)? {
                return Ok(message);
            }
            let mut bytes = Vec::with_capacity(CHUNK);
            let count = self
                .read
                .read_buf(&mut bytes)
                .await
                .map_err(AgentError::Gone)?;
            if count == 0 {
                return Err(AgentError::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            self.decoder.push(&bytes);
        }
    }
}
