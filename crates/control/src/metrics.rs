//! Figures for Prometheus.

use crate::Platform;
use crate::error::Problem;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Upper bounds in seconds, from a hot request to the longest execution.
const BUCKETS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 600.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answer {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    method: String,
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Run {
    language: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RefusedBy {
    rule: String,
}

/// All figures of the control plane.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Answer, Counter>,
    latency: Family<Route, Histogram>,
    executions: Family<Run, Counter>,
    creations: Family<Outcome, Counter>,
    vms: Gauge,
    vms_limit: Gauge,
    pool_ready: Gauge,
    pool_size: Gauge,
    disk_used: Gauge,
    disk_total: Gauge,
    scrub_finished: Gauge,
    scrub_errors: Gauge,
    sessions_in_memory: Gauge,
    egress_refusals: Family<RefusedBy, Counter>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let metrics = Metrics {
            registry: Registry::with_prefix("instavm"),
            requests: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            executions: Family::default(),
            creations: Family::default(),
            vms: Gauge::default(),
            vms_limit: Gauge::default(),
            pool_ready: Gauge::default(),
            pool_size: Gauge::default(),
            disk_used: Gauge::default(),
            disk_total: Gauge::default(),
            scrub_finished: Gauge::default(),
            scrub_errors: Gauge::default(),
            sessions_in_memory: Gauge::default(),
            egress_refusals: Family::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Metrics {
        let registry = &mut self.registry;
        registry.register(
            "http_requests",
            "Answers by route and status",
            self.requests.clone(),
        );
        registry.register(
            "http_request_duration_seconds",
            "Time until the head of the answer, by route",
            self.latency.clone(),
        );
        registry.register(
            "executions",
            "Executions by language and outcome",
            self.executions.clone(),
        );
        registry.register(
            "vm_creations",
            "VMs asked of the node, by outcome",
            self.creations.clone(),
        );
        registry.register("vms", "VMs that live", self.vms.clone());
        registry.register(
            "vms_limit",
            "The most VMs that the node takes",
            self.vms_limit.clone(),
        );
        registry.register(
            "pool_ready",
            "VMs that are ready in the pool",
            self.pool_ready.clone(),
        );
        registry.register(
            "pool_size",
            "The configured size of the pool",
            self.pool_size.clone(),
        );
        self.disks_registered()
    }

    fn disks_registered(mut self) -> Metrics {
        let registry = &mut self.registry;
        registry.register(
            "disk_used_bytes",
            "Bytes of the disk pool in use",
            self.disk_used.clone(),
        );
        registry.register(
            "disk_total_bytes",
            "Bytes of the disk pool",
            self.disk_total.clone(),
        );
        registry.register(
            "disk_scrub_finished_timestamp_seconds",
            "When all disks were last read against their checksums",
            self.scrub_finished.clone(),
        );
        registry.register(
            "disk_scrub_errors",
            "Places on the disks that were not what was written, at that time",
            self.scrub_errors.clone(),
        );
        registry.register(
            "sessions_in_memory",
            "Sessions in memory",
            self.sessions_in_memory.clone(),
        );
        registry.register(
            "egress_refusals",
            "What was refused to VMs since the node started, by rule: lookups, connections and packets",
            self.egress_refusals.clone(),
        );
        self
    }

    pub(crate) fn executed(&self, language: &'static str, outcome: &'static str) {
        self.executions
            .get_or_create(&Run { language, outcome })
            .inc();
    }

    pub(crate) fn created(&self, outcome: &'static str) {
        self.creations.get_or_create(&Outcome { outcome }).inc();
    }

    fn answered(&self, method: String, route: String, status: u16, took: Duration) {
        self.latency
            .get_or_create(&Route {
                method: method.clone(),
                route: route.clone(),
            })
            .observe(took.as_secs_f64());
        self.requests
            .get_or_create(&Answer {
                method,
                route,
                status,
            })
            .inc();
    }
}

/// Methods by their names; a client can make up any number of others, which count as one.
fn method_name(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Counts every request.
pub(crate) async fn observe(
    State(platform): State<Platform>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let method = method_name(request.method()).to_owned();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let response = next.run(request).await;
    platform
        .metrics
        .answered(method, route, response.status().as_u16(), started.elapsed());
    response
}

/// Figures for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "operation",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text")),
)]
pub(crate) async fn show(State(platform): State<Platform>) -> Result<Response, Problem> {
    let node = platform.node.status().await;
    let metrics = &platform.metrics;
    metrics.vms.set(gauge(node.vms as u64));
    metrics.vms_limit.set(gauge(node.vms_limit as u64));
    metrics.pool_ready.set(gauge(node.pool_ready as u64));
    metrics.pool_size.set(gauge(node.pool_size as u64));
    metrics.disk_used.set(gauge(node.disk_used_bytes));
    metrics.disk_total.set(gauge(node.disk_total_bytes));
    if let Some(scrub) = node.last_scrub {
        metrics
            .scrub_finished
            .set(scrub.finished_micros / 1_000_000);
        metrics.scrub_errors.set(gauge(scrub.errors));
    }
    metrics
        .sessions_in_memory
        .set(gauge(platform.live.session_count() as u64));
    for (rule, count) in platform.node.refusal_counts().await {
        let counter = metrics.egress_refusals.get_or_create(&RefusedBy { rule });
        counter.inner().store(count, Ordering::Relaxed);
    }
    let mut text = String::new();
    text::encode(&mut text, &metrics.registry)
        .map_err(|error| Problem::internal("writing the figures", error))?;
    const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, KIND)], text).into_response())
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
