//! A registry in this process, which can fail in every way that a test asks for.

use crate::image::{Image, OCI_INDEX, digest};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use bytes::Bytes;
use futures::StreamExt;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

/// What to do instead of answering as a registry does.
#[derive(Clone, Debug)]
pub enum Fault {
    Status(u16),
    /// A status with a header.
    With(u16, &'static str, String),
    /// So many bytes, then the connection ends.
    Cut(usize),
    /// So many bytes, then nothing.
    Stall(usize),
    /// These bytes instead.
    Send(Vec<u8>),
    /// These bytes, without saying how many.
    Chunked(Vec<u8>),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

/// What must be shown.
#[derive(Clone, Debug)]
pub enum Lock {
    Basic {
        user: String,
        password: String,
    },
    /// A token, which the service gives for a name and a password.
    Token {
        user: String,
        password: String,
        life: u64,
    },
}

#[derive(Default)]
struct Content {
    manifests: HashMap<String, (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    /// By the end of the path; each is used so many times.
    faults: HashMap<String, (Fault, usize)>,
    asked: Vec<Asked>,
    lock: Option<Lock>,
    ranges: bool,
    tokens: usize,
}

/// The registry.
pub struct Server {
    pub host: String,
    content: Arc<Mutex<Content>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let content = Arc::new(Mutex::new(Content {
            ranges: true,
            ..Content::default()
        }));
        let state = (content.clone(), host.clone());
        let router = Router::new().fallback(serve).with_state(state);
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            host,
            content,
            task,
        }
    }

    fn with<T>(&self, action: impl FnOnce(&mut Content) -> T) -> T {
        action(&mut self.content.lock().unwrap())
    }

    /// Serves an image; its reference.
    pub fn push(&self, name: &str, image: &Image) -> String {
        self.with(|content| {
            let manifest = (image.kind.to_owned(), image.manifest.clone());
            content
                .manifests
                .insert(format!("{name}/manifests/latest"), manifest.clone());
            content
                .manifests
                .insert(format!("{name}/manifests/{}", image.digest()), manifest);
            content
                .blobs
                .insert(digest(&image.config), image.config.clone());
            for layer in &image.layers {
                content
                    .blobs
                    .insert(layer.digest.clone(), layer.blob.clone());
            }
        });
        format!("{}/{name}:latest", self.host)
    }

    /// Serves a text as the manifest of a tag.
    pub fn push_text(&self, name: &str, kind: &str, text: Vec<u8>) -> String {
        self.with(|content| {
            let by_digest = format!("{name}/manifests/{}", digest(&text));
            let manifest = (kind.to_owned(), text);
            content
                .manifests
                .insert(format!("{name}/manifests/latest"), manifest.clone());
            content.manifests.insert(by_digest, manifest);
        });
        format!("{}/{name}:latest", self.host)
    }

    /// Serves several images under one tag, each with a platform: operating system, architecture, variant.
    pub fn push_index(&self, name: &str, images: &[(&Image, [&str; 3])]) -> String {
        let mut listed = Vec::new();
        for (image, [os, architecture, variant]) in images {
            self.push(name, image);
            let mut platform = serde_json::json!({"os": os, "architecture": architecture});
            if !variant.is_empty() {
                platform["variant"] = serde_json::json!(variant);
            }
            listed.push(serde_json::json!({
                "mediaType": image.kind, "digest": image.digest(), "size": image.manifest.len(),
                "platform": platform,
            }));
        }
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed,
        });
        self.push_text(name, OCI_INDEX, index.to_string().into_bytes())
    }

    /// Requests whose path ends so fail so many times.
    pub fn fail(&self, end: &str, fault: Fault, times: usize) {
        self.with(|content| content.faults.insert(end.to_owned(), (fault, times)));
    }

    pub fn lock(&self, lock: Lock) {
        self.with(|content| content.lock = Some(lock));
    }

    pub fn without_ranges(&self) {
        self.with(|content| content.ranges = false);
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.with(|content| content.asked.clone())
    }

    pub fn forget_asked(&self) {
        self.with(|content| content.asked.clear());
    }

    /// How many requests for blobs there were.
    pub fn blobs_asked(&self) -> usize {
        self.asked()
            .iter()
            .filter(|asked| asked.path.contains("/blobs/"))
            .count()
    }

    pub fn tokens_given(&self) -> usize {
        self.with(|content| content.tokens)
    }
}

type Shared = (Arc<Mutex<Content>>, String);

