//! The way of a request to the app, and of its answer back.

use super::access::{self, Access};
use super::body::{Body, Download, Progress, Upload};
use super::entry::Entry;
use super::head::{self, Caller};
use super::tunnel::{self, Tunnel};
use super::upstream::{self, Upstream, UpstreamError};
use super::{Inner, Place, login, page};
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// How long an app may take to begin its answer, counted from the last bytes that were sent to it. Long polls and models
/// that think take minutes.
const ANSWER: Duration = Duration::from_secs(600);
/// The same for an app that may still be starting: whoever waits for it asks again and again, and needs an answer
/// within five seconds.
const FIRST_ANSWER: Duration = Duration::from_millis(4_500);

/// Where a request came in.
#[derive(Clone)]
pub(super) enum Door {
    /// By the port of a share.
    Port(Arc<Entry>),
    /// By the port of all shares: its host name says which one is meant.
    Hosts,
}

/// Answers a request.
pub(super) async fn answer(
    inner: Arc<Inner>,
    door: Door,
    from: IpAddr,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let authority = match head::authority(&request) {
        Ok(authority) => authority,
        Err(fault) => {
            return page::text(StatusCode::BAD_REQUEST, &format!("Bad request: {fault}."));
        }
    };
    let entry = match find(&inner, door, authority.as_ref()) {
        Some(entry) => entry,
        None => return page::unknown(),
    };
    if let Some(why) = entry.ended() {
        return page::ended(why);
    }
    if request.uri().path() == login::PATH && !entry.is_public() {
        return login::exchange(&inner, &entry, from, authority.as_ref(), request).await;
    }
    let upgrade = head::upgrade(&request);
    let granted = access::check(&inner, &entry, from, authority.as_ref(), &mut request).await;
    let (over, key_id) = match granted {
        Access::Granted(over, key_id) => (over, key_id),
        Access::TooMany => return login::too_many(),
        Access::Stranger { tried } => {
            let wants_page = matches!(*request.method(), Method::GET | Method::HEAD);
            return if wants_page && upgrade.is_none() && !tried {
                let next = request
                    .uri()
                    .path_and_query()
                    .map_or("/", PathAndQuery::as_str);
                login::form(StatusCode::OK, next, "")
            } else {
                login::refusal()
            };
        }
    };
    let Ok(permit) = entry.requests.clone().try_acquire_owned() else {
        return page::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "This share has too many requests under way; try again soon.",
        );
    };
    let caller = Caller {
        address: from,
        scheme: inner.config.scheme(),
        authority,
        port: inner.public_port(&entry),
    };
    let exchange = Exchange {
        inner,
        entry,
        over: over.clone(),
        key_id,
        permit,
    };
    tokio::select! {
        response = exchange.carry(request, &caller, upgrade) => response,
        () = over.cancelled() => page::text(StatusCode::GONE, "This share was closed meanwhile."),
    }
}

/// The share that a request means.
fn find(inner: &Inner, door: Door, authority: Option<&Authority>) -> Option<Arc<Entry>> {
    if let Door::Port(entry) = door {
        return Some(entry);
    }
    let Place::Hosts { domain, .. } = &inner.config.place else {
        return None;
    };
    let host = authority?.host().trim_end_matches('.').to_ascii_lowercase();
    let id = host.strip_suffix(domain.as_str())?.strip_suffix('.')?;
    inner.entry(id)
}

impl Inner {
    /// The port in a share's URL.
    fn public_port(&self, entry: &Entry) -> Option<u16> {
        match &self.config.place {
            Place::Ports { .. } => entry.listen_port(),
            Place::Hosts { public_port, .. } => {
                Some(public_port.unwrap_or(self.config.scheme().default_port()))
            }
        }
    }
}

/// One request and its answer.
struct Exchange {
    inner: Arc<Inner>,
    entry: Arc<Entry>,
    over: CancellationToken,
    key_id: Option<i64>,
    permit: OwnedSemaphorePermit,
}

