//! A server that records.

use anyhow::Result;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method as HttpMethod, StatusCode, header};
use axum::response::{IntoResponse, Response};
use instavm::{Client, ClientBuilder};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: HttpMethod,
    pub(crate) uri: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A server that gives the next prepared answer to whatever comes.
pub(crate) struct Server {
    pub(crate) url: String,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    answers: Mutex<VecDeque<Response>>,
}

async fn record(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20)
        .await
        .unwrap_or_default();
    let seen = Seen {
        method: parts.method,
        uri: parts.uri.to_string(),
        headers: parts.headers,
        body,
    };
    shared
        .seen
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(seen);
    let next = shared
        .answers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop_front();
    match next {
        Some(answer) => answer,
        // Nothing is prepared: no answer at all.
        None => std::future::pending().await,
    }
}

impl Server {
    pub(crate) async fn start(answers: impl IntoIterator<Item = Response>) -> Result<Server> {
        let shared = Arc::new(Shared {
            answers: Mutex::new(answers.into_iter().collect()),
            ..Shared::default()
        });
        let router = axum::Router::new()
            .fallback(record)
            .with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            // It serves until it is aborted.
            let _ = axum::serve(listener, router).await;
        }));
        Ok(Server {
            url,
            shared,
            _task: task,
        })
    }

    pub(crate) fn builder(&self) -> ClientBuilder {
        Client::builder()
            .api_key("key-1")
            .base_url(format!("{}/", self.url))
            .without_session()
    }

    /// One line a request: method, address, and the body when it is JSON.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |seen: Seen| {
            let body = serde_json::from_slice::<serde_json::Value>(&seen.body);
            let body = body.map(|body| body.to_string()).unwrap_or_default();
            let line = format!("{} {} {body}", seen.method, seen.uri);
            line.trim_end().to_owned()
        };
        self.seen().into_iter().map(line).collect()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

pub(crate) fn json(status: u16, body: &'static str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
