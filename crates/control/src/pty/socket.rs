//! One WebSocket on one terminal.
//!
//! Binary frames are bytes of the terminal, both ways. Text frames are JSON: `{"type":"resize","cols":N,"rows":N}` from the
//! client, `{"type":"exit","exit_code":N}` from here, right before the close.

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use instavm_node_api::{NodeError, PtyInput, PtyOutput, PtyStream};
use serde::Deserialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The longest message of a client, in bytes.
pub(super) const MESSAGE_LIMIT: usize = 1 << 20;
/// The longest frame to a client: some libraries take no more than 1 MiB.
const FRAME: usize = 256 << 10;
/// Between two pings. A client that has not been heard of in between is gone.
const PING: Duration = Duration::from_secs(30);
/// How long a client may take nothing.
const STALL: Duration = Duration::from_secs(120);
/// Another client has the terminal now, or it was closed.
const TAKEN: u16 = 4409;
/// What everything in a VM that is ended gets: 128 + SIGKILL.
const KILLED: i32 = 137;

/// What a client may say in a text frame; everything else is ignored.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Said {
    Resize { cols: u16, rows: u16 },
}

/// Carries bytes both ways until one side ends.
pub(super) async fn serve(socket: WebSocket, pty: PtyStream, stopping: CancellationToken) {
    let (mut sink, stream) = socket.split();
    let heard = AtomicBool::new(true);
    let end = tokio::select! {
        () = receive(stream, pty.input, &heard) => return,
        end = send(&mut sink, pty.output, &heard) => end,
        () = stopping.cancelled() => Some((close_code::AWAY, "the platform is being restarted; connect again")),
    };
    if let Some((code, reason)) = end {
        let frame = CloseFrame {
            code,
            reason: Utf8Bytes::from_static(reason),
        };
        // A client that is gone needs no word.
        let closing = sink.send(Message::Close(Some(frame)));
        let _ = tokio::time::timeout(STALL, closing).await;
    }
}

async fn receive(
    mut stream: SplitStream<WebSocket>,
    input: mpsc::Sender<PtyInput>,
    heard: &AtomicBool,
) {
    while let Some(Ok(message)) = stream.next().await {
        heard.store(true, Ordering::Relaxed);
        let typed = match message {
            Message::Binary(bytes) if !bytes.is_empty() => PtyInput::Bytes(bytes),
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(Said::Resize { cols, rows })
                    if (1..=1_000).contains(&cols) && (1..=1_000).contains(&rows) =>
                {
                    PtyInput::Resize { cols, rows }
                }
                _ => continue,
            },
            Message::Close(_) => return,
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) => continue,
        };
        // The terminal has ended when nobody takes it; the other side tells.
        if input.send(typed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

type Close = Option<(u16, &'static str)>;

async fn send(
    sink: &mut SplitSink<WebSocket, Message>,
    mut output: futures::stream::BoxStream<'static, Result<PtyOutput, NodeError>>,
    heard: &AtomicBool,
) -> Close {
    let mut pings = tokio::time::interval(PING);
    loop {
        let message = tokio::select! {
            output = output.next() => match output {
                Some(Ok(PtyOutput::Bytes(bytes))) => {
                    send_pieces(sink, bytes).await?;
                    continue;
                }
                Some(Ok(PtyOutput::Exited { exit_code })) => return exit(sink, exit_code).await,
                Some(Err(NodeError::VmEnded | NodeError::NoSuchVm)) => return exit(sink, KILLED).await,
                Some(Err(error)) => {
                    tracing::warn!(%error, "a terminal broke off");
                    return Some((close_code::ERROR, "the terminal broke off"));
                }
                None => return Some((TAKEN, "another client has the terminal, or it was closed")),
            },
            _ = pings.tick() => {
                if !heard.swap(false, Ordering::Relaxed) {
                    return None;
                }
                Message::Ping(Bytes::new())
            }
        };
        send_one(sink, message).await?;
    }
}

async fn exit(sink: &mut SplitSink<WebSocket, Message>, exit_code: i32) -> Close {
    let text = serde_json::json!({ "type": "exit", "exit_code": exit_code }).to_string();
    send_one(sink, Message::Text(text.into())).await?;
    Some((close_code::NORMAL, ""))
}

async fn send_pieces(sink: &mut SplitSink<WebSocket, Message>, mut bytes: Bytes) -> Option<()> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(FRAME));
        send_one(sink, Message::Binary(piece)).await?;
    }
    Some(())
}

/// `None` when the client is gone or has taken nothing for too long.
async fn send_one(sink: &mut SplitSink<WebSocket, Message>, message: Message) -> Option<()> {
    let sent = tokio::time::timeout(STALL, sink.send(message)).await;
    sent.ok()?.ok()
}