/// What of a request is sent again when a connection that had waited turns out to be dead.
struct Again {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Again {
    fn of(request: &Request<Upload>) -> Option<Self> {
        let is_safe = matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS
        );
        let is_whole = request.body().progress().is_done();
        (is_safe && is_whole).then(|| Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        })
    }

    fn request(self) -> Request<Upload> {
        let mut request = Request::new(Upload::empty());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// Why there is no answer of the app.
enum Failure {
    Unreachable(UpstreamError),
    /// It broke off before its answer began.
    BrokeOff(hyper::Error),
    TimedOut,
}

impl Exchange {
    async fn carry(
        self,
        mut request: Request<Incoming>,
        caller: &Caller,
        upgrade: Option<HeaderValue>,
    ) -> Response<Body> {
        let waiting = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let patience = self.patience(&request, upgrade.is_some());
        let request = for_app(request, caller, upgrade);
        let progress = request.body().progress();
        match self.send(request, &progress, patience).await {
            Ok((response, upstream)) => {
                self.entry.note_answer();
                self.give(response, upstream, progress, waiting)
            }
            Err(failure) => self.explain(&failure),
        }
    }

    /// How long the app may take.
    fn patience(&self, request: &Request<Incoming>, is_upgrade: bool) -> Duration {
        let is_plain = matches!(*request.method(), Method::GET | Method::HEAD) && !is_upgrade;
        if is_plain && self.entry.is_starting() {
            FIRST_ANSWER
        } else {
            ANSWER
        }
    }

    async fn send(
        &self,
        mut request: Request<Upload>,
        progress: &Progress,
        patience: Duration,
    ) -> Result<(Response<Incoming>, Upstream), Failure> {
        let node = self.inner.node.as_ref();
        let begun = tokio::time::Instant::now();
        let mut upstream = upstream::any(node, &self.entry)
            .await
            .map_err(Failure::Unreachable)?;
        loop {
            let again = upstream.is_reused.then(|| Again::of(&request)).flatten();
            let left = patience.saturating_sub(begun.elapsed());
            let sending = upstream.sender.try_send_request(request);
            let Some(sent) = in_time(sending, progress, left, patience).await else {
                return Err(Failure::TimedOut);
            };
            let mut error = match sent {
                Ok(response) => return Ok((response, upstream)),
                Err(error) => error,
            };
            // It may have died while it waited for a request.
            let unsent = error.take_message().filter(|_| upstream.is_reused);
            request = match unsent.or_else(|| again.map(Again::request)) {
                Some(request) => request,
                None => return Err(Failure::BrokeOff(error.into_error())),
            };
            upstream = upstream::fresh(node, &self.entry)
                .await
                .map_err(Failure::Unreachable)?;
        }
    }

    /// Passes an answer on.
    fn give(
        self,
        mut response: Response<Incoming>,
        upstream: Upstream,
        progress: Arc<Progress>,
        waiting: Option<OnUpgrade>,
    ) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(&mut response, upstream, waiting);
        }
        let (mut head, body) = response.into_parts();
        head::to_caller(&mut head.headers);
        head.extensions.clear();
        head.version = Version::HTTP_11;
        let body = Download::new(body, self.entry, upstream, progress, self.over, self.permit);
        Response::from_parts(head, Body::App(Box::new(body)))
    }

    /// Goes over to what was asked for, and tunnels it.
    fn switch(
        self,
        response: &mut Response<Incoming>,
        upstream: Upstream,
        waiting: Option<OnUpgrade>,
    ) -> Response<Body> {
        let (Some(caller), Some(protocol)) = (waiting, response.headers().get(UPGRADE).cloned())
        else {
            return page::text(
                StatusCode::BAD_GATEWAY,
                "The app went over to a protocol that nobody asked for.",
            );
        };
        let app = hyper::upgrade::on(&mut *response);
        let mut headers = std::mem::take(response.headers_mut());
        head::to_caller(&mut headers);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
        let mut answer = Response::new(Body::text(""));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = headers;
        let tunnel = Tunnel {
            entry: self.entry,
            caller,
            app,
            upstream,
            over: self.over,
            key_id: self.key_id,
            permit: self.permit,
        };
        tunnel::start(&self.inner, tunnel);
        answer
    }

    fn explain(&self, failure: &Failure) -> Response<Body> {
        let port = self.entry.port;
        match failure {
            Failure::Unreachable(error) => {
                if let UpstreamError::Node(source) = error {
                    tracing::error!(share = self.entry.id, error = ?source, "a VM cannot be reached");
                }
                page::unreachable(port, error)
            }
            Failure::TimedOut => page::text(
                StatusCode::GATEWAY_TIMEOUT,
                &format!("The app on port {port} of the VM has not answered yet; try again soon."),
            ),
            Failure::BrokeOff(error) => {
                tracing::debug!(share = self.entry.id, %error, "an app broke off");
                page::text(
                    StatusCode::BAD_GATEWAY,
                    &format!(
                        "The app on port {port} of the VM broke off without an answer, or does not speak HTTP."
                    ),
                )
            }
        }
    }
}

/// Waits for an answer for `left`, and on for `patience` from each time that the upload has moved.
async fn in_time<T>(
    answering: impl Future<Output = T>,
    progress: &Progress,
    left: Duration,
    patience: Duration,
) -> Option<T> {
    let mut answering = std::pin::pin!(answering);
    let mut left = left;
    loop {
        if let Ok(answer) = tokio::time::timeout(left, answering.as_mut()).await {
            return Some(answer);
        }
        if !progress.has_moved() {
            return None;
        }
        left = patience;
    }
}

/// The request as the app is to see it.
fn for_app(
    request: Request<Incoming>,
    caller: &Caller,
    upgrade: Option<HeaderValue>,
) -> Request<Upload> {
    let (mut head, body) = request.into_parts();
    // Only the path: what else a target may name leads nowhere.
    let path = head.uri.path_and_query().cloned();
    head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    head.version = Version::HTTP_11;
    head.extensions.clear();
    head::to_app(&mut head.headers, caller, upgrade);
    Request::from_parts(head, Upload::new(body))
}
