//! Asking the platform.

use crate::arguments::Endpoint;
use crate::failure::Failure;
use crate::json::{Json, Object};
use crate::settings::Settings;
use instavm::{Answer, Call, Client, Error};
use std::future::Future;

/// Runs a command that asks the platform, until it ends or the user interrupts it.
pub(crate) fn online(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::said(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(async {
        tokio::select! {
            biased;
            Ok(()) = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
            result = work => result,
        }
    });
    // Nobody waits for what a thread of it may still be doing.
    runtime.shutdown_background();
    result
}

/// A platform and a key for it.
pub(crate) struct Platform {
    base_url: String,
    api_key: String,
    /// Where SSH reaches VMs.
    pub(crate) ssh_host: String,
}

impl Platform {
    /// What is in force; an error when there is no key.
    pub(crate) fn resolve(endpoint: &Endpoint) -> Result<Platform, Failure> {
        let settings = Settings::resolve(endpoint, None)?;
        Ok(Platform {
            base_url: settings.base_url.value,
            ssh_host: settings.ssh_host.value,
            api_key: settings.api_key.ok_or_else(Failure::no_key)?,
        })
    }

    /// A client without a session.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let client = Client::builder()
            .api_key(&self.api_key)
            .base_url(&self.base_url)
            .without_session()
            .build()
            .await?;
        Ok(client)
    }
}

/// The answer as JSON. Nothing at all counts as success.
pub(crate) fn lenient(answer: &Answer) -> Json {
    if answer.body.is_empty() {
        return Object::default().with("success", true).into();
    }
    Json::parse(&answer.body)
        .unwrap_or_else(|_| Json::Text(String::from_utf8_lossy(&answer.body).into_owned()))
}

/// The answer as a JSON object; anything else is an error.
pub(crate) fn strict(answer: &Answer, operation: &'static str) -> Result<Object, Error> {
    let fault =
        |source: Box<dyn std::error::Error + Send + Sync>| Error::Answer { operation, source };
    match Json::parse(&answer.body) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(fault("it is no JSON object".into())),
        Err(error) => Err(fault(error.into())),
    }
}

/// The answer as an object. Nothing at all counts as success; any other JSON is an error.
pub(crate) fn object(answer: &Answer, operation: &'static str) -> Result<Object, Error> {
    match lenient(answer) {
        Json::Object(object) => Ok(object),
        _ => Err(Error::Answer {
            operation,
            source: "it is no JSON object".into(),
        }),
    }
}

/// Sends a call whose answer is an object or nothing.
pub(crate) async fn ask(
    client: &Client,
    call: Call,
    operation: &'static str,
) -> Result<Object, Error> {
    object(&client.call(call).await?, operation)
}

/// The answer as a list; empty when it is none.
pub(crate) fn list(answer: &Answer) -> Vec<Json> {
    match lenient(answer) {
        Json::List(list) => list,
        _ => Vec::new(),
    }
}

/// The list under a key; empty when there is none.
pub(crate) fn list_in(object: &Object, key: &str) -> Vec<Json> {
    match object.get(key) {
        Some(Json::List(list)) => list.clone(),
        _ => Vec::new(),
    }
}
