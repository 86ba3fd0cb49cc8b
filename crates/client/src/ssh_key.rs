//! SSH keys.

use crate::call::{Call, Method};
use crate::client::Client;
use crate::error::{Family, Result};
use instavm_api::ssh_key::{AddSshKey, SshKey, SshKeyDeleted, SshKeys};

fn call(method: Method, path: String, operation: &'static str) -> Call {
    Call::new(method, path).named(operation, Family::Api)
}

impl Client {
    /// Adds a public key, one line of an OpenSSH public key file. A key that is there already is returned.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn add_ssh_key(&self, public_key: &str) -> Result<SshKey> {
        let body = AddSshKey {
            public_key: public_key.to_owned(),
        };
        let call = call(Method::Post, "/v1/ssh-keys".to_owned(), "add an SSH key").json(&body)?;
        self.fetch(call).await
    }

    /// The account's keys.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list_ssh_keys(&self) -> Result<Vec<SshKey>> {
        let call = call(Method::Get, "/v1/ssh-keys".to_owned(), "list SSH keys");
        Ok(self.fetch::<SshKeys>(call).await?.keys)
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn delete_ssh_key(&self, id: i64) -> Result<SshKeyDeleted> {
        let path = format!("/v1/ssh-keys/{id}");
        self.fetch(call(Method::Delete, path, "delete an SSH key"))
            .await
    }
}
