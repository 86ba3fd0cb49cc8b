//! The one module that names the other rooms' types: opens them in order, and answers for them.

mod accounts;
mod database;
mod images;
mod kept;
mod shares;

pub(crate) use accounts::{create_account, disable_account, list_accounts};
pub(crate) use images::{build_image, list_images, remove_image};

use crate::commands::doctor::Finding;
use crate::config::{Config, DiskDriverChoice, ImageSource, Secrets};
use crate::consistency::{self, Recorded};
use crate::rooms::{RoomError, Rooms};
use crate::{agent_binary, output};
use async_trait::async_trait;
use instavm_control::{Dependencies, Platform, Settings};
use instavm_gateway::share::Shares;
use instavm_node::{LocalNode, NodeConfig};
use instavm_node_api::Node;
use instavm_runtime::disk::DiskDriver;
use instavm_runtime::driver::NativeDriver;
use instavm_runtime::image::Source;
use instavm_store::{Database, StoreError};
use shares::{GatewayDoors, PlatformKeys};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long background work of the platform may take to end.
const DRAIN: Duration = Duration::from_secs(5);
const SECONDS_PER_HOUR: u64 = 3600;
/// Between two looks at whether rows and VMs agree by now.
const SETTLE_STEP: Duration = Duration::from_millis(200);

/// All rooms of a daemon that serves.
struct House {
    database: Database,
    node: Arc<dyn Node>,
    platform: Platform,
    shares: Shares,
    stop: CancellationToken,
}

/// Opens the rooms: the store with its first account, the node with its living VMs, the platform.
pub(crate) async fn open(
    config: &Config,
    secrets: &Secrets,
    agent: &'static [u8],
    tracker: TaskTracker,
) -> Result<Arc<dyn Rooms>, RoomError> {
    let database = database::open(config).await?;
    accounts::bootstrap(&database, config, secrets).await?;
    let stop = CancellationToken::new();
    let node = LocalNode::open(
        node_config(config, agent),
        tracker.clone(),
        stop.clone(),
        output::note,
    )
    .await?;
    let node: Arc<dyn Node> = Arc::new(node);
    let keys = Arc::new(PlatformKeys::default());
    let (asked, tasks) = (Arc::clone(&keys), tracker);
    let shares = shares::open(config, Arc::clone(&node), asked, tasks, stop.clone()).await?;
    let platform = Platform::start(Dependencies {
        database: database.clone(),
        node: Arc::clone(&node),
        doors: Arc::new(GatewayDoors(shares.clone())),
        settings: settings(config),
    })
    .await?;
    keys.set(&platform);
    Ok(Arc::new(House {
        database,
        node,
        platform,
        shares,
        stop,
    }))
}

#[async_trait]
impl Rooms for House {
    fn router(&self) -> axum::Router {
        self.platform.router()
    }

    async fn check(&self, settle: Duration) -> Result<Vec<String>, RoomError> {
        let deadline = Instant::now() + settle;
        let mut found = self.node.check(settle).await;
        loop {
            let rows = recorded(&self.database).await?;
            let vms = self.node.list().await;
            let vms = vms.into_iter().map(|vm| vm.id.0).collect();
            let mut apart = consistency::mismatches(&rows, &vms, SystemTime::now());
            let recorded = kept::recorded(&self.database, &vms).await?;
            let there = kept::there(self.node.as_ref(), &vms).await?;
            apart.extend(consistency::kept_mismatches(&recorded, &there));
            let open = instavm_control::share::service::recorded(&self.database).await?;
            apart.extend(shares::mismatches(&self.shares, &open));
            if apart.is_empty() || Instant::now() >= deadline {
                found.extend(apart);
                return Ok(found);
            }
            tokio::time::sleep(SETTLE_STEP).await;
        }
    }

    async fn reload_accounts(&self) -> Result<(), RoomError> {
        Ok(self.platform.reload_accounts().await?)
    }

    async fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.node.status().await).unwrap_or_default()
    }

    async fn close(&self) {
        if !self.platform.drain(DRAIN).await {
            tracing::warn!("the platform's background work did not end in time");
        }
        self.stop.cancel();
        self.database.close().await;
    }
}

/// Whether the data directory has records, in it or on a server.
pub(crate) fn has_records(config: &Config) -> bool {
    database::is_there(config)
}

/// Compares rows, disks and kernel while no daemon runs.
pub(crate) async fn check_offline(config: &Config) -> Result<Vec<String>, RoomError> {
    let node = instavm_node::check_offline(&config.data_dir).await?;
    let mut found = node.mismatches.clone();
    if has_records(config) {
        let database = database::open(config).await?;
        let vms: BTreeSet<String> = node.vms.iter().map(|vm| vm.0.clone()).collect();
        let rows = recorded(&database).await?;
        let recorded = kept::recorded(&database, &vms).await?;
        database.close().await;
        found.extend(consistency::mismatches(&rows, &vms, SystemTime::now()));
        if let Some(there) = kept::left(&node) {
            found.extend(consistency::kept_mismatches(&recorded, &there));
        }
    }
    Ok(found)
}

/// Ends the node's VMs, removes every kernel object, and the records where they are on a server.
pub(crate) async fn destroy(config: &Config) -> Result<(), RoomError> {
    instavm_node::destroy(&config.data_dir).await?;
    Ok(database::erase(config).await?)
}

