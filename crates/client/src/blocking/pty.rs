//! Terminals in VMs: opened, looked at and closed. Talking to one is for asynchronous programs.

use super::Client;
use crate::{NewPty, Pty, PtyDeleted, Result};

/// The terminals of a VM. See [`Client::pty`] and [`Client::pty_of_vm`]. Each method is that of [`crate::Ptys`].
#[derive(Clone, Debug)]
pub struct Ptys<'a> {
    client: &'a Client,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Session(String),
    Vm(String),
}

impl Place {
    fn of<'c>(&self, client: &'c crate::Client) -> crate::Ptys<'c> {
        match self {
            Place::Session(id) => client.pty(id),
            Place::Vm(id) => client.pty_of_vm(id),
        }
    }
}

impl Client {
    /// The terminals in the VM of a session.
    pub fn pty(&self, session_id: &str) -> Ptys<'_> {
        Ptys {
            client: self,
            place: Place::Session(session_id.to_owned()),
        }
    }

    /// The terminals in a VM. They are the same as those of its session.
    pub fn pty_of_vm(&self, vm_id: &str) -> Ptys<'_> {
        Ptys {
            client: self,
            place: Place::Vm(vm_id.to_owned()),
        }
    }
}

impl Ptys<'_> {
    /// Opens a terminal. What its program writes is kept until somebody connects.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn create(&self, pty: NewPty) -> Result<Pty> {
        let place = self.place.clone();
        self.client
            .run(|client| async move { place.of(&client).create(pty).await })
    }

    /// The terminals, oldest first.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list(&self) -> Result<Vec<Pty>> {
        let place = self.place.clone();
        self.client
            .run(|client| async move { place.of(&client).list().await })
    }

    /// One terminal.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn get(&self, id: &str) -> Result<Pty> {
        let (place, id) = (self.place.clone(), id.to_owned());
        self.client
            .run(|client| async move { place.of(&client).get(&id).await })
    }

    /// Changes the size of a terminal.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn resize(&self, id: &str, cols: u16, rows: u16) -> Result<Pty> {
        let (place, id) = (self.place.clone(), id.to_owned());
        self.client
            .run(|client| async move { place.of(&client).resize(&id, cols, rows).await })
    }

    /// Hangs a terminal up. One that has ended already is no error.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn kill(&self, id: &str) -> Result<PtyDeleted> {
        let (place, id) = (self.place.clone(), id.to_owned());
        self.client
            .run(|client| async move { place.of(&client).kill(&id).await })
    }

    /// The address for a WebSocket client of your own. It holds the API key.
    ///
    /// # Errors
    /// When there is no key, or an id that cannot be in a path.
    pub fn ws_url(&self, id: &str) -> Result<String> {
        let (place, id) = (self.place.clone(), id.to_owned());
        self.client
            .run(|client| async move { place.of(&client).ws_url(&id) })
    }
}
