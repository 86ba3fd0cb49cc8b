//! Terminals: one connection to the agent for each attached caller.

use crate::file::node_error;
use crate::node::LocalNode;
use crate::vm::{Vm, time_of};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use instavm_agent_api::{Control, Event, FailureKind, OpenPty, Request};
use instavm_node_api::{
    NodeError, PtyInfo, PtyInput, PtyOutput, PtyRequest, PtyStream, Ptys, VmId,
};
use instavm_runtime::agent::{AgentError, Events, Sender, unexpected};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

const OPENING: &str = "opening a terminal";
const LISTING: &str = "listing the terminals";
const ATTACHING: &str = "attaching to a terminal";
const RESIZING: &str = "resizing a terminal";
const CLOSING: &str = "closing a terminal";
/// Pieces of input that wait for the agent.
const INPUTS: usize = 8;
/// The longest piece of input that the agent takes at once, in bytes.
const PIECE: usize = 64 * 1024;

/// The node's error for what went wrong with the agent.
fn pty_error(vm: &Vm, operation: &'static str, error: AgentError) -> NodeError {
    match (&error, error.kind()) {
        (_, Some(FailureKind::NotFound)) => NodeError::NoSuchPty,
        (AgentError::Failed(failure), Some(FailureKind::Exists)) => NodeError::Busy {
            reason: failure.message.clone(),
        },
        _ => node_error(vm, operation, error),
    }
}

#[async_trait]
impl Ptys for LocalNode {
    async fn open_pty(&self, vm: &VmId, request: PtyRequest) -> Result<(), NodeError> {
        let vm = self.inner.vm(vm)?;
        let open = OpenPty {
            id: request.id,
            program: request.program,
            cols: request.cols,
            rows: request.rows,
            env: BTreeMap::new(),
        };
        let opened = vm.door.call(&Request::OpenPty(open)).await;
        opened.map_err(|error| pty_error(&vm, OPENING, error))
    }

    async fn ptys(&self, vm: &VmId) -> Result<Vec<PtyInfo>, NodeError> {
        let vm = self.inner.vm(vm)?;
        let listing = async {
            match vm.door.open(&Request::Ptys).await?.events.next().await? {
                Event::Ptys(all) => Ok(all),
                other => Err(unexpected(&other)),
            }
        };
        let all = listing.await;
        let all = all.map_err(|error| pty_error(&vm, LISTING, error))?;
        let infos = all.into_iter().map(|state| PtyInfo {
            id: state.id,
            cols: state.cols,
            rows: state.rows,
            exit_code: state.exit_code,
            attached: state.attached,
            created_at: time_of(state.created_micros),
        });
        Ok(infos.collect())
    }

    async fn attach_pty(&self, vm: &VmId, id: &str) -> Result<PtyStream, NodeError> {
        let vm = self.inner.vm(vm)?;
        // The agent tells that it does not know the terminal where output would come; so it is asked before.
        let known = self.ptys(&vm.id).await?;
        if known.iter().all(|pty| pty.id != id) {
            return Err(NodeError::NoSuchPty);
        }
        let request = Request::AttachPty { id: id.to_owned() };
        let opened = vm.door.open(&request).await;
        let conversation = opened.map_err(|error| pty_error(&vm, ATTACHING, error))?;
        let (input, typed) = mpsc::channel(INPUTS);
        self.inner
            .tracker
            .spawn(forward(vm.clone(), typed, conversation.sender));
        let output = futures::stream::unfold(Some((vm, conversation.events)), next);
        Ok(PtyStream {
            input,
            output: output.boxed(),
        })
    }

    async fn resize_pty(&self, vm: &VmId, id: &str, cols: u16, rows: u16) -> Result<(), NodeError> {
        let vm = self.inner.vm(vm)?;
        let id = id.to_owned();
        let resized = vm.door.call(&Request::ResizePty { id, cols, rows }).await;
        resized.map_err(|error| pty_error(&vm, RESIZING, error))
    }

    async fn close_pty(&self, vm: &VmId, id: &str) -> Result<(), NodeError> {
        let vm = self.inner.vm(vm)?;
        let closed = vm.door.call(&Request::ClosePty { id: id.to_owned() }).await;
        closed.map_err(|error| pty_error(&vm, CLOSING, error))
    }
}

/// Brings what is typed to the agent, until the caller or the agent is gone. Its end detaches.
async fn forward(vm: Arc<Vm>, mut typed: mpsc::Receiver<PtyInput>, mut agent: Sender) {
    loop {
        let input = tokio::select! {
            input = typed.recv() => input,
            () = vm.over.cancelled() => return,
        };
        let sent = match input {
            None => return,
            Some(PtyInput::Resize { cols, rows }) => {
                agent.send(&Control::Resize { cols, rows }).await
            }
            Some(PtyInput::Bytes(bytes)) => send_pieces(&mut agent, &bytes).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn send_pieces(agent: &mut Sender, bytes: &[u8]) -> Result<(), AgentError> {
    for piece in bytes.chunks(PIECE) {
        agent.send(&Control::Data(piece.to_vec())).await?;
    }
    Ok(())
}

type Reading = Option<(Arc<Vm>, Events)>;

async fn next(state: Reading) -> Option<(Result<PtyOutput, NodeError>, Reading)> {
    let (vm, mut events) = state?;
    match events.next().await {
        Ok(Event::Stdout(bytes)) => {
            let output = PtyOutput::Bytes(Bytes::from(bytes));
            Some((Ok(output), Some((vm, events))))
        }
        Ok(Event::Exited { exit_code }) => Some((Ok(PtyOutput::Exited { exit_code }), None)),
        Ok(other) => {
            let error = pty_error(&vm, ATTACHING, unexpected(&other));
            Some((Err(error), None))
        }
        // Somebody else has the terminal now, or it was closed.
        Err(AgentError::Gone(_)) if !vm.over.is_cancelled() => None,
        Err(error) => Some((Err(pty_error(&vm, ATTACHING, error)), None)),
    }
}
