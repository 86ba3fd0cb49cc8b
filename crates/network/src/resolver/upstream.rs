//! Asking the host's own resolvers.

use super::message::{Answer, Question};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::FirstAnswer;
use hickory_resolver::net::{DnsError, DnsHandle, NetError, NoRecords};
use hickory_resolver::proto::op::{DnsRequest, DnsRequestOptions, Edns, Message, ResponseCode};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The host's list of resolvers.
pub(crate) const SYSTEM: &str = "/etc/resolv.conf";
/// How often that file is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// How long all resolvers together may take; a VM asks again after five seconds.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The answer size that resolvers are told we take by UDP.
const PAYLOAD: u16 = 1232;

type Pool = NameServerPool<TokioRuntimeProvider>;

/// The resolvers that questions are passed on to.
pub(super) struct Upstream {
    fixed: bool,
    in_flight: usize,
    state: Mutex<State>,
}

struct State {
    pool: Option<Pool>,
    /// When the file was looked at last.
    looked: Option<Instant>,
    /// What tells one version of the file from another.
    version: Option<(u64, i64, i64, u64)>,
}

impl Upstream {
    /// These resolvers, or those of the host's configuration as it is at any time. `in_flight` is the most questions
    /// that are open at a time.
    pub(super) fn new(servers: Option<Vec<SocketAddr>>, in_flight: usize) -> Self {
        let fixed = servers.is_some();
        let configs = servers.unwrap_or_default().into_iter().map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut way| {
                way.port = server.port();
                way
            });
            NameServerConfig::new(server.ip(), true, connections.to_vec())
        });
        let pool = pool(configs.collect(), in_flight);
        let state = Mutex::new(State {
            pool,
            looked: None,
            version: None,
        });
        Self {
            fixed,
            in_flight,
            state,
        }
    }

    /// What the resolvers know. Never fails: what goes wrong is an answer, too.
    pub(super) async fn ask(&self, question: &Question) -> Answer {
        let Some(pool) = self.pool() else {
            return Answer::empty(ResponseCode::ServFail);
        };
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = question.checking_disabled;
        message.add_query(question.query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD)
            .set_version(0)
            .set_dnssec_ok(question.dnssec);
        message.set_edns(edns);
        let request = DnsRequest::new(message, DnsRequestOptions::default());
        let asked = tokio::time::timeout(TIMEOUT, pool.send(request).first_answer()).await;
        match asked.unwrap_or(Err(NetError::Timeout)) {
            Ok(response) => {
                let response = response.into_message();
                Answer {
                    code: response.metadata.response_code,
                    authentic: response.metadata.authentic_data,
                    answers: response.answers,
                    authorities: response.authorities,
                    additionals: response.additionals,
                }
            }
            Err(error) => failed(error),
        }
    }

    /// The pool in use, renewed when the host's configuration has changed.
    fn pool(&self) -> Option<Pool> {
        // Every field is right by itself.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.looked.is_none_or(|looked| looked.elapsed() >= LOOK);
        if !self.fixed && due {
            state.looked = Some(Instant::now());
            let version = std::fs::metadata(SYSTEM)
                .ok()
                .map(|file| (file.ino(), file.mtime(), file.mtime_nsec(), file.size()));
            if version != state.version {
                state.pool = pool(system_servers(), self.in_flight);
                state.version = version;
            }
        }
        state.pool.clone()
    }
}

/// The resolvers of the host's configuration.
pub(crate) fn system_servers() -> Vec<NameServerConfig> {
    let read = std::fs::read(SYSTEM)
        .map_err(NetError::from)
        .and_then(parse_resolv_conf);
    match read {
        Ok((config, _)) => config.name_servers().to_vec(),
        Err(error) => {
            tracing::warn!(file = SYSTEM, %error, "the host has no usable resolver: VMs resolve no names");
            Vec::new()
        }
    }
}

fn pool(servers: Vec<NameServerConfig>, in_flight: usize) -> Option<Pool> {
    if servers.is_empty() {
        return None;
    }
    let mut options = ResolverOpts::default();
    options.timeout = TIMEOUT;
    options.max_active_requests = in_flight;
    options.num_concurrent_reqs = 1;
    options.edns_payload_len = PAYLOAD;
    options.try_tcp_on_error = true;
    let context = PoolContext::new(options, TlsConfig::new().ok()?);
    Some(Pool::from_config(
        servers,
        Arc::new(context),
        TokioRuntimeProvider::default(),
    ))
}

/// The answer for a question that was answered without records, or not at all.
fn failed(error: NetError) -> Answer {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(NoRecords {
            response_code,
            authorities,
            soa,
            ..
        })) => {
            let mut answer = Answer::empty(response_code);
            answer.authorities = match (authorities, soa) {
                (Some(authorities), _) => authorities.to_vec(),
                (None, Some(soa)) => vec![soa.into_record_of_rdata()],
                (None, None) => Vec::new(),
            };
            answer
        }
        NetError::Dns(DnsError::ResponseCode(code)) => Answer::empty(code),
        error => {
            tracing::debug!(%error, "no resolver of the host has answered");
            Answer::empty(ResponseCode::ServFail)
        }
    }
}
