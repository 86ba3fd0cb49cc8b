//! API keys.

use crate::call::{Call, Method};
use crate::client::Client;
use crate::error::{Family, Result};
use instavm_api::api_key::{ApiKey, ApiKeyDeleted, CreateApiKey, NewApiKey, UpdateApiKey};

const COLLECTION: &str = "/v1/api-keys/";

fn call(method: Method, path: String, operation: &'static str) -> Call {
    Call::new(method, path).named(operation, Family::Api)
}

/// The account's API keys; see [`Client::api_keys`].
#[derive(Clone, Copy, Debug)]
pub struct ApiKeys<'a>(&'a Client);

impl Client {
    /// The account's API keys.
    pub fn api_keys(&self) -> ApiKeys<'_> {
        ApiKeys(self)
    }
}

impl ApiKeys<'_> {
    /// Makes a key. The answer is the only place where its text is shown.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn create(&self, description: &str) -> Result<NewApiKey> {
        let body = CreateApiKey {
            description: Some(description.to_owned()),
        };
        let call = call(Method::Post, COLLECTION.to_owned(), "create an API key").json(&body)?;
        self.0.fetch(call).await
    }

    /// All keys, without their texts.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list(&self) -> Result<Vec<ApiKey>> {
        let call = call(Method::Get, COLLECTION.to_owned(), "list API keys");
        self.0.fetch(call).await
    }

    /// One key.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get(&self, id: i64) -> Result<ApiKey> {
        let call = call(Method::Get, format!("/v1/api-keys/{id}"), "get an API key");
        self.0.fetch(call).await
    }

    /// Changes a key: its description, or whether it is accepted.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn update(&self, id: i64, change: &UpdateApiKey) -> Result<ApiKey> {
        let path = format!("/v1/api-keys/{id}");
        let call = call(Method::Patch, path, "update an API key").json(change)?;
        self.0.fetch(call).await
    }

    /// Deletes a key: it answers 401 from now on.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn delete(&self, id: i64) -> Result<ApiKeyDeleted> {
        let path = format!("/v1/api-keys/{id}");
        self.0
            .fetch(call(Method::Delete, path, "delete an API key"))
            .await
    }
}