async fn serve(State((content, host)): State<Shared>, request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let header = |name| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let asked = Asked {
        method: request.method().clone(),
        path: path.clone(),
        authorization: header(header::AUTHORIZATION),
        range: header(header::RANGE),
    };
    let mut content = content.lock().unwrap();
    content.asked.push(asked.clone());
    if path == "/token" {
        return token(&mut content, &asked);
    }
    if path != "/v2/"
        && let Some(refusal) = refuse(&content, &asked, &host)
    {
        return refusal;
    }
    let fault = content
        .faults
        .iter_mut()
        .find(|(end, (_, times))| path.ends_with(end.as_str()) && *times > 0)
        .map(|(_, (fault, times))| {
            *times -= 1;
            fault.clone()
        });
    let found = find(&content, &path);
    match (fault, found) {
        (Some(fault), found) => fail(fault, found.map(|(_, body)| body).unwrap_or_default()),
        (None, Some((kind, body))) => whole(&asked, kind, body, content.ranges),
        (None, None) if path == "/v2/" => plain(200, "{}"),
        (None, None) => plain(
            404,
            r#"{"errors":[{"code":"UNKNOWN","message":"not here"}]}"#,
        ),
    }
}

fn find(content: &Content, path: &str) -> Option<(String, Vec<u8>)> {
    let path = path.strip_prefix("/v2/")?;
    if let Some(found) = content.manifests.get(path) {
        return Some(found.clone());
    }
    let (_, digest) = path.split_once("/blobs/")?;
    let blob = content.blobs.get(digest)?;
    Some(("application/octet-stream".to_owned(), blob.clone()))
}

fn whole(asked: &Asked, kind: String, body: Vec<u8>, ranges: bool) -> Response<Body> {
    let from = asked
        .range
        .as_deref()
        .filter(|_| ranges)
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        })
        .unwrap_or(0_usize);
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, kind)
        .header("docker-content-digest", digest(&body))
        .header(header::CONTENT_LENGTH, body.len() - from);
    if from > 0 {
        let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, range);
    }
    response.body(Body::from(body[from..].to_vec())).unwrap()
}

fn fail(fault: Fault, body: Vec<u8>) -> Response<Body> {
    let said = |length: usize| Response::builder().header(header::CONTENT_LENGTH, length);
    match fault {
        Fault::Status(status) => plain(status, r#"{"errors":[{"message":"as the test wants"}]}"#),
        Fault::With(status, name, value) => Response::builder()
            .status(status)
            .header(name, value)
            .body(Body::empty())
            .unwrap(),
        Fault::Cut(after) => {
            let part = Ok(Bytes::from(body[..after].to_vec()));
            let pieces = futures::stream::iter([part, Err(io::Error::other("cut"))]);
            // What was sent must be on its way before the connection ends.
            let pieces = pieces.then(|piece| async {
                tokio::task::yield_now().await;
                piece
            });
            said(body.len()).body(Body::from_stream(pieces)).unwrap()
        }
        Fault::Stall(after) => {
            let part = Ok::<_, io::Error>(Bytes::from(body[..after].to_vec()));
            let pieces = futures::stream::iter([part]).chain(futures::stream::pending());
            said(body.len()).body(Body::from_stream(pieces)).unwrap()
        }
        Fault::Send(other) => said(other.len()).body(Body::from(other)).unwrap(),
        Fault::Chunked(other) => {
            let pieces = futures::stream::iter([Ok::<_, io::Error>(Bytes::from(other))]);
            Response::new(Body::from_stream(pieces))
        }
    }
}

fn plain(status: u16, text: &'static str) -> Response<Body> {
    Response::builder()
        .status(status)
        .body(Body::from(text))
        .unwrap()
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    let text = format!("{user}:{password}");
    let text = base64::engine::general_purpose::STANDARD.encode(text);
    format!("Basic {text}")
}

fn refuse(content: &Content, asked: &Asked, host: &str) -> Option<Response<Body>> {
    let (wanted, challenge) = match content.lock.as_ref()? {
        Lock::Basic { user, password } => {
            (basic(user, password), "Basic realm=\"test\"".to_owned())
        }
        Lock::Token { .. } => (
            format!("Bearer token-{}", content.tokens),
            format!(
                "Bearer realm=\"http://{host}/token\",service=\"test registry\",scope=\"repository:x:pull\""
            ),
        ),
    };
    if asked.authorization.as_ref() == Some(&wanted) {
        return None;
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
    let mut response = plain(401, r#"{"errors":[{"message":"who are you?"}]}"#);
    response.headers_mut().extend(headers);
    Some(response)
}

fn token(content: &mut Content, asked: &Asked) -> Response<Body> {
    let Some(Lock::Token {
        user,
        password,
        life,
    }) = content.lock.clone()
    else {
        return plain(404, "");
    };
    if asked.authorization != Some(basic(&user, &password)) {
        return plain(401, "");
    }
    content.tokens += 1;
    let answer = format!(
        r#"{{"token":"token-{}","expires_in":{life}}}"#,
        content.tokens
    );
    Response::new(Body::from(answer))
}
