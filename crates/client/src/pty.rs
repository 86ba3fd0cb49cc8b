//! Terminals in VMs.

use crate::call::{Call, Method, path_segment};
use crate::client::Client;
use crate::error::{Error, Family, NetworkCause, Result};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use instavm_api::pty::{CreatePty, Pty, PtyDeleted, Ptys as PtyList, ResizePty};
use serde::Deserialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::Error as SocketError;

const CONNECTING: &str = "connect to the PTY";
const TALKING: &str = "talk to the PTY";

/// A terminal to open. Everything is optional.
///
/// ```
/// let pty = instavm::NewPty::default().size(100, 30).shell("/bin/sh");
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct NewPty(CreatePty);

impl NewPty {
    /// Columns and rows, 1 to 1000 each; 80 and 24 unless given.
    pub fn size(mut self, cols: u16, rows: u16) -> NewPty {
        (self.0.cols, self.0.rows) = (Some(cols.into()), Some(rows.into()));
        self
    }

    /// The program to run, as a shell would be told, instead of an interactive login shell.
    pub fn shell(mut self, shell: impl Into<String>) -> NewPty {
        self.0.shell = Some(shell.into());
        self
    }

    /// The terminal's id: 1 to 64 letters, digits, `-` and `_`.
    pub fn id(mut self, id: impl Into<String>) -> NewPty {
        self.0.id = Some(id.into());
        self
    }
}

/// The terminals of a VM. See [`Client::pty`] and [`Client::pty_of_vm`].
#[derive(Clone, Debug)]
pub struct Ptys<'a> {
    client: &'a Client,
    /// `/v1/sessions/…/pty` or `/v1/vms/…/pty`.
    base: Result<String, String>,
}

impl Client {
    /// The terminals in the VM of a session.
    ///
    /// ```no_run
    /// # async fn example(client: &instavm::Client, session_id: &str) -> instavm::Result<()> {
    /// use instavm::{NewPty, PtyEvent};
    ///
    /// let ptys = client.pty(session_id);
    /// let pty = ptys.create(NewPty::default()).await?;
    /// let (mut input, mut output) = ptys.connect(&pty.id).await?;
    /// input.send("echo hello; exit 3\n").await?;
    /// while let Some(event) = output.next().await? {
    ///     match event {
    ///         PtyEvent::Output(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
    ///         PtyEvent::Exit(code) => assert_eq!(code, 3),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn pty(&self, session_id: &str) -> Ptys<'_> {
        Ptys::of(self, "sessions", session_id)
    }

    /// The terminals in a VM. They are the same as those of its session.
    pub fn pty_of_vm(&self, vm_id: &str) -> Ptys<'_> {
        Ptys::of(self, "vms", vm_id)
    }
}

impl<'a> Ptys<'a> {
    fn of(client: &'a Client, place: &str, id: &str) -> Ptys<'a> {
        let base = path_segment(id).map(|id| format!("/v1/{place}/{id}/pty"));
        Ptys {
            client,
            base: base.map_err(|_| id.to_owned()),
        }
    }

    fn path(&self, rest: &str) -> Result<String> {
        match &self.base {
            Ok(base) => Ok(format!("{base}{rest}")),
            // Says again what is wrong with it.
            Err(id) => path_segment(id),
        }
    }

    fn one(&self, id: &str, rest: &str) -> Result<String> {
        self.path(&format!("/sessions/{}{rest}", path_segment(id)?))
    }

    /// Opens a terminal. What its program writes is kept until somebody connects.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn create(&self, pty: NewPty) -> Result<Pty> {
        let call = call(Method::Post, self.path("/sessions")?, "open a PTY");
        self.client.fetch(call.json(&pty.0)?).await
    }

    /// The terminals, oldest first.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list(&self) -> Result<Vec<Pty>> {
        let call = call(Method::Get, self.path("/sessions")?, "list the PTYs");
        Ok(self.client.fetch::<PtyList>(call).await?.sessions)
    }

    /// One terminal.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get(&self, id: &str) -> Result<Pty> {
        let call = call(Method::Get, self.one(id, "")?, "look at a PTY");
        self.client.fetch(call).await
    }

    /// Changes the size of a terminal.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn resize(&self, id: &str, cols: u16, rows: u16) -> Result<Pty> {
        let size = ResizePty {
            cols: Some(cols.into()),
            rows: Some(rows.into()),
        };
        let call = call(Method::Post, self.one(id, "/resize")?, "resize a PTY");
        self.client.fetch(call.json(&size)?).await
    }

    /// Hangs a terminal up. One that has ended already is no error.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn kill(&self, id: &str) -> Result<PtyDeleted> {
        let call = call(Method::Delete, self.one(id, "")?, "close a PTY");
        self.client.fetch(call).await
    }

    /// The address for a WebSocket client of your own. It holds the API key.
    ///
    /// # Errors
    /// When there is no key, or an id that cannot be in a path.
    pub fn ws_url(&self, id: &str) -> Result<String> {
        let path = self.path(&format!("/{}/connect", path_segment(id)?))?;
        self.client.socket_url(&path)
    }

    /// Connects to a terminal; another connection to it is closed.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn connect(&self, id: &str) -> Result<(PtyInput, PtyOutput)> {
        let path = self.path(&format!("/{}/connect", path_segment(id)?))?;
        let socket = self
            .client
            .socket(call(Method::Get, path, CONNECTING))
            .await?;
        let (input, output) = socket.split();
        Ok((PtyInput(input), PtyOutput(output)))
    }
}

fn call(method: Method, path: String, operation: &'static str) -> Call {
    Call::new(method, path).named(operation, Family::Api)
}

/// What a connection carries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PtyEvent {
    /// What the program wrote.
    Output(Bytes),
    /// The program has ended: its exit status, or 128 + the signal.
    Exit(i32),
}

/// The text frames that the platform sends; others are ignored.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Said {
    Exit {
        #[serde(default)]
        exit_code: i32,
    },
}

type Socket = WebSocketStream<reqwest::Upgraded>;

/// The keyboard of a terminal.
#[derive(Debug)]
pub struct PtyInput(SplitSink<Socket, Message>);

impl PtyInput {
    /// Types.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        self.0
            .send(Message::Binary(bytes.into()))
            .await
            .map_err(broken)
    }

    /// Says that the window has another size.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn resize(&mut self, cols: u16, rows: u16) -> Result<()> {
        let text = serde_json::json!({"type": "resize", "cols": cols, "rows": rows});
        self.0
            .send(Message::text(text.to_string()))
            .await
            .map_err(broken)
    }
}

/// The screen of a terminal.
#[derive(Debug)]
pub struct PtyOutput(SplitStream<Socket>);

impl PtyOutput {
    /// What comes next; `None` when the connection is closed.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Option<PtyEvent>> {
        while let Some(message) = self.0.next().await {
            match message {
                Ok(Message::Binary(bytes)) => return Ok(Some(PtyEvent::Output(bytes))),
                Ok(Message::Text(text)) => {
                    if let Ok(Said::Exit { exit_code }) = serde_json::from_str(&text) {
                        return Ok(Some(PtyEvent::Exit(exit_code)));
                    }
                }
                Ok(Message::Close(_)) | Err(SocketError::ConnectionClosed) => return Ok(None),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(None)
    }
}

fn broken(error: SocketError) -> Error {
    Error::Network {
        operation: TALKING,
        cause: NetworkCause::Connection(Box::new(error)),
    }
}
