//! Sessions.

use crate::{Metadata, Secret, Variable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// Starts a session.
#[derive(Debug, Deserialize, ToSchema)]
pub struct StartSession {
    /// The API key; the header `X-API-Key` serves as well.
    pub api_key: Option<Secret>,
    /// Seconds from the start of the VM to its end.
    #[schema(example = 300)]
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub vm_lifetime_seconds: Option<i64>,
    /// Memory in MiB.
    #[schema(example = 1024)]
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub memory_mb: Option<i64>,
    /// Processors.
    #[schema(example = 2)]
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub vcpu_count: Option<i64>,
    /// Labels; `GET /v1/sessions/sandboxes` finds sessions by them.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Metadata>,
    /// Environment of every execution. A variable that is `null` is left out.
    #[serde(default, deserialize_with = "crate::shape::environment")]
    pub env: Option<BTreeMap<String, Variable>>,
}

/// A session and its VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// A UUID.
    pub session_id: String,
    /// `creating` or `active` while its VM lives or is made, `terminated` otherwise.
    pub status: String,
    /// The VM that it has, or had last.
    pub vm_id: Option<String>,
    /// When the session was made.
    pub created_at: String,
    /// When its VM ends, or ended.
    pub expires_at: Option<String>,
    /// Seconds from the start of a VM of this session to its end.
    pub vm_lifetime_seconds: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Processors.
    pub vcpu_count: u32,
    /// What isolates the VM.
    pub isolation: Option<String>,
    /// Labels.
    #[schema(value_type = Object)]
    pub metadata: Metadata,
}

/// Whether a session has a living VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionStatus {
    /// A UUID.
    pub session_id: String,
    /// Always true; an unknown session answers 404.
    pub exists: bool,
    /// A VM was made for it.
    pub vm_assigned: bool,
    /// The VM runs.
    pub vm_alive: bool,
    /// `active`, `creating`, `killed` for a VM that has ended, or null before the first VM.
    pub vm_status: Option<String>,
    /// Why the VM ended: `killed`, `expired`, `crashed` or `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
    /// The VM that it has, or had last.
    pub vm_id: Option<String>,
    /// Seconds since the VM started.
    pub uptime_seconds: Option<f64>,
    /// Seconds until the VM ends; 0 when it has ended.
    pub expires_in_seconds: Option<f64>,
    /// When the session was made.
    pub created_at: String,
}

/// What the VM of a session has used.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionUsage {
    /// A UUID.
    pub session_id: String,
    /// The VM.
    pub vm_id: String,
    /// Processor time in seconds.
    pub cpu_time: f64,
    /// Memory in use now, in bytes.
    pub memory_used: u64,
    /// Most memory in use at once, in bytes.
    pub memory_peak: u64,
    /// The VM's memory limit in bytes.
    pub memory_limit: u64,
    /// Network traffic.
    pub network_io: NetworkIo,
    /// Seconds since the VM started.
    pub uptime_seconds: f64,
}

/// Network traffic of a VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkIo {
    /// Bytes received by the VM.
    pub rx_bytes: u64,
    /// Bytes sent by the VM.
    pub tx_bytes: u64,
    /// Both together.
    pub total_bytes: u64,
    /// Packets received by the VM.
    #[serde(default)]
    pub rx_packets: u64,
    /// Packets sent by the VM.
    #[serde(default)]
    pub tx_packets: u64,
}

/// Which port of a session's VM is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AppUrlQuery {
    /// 1 to 65535; 80 when absent.
    #[serde(default, deserialize_with = "crate::number::of_query")]
    pub port: Option<i64>,
}

/// Where a port of a session's VM is reached. Only what the platform knows is there.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AppUrl {
    /// The best public URL.
    pub app_url: String,
    /// A URL with a host of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_url: Option<String>,
    /// The same as `app_url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The port in the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The VM's own address, which only its host reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_ip: Option<String>,
    /// The VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    /// A UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The state of the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Seconds until the VM ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<f64>,
}

/// Which sessions are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SandboxesQuery {
    /// A JSON object as text: every key of it must be in the session's metadata with the same value.
    pub metadata: Option<String>,
    /// 1 to 1000; 100 when absent.
    #[serde(default, deserialize_with = "crate::number::of_query")]
    pub limit: Option<i64>,
}

/// Ends the VM of a session.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Kill {
    /// A UUID.
    pub session_id: String,
}

/// The VM of the session has ended.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Killed {
    /// Always `killed`.
    pub status: String,
    /// A UUID.
    pub session_id: String,
    /// The VM that the session had.
    pub vm_id: Option<String>,
}
