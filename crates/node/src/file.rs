//! Files in and out of a VM.

use crate::vm::Vm;
use bytes::Bytes;
use futures::StreamExt;
use instavm_agent_api::frame::CHUNK;
use instavm_agent_api::{Control, Event, FailureKind, Request};

use instavm_node_api::{ByteStream, FileContent, FileErrorKind, NodeError};
use instavm_runtime::agent::{AgentError, Events, Sender, unexpected};

/// Permission bits of a file that did not exist.
const NEW_FILE: u32 = 0o644;

/// The node's error for what went wrong with the agent.
pub(crate) fn node_error(vm: &Vm, operation: &'static str, error: AgentError) -> NodeError {
    if vm.over.is_cancelled() {
        return NodeError::VmEnded;
    }
    let message = match &error {
        AgentError::Failed(failure) => failure.message.clone(),
        _ => String::new(),
    };
    let file = |kind| NodeError::File {
        kind,
        message: message.clone(),
    };
    match error.kind() {
        Some(FailureKind::NotFound) => file(FileErrorKind::NotFound),
        Some(FailureKind::Unsuitable) => file(FileErrorKind::Unsuitable),
        Some(FailureKind::NoSpace) => file(FileErrorKind::NoSpace),
        Some(FailureKind::Denied) => file(FileErrorKind::Denied),
        Some(FailureKind::Exhausted) => NodeError::VmExhausted { message },
        Some(FailureKind::Internal) | None => NodeError::Internal {
            operation,
            source: Box::new(error),
        },
    }
}

/// Opens a file of the VM for reading.
pub(crate) async fn read(vm: &std::sync::Arc<Vm>, path: &str) -> Result<FileContent, NodeError> {
    let wrap = |error| node_error(vm, "reading a file", error);
    let request = Request::ReadFile {
        path: path.to_owned(),
    };
    let conversation = vm.door.open(&request).await.map_err(wrap)?;
    // The sender is kept with the events: dropping half of the connection would cancel the operation.
    let (sender, mut events) = (conversation.sender, conversation.events);
    let size = match events.next().await.map_err(wrap)? {
        Event::File { size, .. } => size,
        other => return Err(wrap(unexpected(&other))),
    };
    let state = Reading {
        vm: vm.clone(),
        _sender: sender,
        events,
    };
    let stream = futures::stream::try_unfold(state, |mut state| async move {
        match state.events.next().await {
            Ok(Event::Data(bytes)) => Ok(Some((Bytes::from(bytes), state))),
            Ok(Event::Done) => Ok(None),
            Ok(other) => Err(node_error(&state.vm, "reading a file", unexpected(&other))),
            Err(error) => Err(node_error(&state.vm, "reading a file", error)),
        }
    });
    Ok(FileContent {
        size,
        stream: stream.boxed(),
    })
}

struct Reading {
    vm: std::sync::Arc<Vm>,
    _sender: Sender,
    events: Events,
}

/// Writes a file of the VM; returns its size.
pub(crate) async fn write(vm: &Vm, path: &str, content: ByteStream) -> Result<u64, NodeError> {
    let wrap = |error| node_error(vm, "writing a file", error);
    let request = Request::WriteFile {
        path: path.to_owned(),
        mode: NEW_FILE,
    };
    let mut conversation = vm.door.open(&request).await.map_err(wrap)?;
    let sending = send(&mut conversation.sender, content);
    let answer = conversation.events.next();
    tokio::pin!(answer);
    // The agent may refuse (a full disk, a directory) while the content is still coming.
    tokio::select! {
        biased;
        early = &mut answer => return finish(vm, early),
        sent = sending => match sent {
            Ok(()) => {}
            Err(SendError::Caller(error)) => return Err(error),
            // What the agent says about it tells more than a broken pipe.
            Err(SendError::Agent(error)) => {
                let said = answer.await;
                return if said.is_err() { finish(vm, said) } else { Err(wrap(error)) };
            }
        },
    }
    finish(vm, answer.await)
}

enum SendError {
    Caller(NodeError),
    Agent(AgentError),
}

async fn send(sender: &mut Sender, mut content: ByteStream) -> Result<(), SendError> {
    while let Some(bytes) = content.next().await {
        let bytes = bytes.map_err(SendError::Caller)?;
        for chunk in bytes.chunks(CHUNK) {
            sender
                .send(&Control::Data(chunk.to_vec()))
                .await
                .map_err(SendError::Agent)?;
        }
    }
    sender.send(&Control::End).await.map_err(SendError::Agent)
}

fn finish(vm: &Vm, answer: Result<Event, AgentError>) -> Result<u64, NodeError> {
    match answer {
        Ok(Event::Written { size }) => Ok(size),
        Ok(other) => Err(node_error(vm, "writing a file", unexpected(&other))),
        Err(error) => Err(node_error(vm, "writing a file", error)),
    }
}
