//! Terminals of the node in memory: what is typed comes back, and a line `exit N` ends them.

use crate::node::{SimulatedNode, lock};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use instavm_node_api::{
    NodeError, PtyInfo, PtyInput, PtyOutput, PtyRequest, PtyStream, Ptys, VmId,
};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// Terminals of a VM at once.
const MOST: usize = 64;

/// One terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    info: PtyInfo,
    /// What nobody has read yet.
    kept: Vec<PtyOutput>,
    reader: Option<UnboundedSender<Result<PtyOutput, NodeError>>>,
}

impl Terminal {
    fn write(&mut self, output: PtyOutput) {
        if let PtyOutput::Exited { exit_code } = output {
            self.info.exit_code = Some(exit_code);
        }
        match &self.reader {
            // A reader that has gone away has read enough.
            Some(reader) => drop(reader.unbounded_send(Ok(output))),
            None => self.kept.push(output),
        }
    }

    fn take(&mut self, input: &PtyInput) {
        match input {
            PtyInput::Resize { cols, rows } => {
                (self.info.cols, self.info.rows) = (*cols, *rows);
                let text = format!("resized {cols}x{rows}\n");
                self.write(PtyOutput::Bytes(Bytes::from(text)));
            }
            PtyInput::Bytes(bytes) => {
                self.write(PtyOutput::Bytes(bytes.clone()));
                let line = String::from_utf8_lossy(bytes);
                let code = line.trim().strip_prefix("exit ");
                if let Some(exit_code) = code.and_then(|code| code.parse().ok()) {
                    self.write(PtyOutput::Exited { exit_code });
                }
            }
        }
    }
}

#[async_trait]
impl Ptys for SimulatedNode {
    async fn open_pty(&self, vm: &VmId, request: PtyRequest) -> Result<(), NodeError> {
        let vm = self.find(vm)?;
        let mut terminals = lock(&vm.terminals);
        if terminals.iter().any(|one| one.info.id == request.id) {
            let reason = format!("there is a terminal {} already", request.id);
            return Err(NodeError::Busy { reason });
        }
        if terminals.len() >= MOST {
            let message = format!("the VM has {MOST} terminals, the most; close some");
            return Err(NodeError::VmExhausted { message });
        }
        let prompt = format!("{} $ ", request.program.join(" "));
        terminals.push(Terminal {
            info: PtyInfo {
                id: request.id,
                cols: request.cols,
                rows: request.rows,
                exit_code: None,
                attached: false,
                created_at: SystemTime::now(),
            },
            kept: vec![PtyOutput::Bytes(Bytes::from(prompt))],
            reader: None,
        });
        Ok(())
    }

    async fn ptys(&self, vm: &VmId) -> Result<Vec<PtyInfo>, NodeError> {
        let vm = self.find(vm)?;
        let terminals = lock(&vm.terminals);
        Ok(terminals.iter().map(|one| one.info.clone()).collect())
    }

    async fn attach_pty(&self, vm: &VmId, id: &str) -> Result<PtyStream, NodeError> {
        let vm = self.find(vm)?;
        let (written, reading) = unbounded();
        {
            let mut all = lock(&vm.terminals);
            let found = all.iter_mut().find(|one| one.info.id == id);
            let terminal = found.ok_or(NodeError::NoSuchPty)?;
            terminal.info.attached = true;
            terminal.reader = Some(written);
            for output in std::mem::take(&mut terminal.kept) {
                terminal.write(output);
            }
        }
        let (input, mut typed) = mpsc::channel(8);
        let id = id.to_owned();
        tokio::spawn(async move {
            while let Some(input) = typed.recv().await {
                let mut all = lock(&vm.terminals);
                if let Some(terminal) = all.iter_mut().find(|one| one.info.id == id) {
                    terminal.take(&input);
                }
            }
        });
        Ok(PtyStream {
            input,
            output: reading.boxed(),
        })
    }

    async fn resize_pty(&self, vm: &VmId, id: &str, cols: u16, rows: u16) -> Result<(), NodeError> {
        let vm = self.find(vm)?;
        let mut terminals = lock(&vm.terminals);
        let found = terminals.iter_mut().find(|one| one.info.id == id);
        let terminal = found.ok_or(NodeError::NoSuchPty)?;
        terminal.take(&PtyInput::Resize { cols, rows });
        Ok(())
    }

    async fn close_pty(&self, vm: &VmId, id: &str) -> Result<(), NodeError> {
        let vm = self.find(vm)?;
        lock(&vm.terminals).retain(|one| one.info.id != id);
        Ok(())
    }
}
