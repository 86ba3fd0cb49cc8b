//! `instavm pty`.

use crate::arguments::Endpoint;
use crate::connection::{Platform, online};
use crate::failure::Failure;
use clap::Args;
use instavm::{Client, Error, NewPty, PtyEvent, PtyInput, PtyOutput, Ptys};
use rustix::termios::{self, OptionalActions, Termios};
use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tokio::io::{AsyncReadExt, Stdin};
use tokio::signal::unix::{SignalKind, signal};

/// Keystrokes that are forwarded at once, in bytes.
const KEYS: usize = 4096;
/// How long the platform may take to accept the connection.
const PATIENCE: Duration = Duration::from_secs(15);
/// What tells a program on a terminal that nothing more is typed.
const END_OF_INPUT: &[u8] = b"\x04";

/// Open a terminal in a VM
#[derive(Args)]
pub(crate) struct Arguments {
    /// The VM
    vm_id: String,
    /// The program to run instead of a login shell
    shell: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// Runs until the remote program has ended; gives its exit status.
pub(crate) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let status = Cell::new(0);
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        status.set(terminal(&client, arguments).await?);
        Ok(())
    })?;
    // A program's exit status has eight bits.
    Ok(u8::try_from(status.get() & 0xff).unwrap_or(u8::MAX))
}

async fn terminal(client: &Client, arguments: &Arguments) -> Result<i32, Failure> {
    let ptys = client.pty_of_vm(&arguments.vm_id);
    let (cols, rows) = window();
    let mut wanted = NewPty::default().size(cols, rows);
    if let Some(shell) = &arguments.shell {
        wanted = wanted.shell(shell);
    }
    let pty = ptys.create(wanted).await.map_err(|error| {
        let why = Failure::from(error).message();
        Failure::said(format!("error creating PTY session: {why}"))
    })?;
    let ended = talk(&ptys, &pty.id).await;
    // It may be gone already, and what there was to say is said.
    let _ = ptys.kill(&pty.id).await;
    ended
}

async fn talk(ptys: &Ptys<'_>, id: &str) -> Result<i32, Failure> {
    let connecting = tokio::time::timeout(PATIENCE, ptys.connect(id)).await;
    let (input, output) = connecting
        .map_err(|_| {
            Failure::said(format!(
                "the terminal does not answer within {} s",
                PATIENCE.as_secs()
            ))
        })?
        .map_err(lost)?;
    let stdin = tokio::io::stdin();
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let raw = if interactive {
        Some(Raw::begin()?)
    } else {
        None
    };
    let ended = tokio::select! {
        ended = show(output) => ended,
        ended = forward(stdin, input, interactive) => ended,
    };
    if let Some(raw) = raw {
        drop(raw);
        println!();
    }
    ended
}

/// Writes what the program writes, until it ends.
async fn show(mut output: PtyOutput) -> Result<i32, Failure> {
    let mut stdout = std::io::stdout();
    loop {
        match output.next().await.map_err(lost)? {
            Some(PtyEvent::Output(bytes)) => {
                let written = stdout.write_all(&bytes).and_then(|()| stdout.flush());
                written.map_err(Failure::Output)?;
            }
            Some(PtyEvent::Exit(code)) => return Ok(code),
            Some(_) => {}
            None => return Ok(0),
        }
    }
}

/// Forwards what is typed and the size of the window. Ends on an error only: what the program still writes is waited for.
async fn forward(mut stdin: Stdin, mut input: PtyInput, interactive: bool) -> Result<i32, Failure> {
    let mut keys = vec![0; KEYS];
    let mut resized = signal(SignalKind::window_change())
        .map_err(|error| Failure::said(format!("cannot follow the window's size: {error}")))?;
    let mut open = true;
    loop {
        tokio::select! {
            read = stdin.read(&mut keys), if open => match read {
                Ok(0) => {
                    open = false;
                    input.send(END_OF_INPUT).await.map_err(lost)?;
                }
                Ok(length) => input.send(keys[..length].to_vec()).await.map_err(lost)?,
                Err(error) => return Err(Failure::said(format!("cannot read what is typed: {error}"))),
            },
            _ = resized.recv(), if interactive => {
                let (cols, rows) = window();
                input.resize(cols, rows).await.map_err(lost)?;
            }
        }
    }
}

fn lost(error: Error) -> Failure {
    let why = Failure::from(error).message();
    Failure::said(format!(
        "the connection to the terminal failed: {why}; is the VM running?"
    ))
}

/// Columns and rows of the window; 80 and 24 where there is none.
fn window() -> (u16, u16) {
    let size = termios::tcgetwinsize(std::io::stdout());
    let sides = size.map_or((0, 0), |size| (size.ws_col, size.ws_row));
    match sides {
        (cols @ 1..=1000, rows @ 1..=1000) => (cols, rows),
        _ => (80, 24),
    }
}

/// The terminal passes every key on; put back as it was when this is dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> Result<Raw, Failure> {
        let stdin = std::io::stdin();
        let failed = |error| Failure::said(format!("the terminal cannot be used: {error}"));
        let before = termios::tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing else to try.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}