/// What works on this host. Leaves nothing behind.
pub(crate) async fn probe(config: &Config) -> Vec<Finding> {
    let mut findings = node_findings().await;
    findings.extend(instavm_network::probe().await.into_iter().map(|probe| {
        use instavm_network::ProbeStatus;
        Finding {
            name: probe.name.to_owned(),
            ok: probe.status == ProbeStatus::Good,
            required: probe.status == ProbeStatus::Failed,
            detail: probe.detail,
            fix: (!probe.fix.is_empty()).then_some(probe.fix),
        }
    }));
    findings.push(images::finding(config).await);
    findings
}

async fn node_findings() -> Vec<Finding> {
    let failed = |detail: String| {
        vec![Finding {
            name: "driver".to_owned(),
            ok: false,
            required: true,
            detail,
            fix: Some("make room in the folder for temporary files (TMPDIR)".to_owned()),
        }]
    };
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => return failed(format!("cannot be tried: {error}")),
    };
    let agent = agent_binary::embedded().unwrap_or_default();
    let driver = match NativeDriver::install(folder.path(), agent) {
        Ok(driver) => driver,
        Err(error) => return failed(output::with_causes(&error)),
    };
    let probes = instavm_node::probe(&driver).await;
    probes
        .into_iter()
        .map(|probe| Finding {
            name: probe.name,
            ok: probe.ok,
            required: probe.required,
            detail: probe.detail,
            fix: probe.fix,
        })
        .collect()
}

/// What the records say of the VMs that have not ended.
async fn recorded(database: &Database) -> Result<BTreeMap<String, Recorded>, StoreError> {
    let vms = instavm_control::vm::service::recorded(database).await?;
    Ok(vms
        .into_iter()
        .map(|vm| {
            let expires_at = vm.expires_at;
            let recorded = if vm.is_active {
                Recorded::Active { expires_at }
            } else {
                Recorded::Creating
            };
            (vm.id, recorded)
        })
        .collect())
}

fn node_config(config: &Config, agent: &'static [u8]) -> NodeConfig {
    let resolvers = config.network_resolvers.clone();
    NodeConfig {
        data_dir: config.data_dir.clone(),
        image_cache: config.images_cache_dir.clone(),
        image: config.images_default.clone(),
        image_source: source(config.images_source),
        agent,
        pool_size: size(config.pool_size.into()),
        memory_mb: config.vm_memory_mb,
        vcpu_count: config.vm_vcpu_count,
        disk_bytes: u64::from(config.vm_disk_gib) << 30,
        pids: config.vm_pids,
        open_files: config.vm_open_files.into(),
        vms_limit: size(config.limits_vms.into()),
        output_bytes: config.limits_output_bytes,
        pool_bytes: config.disks_size_gib.map(|gib| gib << 30),
        disk_driver: match config.disks_driver {
            DiskDriverChoice::Auto => DiskDriver::Auto,
            DiskDriverChoice::Btrfs => DiskDriver::Btrfs,
            DiskDriverChoice::Directory => DiskDriver::Directory,
        },
        scrub_every: (config.disks_scrub_hours > 0)
            .then(|| Duration::from_secs(u64::from(config.disks_scrub_hours) * SECONDS_PER_HOUR)),
        registry_auth: config.images_registry_auth.clone(),
        private_registries: config.images_private_registries,
        build_timeout: Duration::from_secs(config.images_build_timeout_seconds.into()),
        network_range: config.network_range.0.network(),
        denied_ranges: config.network_denied_ranges.clone(),
        resolvers: (!resolvers.is_empty()).then_some(resolvers),
        upstream_proxy: config.network_upstream_proxy.clone(),
        vm_rate_mbit: Some(config.network_vm_rate_mbit).filter(|rate| *rate > 0),
        extra_ca: config.runtime_extra_ca.clone(),
    }
}

fn settings(config: &Config) -> Settings {
    let defaults = Settings::default();
    Settings {
        session_lifetime_default: config.session_lifetime_seconds,
        vm_lifetime_default: config.vm_lifetime_seconds,
        lifetime_range: *defaults.lifetime_range.start()..=config.limits_lifetime_seconds_max,
        memory_default_mb: config.vm_memory_mb,
        memory_range_mb: *defaults.memory_range_mb.start()..=config.limits_memory_mb_max,
        vcpu_default: config.vm_vcpu_count,
        vcpu_range: *defaults.vcpu_range.start()..=config.limits_vcpu_count_max,
        disk_bytes: u64::from(config.vm_disk_gib) << 30,
        vms_per_account: size(config.limits_vms_per_account.into()),
        body_limit: size(config.limits_json_bytes),
        body_memory: body_memory(defaults.body_memory),
        upload_limit: config.limits_upload_bytes,
        execute_timeout_default: config.limits_execute_timeout_seconds,
        background_timeout_default: config.limits_execute_async_timeout_seconds,
        execute_timeout_range: *defaults.execute_timeout_range.start()
            ..=config.limits_execute_timeout_seconds_max,
        execution_retention: Duration::from_secs(config.executions_retention_seconds.into()),
        record_retention: Duration::from_secs(config.records_retention_seconds.into()),
        ..defaults
    }
}

/// What bodies of requests may take together: an eighth of the host's memory, and no more than is useful.
fn body_memory(most: usize) -> usize {
    let kib = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
            line?.split_whitespace().next()?.parse::<u64>().ok()
        });
    kib.map_or(most, |kib| most.min(size((kib << 10) / 8)))
}

fn source(choice: ImageSource) -> Option<Source> {
    match choice {
        ImageSource::Auto => None,
        ImageSource::Debian => Some(Source::Debian),
        ImageSource::Host => Some(Source::Host),
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
