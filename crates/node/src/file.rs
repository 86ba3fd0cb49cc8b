//! Files in and out of a VM.

use crate::vm::Vm;
use bytes::Bytes;
use futures::StreamExt;
use instavm_agent_api::frame::CHUNK;
use instavm_agent_api::{Control, Event, FailureKind, Request};
use instavm_node_api::{ByteStream, FileContent, FileErrorKind, NodeError};
use instavm_runtime::agent::{AgentError, Events, Sender, unexpected};
use std::sync::Arc;
use std::time::Duration;

const READING: &str = "reading a file";
const WRITING: &str = "writing a file";
/// How long a file operation may make no progress: a file system inside the VM (a FUSE mount, say) may never answer.
const STALL: Duration = Duration::from_secs(30);

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
        Some(FailureKind::Exists) => file(FileErrorKind::Exists),
        Some(FailureKind::Exhausted) => NodeError::VmExhausted { message },
        Some(FailureKind::Internal) | None => NodeError::Internal {
            operation,
            source: Box::new(error),
        },
    }
}

/// Waits for a step of a file operation as long as may be.
async fn step<T>(
    vm: &Vm,
    operation: &'static str,
    step: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, NodeError> {
    match tokio::time::timeout(STALL, step).await {
        Ok(result) => result.map_err(|error| node_error(vm, operation, error)),
        Err(_) => {
            let seconds = STALL.as_secs();
            let message =
                format!("{operation}: the VM's file system has not answered for {seconds} s");
            Err(NodeError::VmExhausted { message })
        }
    }
}

/// Opens a file of the VM for reading.
pub(crate) async fn read(vm: &Arc<Vm>, path: &str) -> Result<FileContent, NodeError> {
    let wrap = |error| node_error(vm, READING, error);
    let request = Request::ReadFile {
        path: path.to_owned(),
    };
    let conversation = vm.door.open(&request).await.map_err(wrap)?;
    // The sender is kept with the events: dropping half of the connection would cancel the operation.
    let (sender, mut events) = (conversation.sender, conversation.events);
    let size = match step(vm, READING, events.next()).await? {
        Event::File { size, .. } => size,
        other => return Err(wrap(unexpected(&other))),
    };
    let state = Reading {
        vm: vm.clone(),
        _sender: sender,
        events,
    };
    let stream = futures::stream::try_unfold(state, |mut state| async move {
        match step(&state.vm, READING, state.events.next()).await? {
            Event::Data(bytes) => Ok(Some((Bytes::from(bytes), state))),
            Event::Done => Ok(None),
            other => Err(node_error(&state.vm, READING, unexpected(&other))),
        }
    });
    Ok(FileContent {
        size,
        stream: stream.boxed(),
    })
}

struct Reading {
    vm: Arc<Vm>,
    _sender: Sender,
    events: Events,
}

/// Writes a file of the VM; returns its size.
pub(crate) async fn write(vm: &Vm, path: &str, content: ByteStream) -> Result<u64, NodeError> {
    let wrap = |error| node_error(vm, WRITING, error);
    let request = Request::WriteFile {
        path: path.to_owned(),
        mode: NEW_FILE,
    };
    let mut conversation = vm.door.open(&request).await.map_err(wrap)?;
    let sending = send(vm, &mut conversation.sender, content);
    let answer = conversation.events.next();
    tokio::pin!(answer);
    // The agent may refuse (a full disk, a directory) while the content is still coming.
    let answer = tokio::select! {
        biased;
        early = &mut answer => early.map_err(wrap),
        sent = sending => match sent {
            // Of a connection that broke off the agent tells more than the broken pipe.
            Ok(()) | Err(NodeError::Internal { .. }) => step(vm, WRITING, answer).await,
            Err(error) => return Err(error),
        },
    };
    match answer? {
        Event::Written { size } => Ok(size),
        other => Err(wrap(unexpected(&other))),
    }
}

async fn send(vm: &Vm, sender: &mut Sender, mut content: ByteStream) -> Result<(), NodeError> {
    while let Some(bytes) = content.next().await {
        for chunk in bytes?.chunks(CHUNK) {
            let data = Control::Data(chunk.to_vec());
            step(vm, WRITING, sender.send(&data)).await?;
        }
    }
    step(vm, WRITING, sender.send(&Control::End)).await
}
