//! A small HTTP client that shows answers as they are.

use anyhow::{Context, Result};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// The most bytes of an answer.
const ANSWER_LIMIT: usize = 256 << 20;

/// An answer as it is.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// Its body as JSON; `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The text of an error.
    pub fn detail(&self) -> String {
        self.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// A client with an API key, or without.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    key: Option<String>,
}

impl Client {
    /// A client of the server at this address.
    pub fn new(address: SocketAddr, key: Option<&str>) -> Client {
        Client {
            address,
            key: key.map(str::to_owned),
        }
    }

    /// Sends a request as it is, with the key added; the path is sent as written.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Answer> {
        if let Some(key) = &self.key {
            let key = key.parse().context("the key is no header value")?;
            request.headers_mut().insert("x-api-key", key);
        }
        request
            .headers_mut()
            .insert(header::HOST, self.address.to_string().parse()?);
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(Body::new(body), ANSWER_LIMIT).await?;
            anyhow::Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            })
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            // The connection may end with the answer's last byte.
            _ = connection => exchange.await,
        }
    }

    /// Sends a request with a body of this kind.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: impl Into<Body>,
    ) -> Result<Answer> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, kind)
            .body(body.into())?;
        self.send(request).await
    }

    /// GET.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        let request = Request::builder().uri(path).body(Body::empty())?;
        self.send(request).await
    }

    /// DELETE.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        let request = Request::builder()
            .method(Method::DELETE)
            .uri(path)
            .body(Body::empty())?;
        self.send(request).await
    }

    /// POST of JSON.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.call(Method::POST, path, "application/json", body.to_string())
            .await
    }

    /// POST of an upload as the official client sends it.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn upload(
        &self,
        session_id: &str,
        path: &str,
        recursive: bool,
        content: &[u8],
    ) -> Result<Answer> {
        let mut body = Vec::new();
        for (name, text) in [
            ("remote_path", path),
            ("session_id", session_id),
            ("recursive", if recursive { "true" } else { "false" }),
        ] {
            let part = format!(
                "--limit\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n"
            );
            body.extend_from_slice(part.as_bytes());
        }
        body.extend_from_slice(
            b"--limit\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a/b.txt\"\r\n\r\n",
        );
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n--limit--\r\n");
        self.call(
            Method::POST,
            "/upload",
            "multipart/form-data; boundary=limit",
            body,
        )
        .await
    }

    /// POST of a download as the official client sends it.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn download(&self, session_id: &str, path: &str) -> Result<Answer> {
        let body = format!(
            "filename={}&session_id={session_id}",
            path.replace('/', "%2F")
        );
        self.call(
            Method::POST,
            "/download",
            "application/x-www-form-urlencoded",
            body,
        )
        .await
    }
}
