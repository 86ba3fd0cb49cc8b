//! Operations that a forked child answers, because they may block on the VM's file systems.
//!
//! The child gets the connection; the agent only watches whether the peer is still there.

use crate::connection::Phase;
use crate::interpreter::failure;
use crate::poller::{Interest, Source};
use crate::process::{self, fork_task};
use crate::serve::{Child, Server};
use crate::timers::Timer;
use crate::{file, identity};
use instavm_agent_api::{Event, Rejoin};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a child may go on when its peer is gone: it may have all that it needs.
const GRACE: Duration = Duration::from_secs(5);

impl Server {
    /// Takes on an identity.
    pub(crate) fn rejoin(&mut self, connection: u64, rejoin: Rejoin) {
        // Also where nothing changes: the interpreter steps into the working directory, on which a volume may be by now.
        self.identity_state += 1;
        self.environment.clone_from(&rejoin.env);
        match rejoin.workdir.as_deref().map(identity::make_workdir) {
            None => {}
            Some(Ok(workdir)) => self.workdir = workdir,
            Some(Err(failure)) => return self.answer(connection, Event::Failed(failure)),
        }
        if let Err(failure) = identity::apply(&rejoin, self.random.as_ref()) {
            return self.answer(connection, Event::Failed(failure));
        }
        if rejoin.trust.is_empty() {
            return self.answer(connection, Event::Done);
        }
        self.hand_over(connection, move |stream, _| {
            let event = match identity::trust(&rejoin.trust) {
                Ok(()) => Event::Done,
                Err(failure) => Event::Failed(failure),
            };
            file::send(stream, &event)
        });
    }

    /// Reads a file.
    pub(crate) fn read_file(&mut self, connection: u64, path: String) {
        let workdir = self.workdir.clone();
        self.hand_over(connection, move |stream, _| {
            file::read(stream, &workdir, &path)
        });
    }

    /// Writes a file.
    pub(crate) fn write_file(&mut self, connection: u64, path: String, mode: u32) {
        let workdir = self.workdir.clone();
        self.hand_over(connection, move |stream, received| {
            file::write(stream, received, &workdir, &path, mode)
        });
    }

    fn hand_over(
        &mut self,
        key: u64,
        task: impl FnOnce(&mut UnixStream, Vec<u8>) -> std::io::Result<()>,
    ) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let unsent = connection.outbox.take();
        let received = connection.take_inbox();
        let socket = match connection.socket.try_clone() {
            Ok(socket) => socket,
            Err(error) => {
                connection.outbox.push(unsent);
                return self.answer(key, Event::Failed(failure("start the transfer", &error)));
            }
        };
        let spawned = fork_task(socket.as_raw_fd(), &self.secret, || {
            let mut stream = UnixStream::from(socket);
            // The peer notices a connection that ends early; there is nobody else to tell.
            let _ = stream
                .set_nonblocking(false)
                .and_then(|()| std::io::Write::write_all(&mut stream, &unsent))
                .and_then(|()| task(&mut stream, received));
        });
        match spawned {
            Ok(pid) => {
                self.children.insert(pid, Child::Transfer(key));
                self.set_phase(key, Phase::Transfer { pid });
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.interest = Interest::NONE;
                    // What is in the set can be changed without memory.
                    let _ = self.poller.change(
                        &connection.socket,
                        Source::Connection(key),
                        Interest::NONE,
                    );
                }
            }
            Err(error) => {
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.outbox.push(unsent);
                }
                self.answer(key, Event::Failed(failure("start the transfer", &error)));
            }
        }
    }

    /// The peer of a transfer is gone: its child gets a little time to find out.
    pub(crate) fn transfer_hung_up(&mut self, key: u64) {
        if let Some(connection) = self.connections.get(&key) {
            self.poller.remove(&connection.socket);
            self.timers.add(GRACE, Timer::EndTransfer(key));
        }
    }

    /// Ends a transfer whose child is still there.
    pub(crate) fn end_transfer(&mut self, key: u64) {
        let phase = self
            .connections
            .get(&key)
            .map(|connection| &connection.phase);
        if let Some(Phase::Transfer { pid }) = phase {
            process::signal(*pid, libc::SIGKILL);
        }
    }
}
