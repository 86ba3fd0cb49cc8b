//! WebSockets, over the same HTTP client as everything else: its TLS, its proxies, its key.

use crate::call::Call;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::http::{Activity, Http};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{StatusCode, Upgraded};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

impl Client {
    /// The address of a WebSocket with the key in it.
    pub(crate) fn socket_url(&self, path: &str) -> Result<String> {
        let operation = "make an address";
        let http = self.http(operation)?;
        let key = http.api_key().ok_or(Error::Authentication {
            operation,
            failure: None,
        })?;
        // `http` becomes `ws`, `https` becomes `wss`.
        let rest = http.base_url().trim_start_matches("http");
        let key = utf8_percent_encode(key, NON_ALPHANUMERIC);
        Ok(format!("ws{rest}{path}?api_key={key}"))
    }

    /// Opens a WebSocket.
    pub(crate) async fn socket(&self, call: Call) -> Result<WebSocketStream<Upgraded>> {
        let upgraded = self.http(call.operation)?.upgrade(&call).await?;
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
    }
}

impl Http {
    async fn upgrade(&self, call: &Call) -> Result<Upgraded> {
        let key = generate_key();
        let request = self
            .request(call)?
            .version(reqwest::Version::HTTP_11)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key);
        let response = self.exchange(request, call, &Activity::begin()).await?;
        let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT);
        let agreed =
            accepted.is_some_and(|value| value == derive_accept_key(key.as_bytes()).as_str());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !agreed {
            return Err(Error::Answer {
                operation: call.operation,
                source: "the platform did not switch to a WebSocket".into(),
            });
        }
        response.upgrade().await.map_err(|error| Error::Answer {
            operation: call.operation,
            source: Box::new(error),
        })
    }
}
