//! The gateway of shares, between the platform that records them and the node that has the VMs.

use crate::config::{Config, PublicScheme};
use crate::rooms::RoomError;
use async_trait::async_trait;
use instavm_control::Platform;
use instavm_control::share::{Door, DoorError, Doors};
use instavm_gateway::share::{
    Config as GatewayConfig, Ended, KeyHolder, Keys, Place, Scheme, Share, Shares, TlsFiles,
};
use instavm_node_api::{Node, VmId};
use rand::Rng;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The file in the data directory with what cookies are signed by.
const SECRET: &str = "share.key";
/// Its length in bytes.
const SECRET_BYTES: usize = 32;

/// Whose a key is: asked of the platform, as soon as there is one.
#[derive(Default)]
pub(super) struct PlatformKeys(OnceLock<Platform>);

impl PlatformKeys {
    pub(super) fn set(&self, platform: &Platform) {
        self.0.get_or_init(|| platform.clone());
    }
}

#[async_trait]
impl Keys for PlatformKeys {
    fn known(&self, key: &str) -> Option<KeyHolder> {
        self.0.get()?.known_key(key).map(holder)
    }

    async fn holder(&self, key: &str) -> Option<KeyHolder> {
        self.0.get()?.key_holder(key).await.map(holder)
    }

    async fn account_of(&self, key_id: i64) -> Option<i64> {
        self.0.get()?.account_of_key(key_id).await
    }
}

fn holder(holder: instavm_control::KeyHolder) -> KeyHolder {
    KeyHolder {
        key_id: holder.key_id,
        account_id: holder.account_id,
    }
}

/// The gateway, as the platform knows it.
pub(super) struct GatewayDoors(pub(super) Shares);

impl Doors for GatewayDoors {
    fn open(&self, door: Door) -> Result<Option<u16>, DoorError> {
        let ended = door.is_over.then_some(if door.is_revoked {
            Ended::Revoked
        } else {
            Ended::VmEnded
        });
        let share = Share {
            id: door.id,
            account_id: door.account_id,
            vm: door.vm,
            port: door.port,
            is_public: door.is_public,
            created_at: door.created_at,
            listen_port: door.listen_port,
            ended,
        };
        self.0.open(share).map_err(|error| DoorError {
            reason: crate::output::with_causes(&error),
        })
    }

    fn set_public(&self, id: &str, is_public: bool) {
        self.0.set_public(id, is_public);
    }

    fn revoke(&self, id: &str) {
        self.0.end(id, Ended::Revoked);
    }

    fn end_vm(&self, vm: &VmId) {
        self.0.end_vm(vm);
    }

    fn url(&self, id: &str, listen_port: Option<u16>) -> String {
        self.0.url(id, listen_port)
    }
}

/// Starts the gateway; no share is open yet.
pub(super) async fn open(
    config: &Config,
    node: Arc<dyn Node>,
    keys: Arc<PlatformKeys>,
    tracker: TaskTracker,
    stop: CancellationToken,
) -> Result<Shares, RoomError> {
    let secret = secret(&config.data_dir)?;
    let shares = Shares::start(gateway_config(config), node, keys, &secret, tracker, stop).await?;
    if let Some(address) = shares.hosts_address() {
        tracing::info!(%address, "shares are served");
    }
    Ok(shares)
}

fn gateway_config(config: &Config) -> GatewayConfig {
    let place = match &config.share_domain {
        None => Place::Ports {
            address: config.share_address,
            ports: config.share_ports.0.clone(),
            public_host: config.share_public_host.as_ref().map(|host| host.0.clone()),
        },
        Some(domain) => Place::Hosts {
            domain: domain.0.clone(),
            listen: config.share_listen.0,
            tls: match (&config.share_tls_certificate, &config.share_tls_key) {
                (Some(certificate), Some(key)) => Some(TlsFiles {
                    certificate: certificate.clone(),
                    key: key.clone(),
                }),
                _ => None,
            },
            public_scheme: config.share_public_scheme.map(|scheme| match scheme {
                PublicScheme::Http => Scheme::Http,
                PublicScheme::Https => Scheme::Https,
            }),
            public_port: config
                .share_public_port
                .and_then(|port| u16::try_from(port).ok()),
        },
    };
    GatewayConfig {
        place,
        connections: super::size(config.share_connections.into()),
        requests_per_share: super::size(config.share_requests.into()),
    }
}

/// What cookies are signed by: made at the first start, readable by nobody else.
fn secret(data_dir: &Path) -> io::Result<Vec<u8>> {
    let path = data_dir.join(SECRET);
    match std::fs::read(&path) {
        Ok(secret) if secret.len() == SECRET_BYTES => return Ok(secret),
        Ok(_) => tracing::warn!("the key of share cookies is damaged, and made anew"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let secret: [u8; SECRET_BYTES] = rand::rng().random();
    let draft = path.with_extension("draft");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    std::fs::rename(&draft, &path)?;
    Ok(secret.to_vec())
}

/// Compares the shares that are served with those on record; one line a mismatch.
pub(super) fn mismatches(shares: &Shares, recorded: &[String]) -> Vec<String> {
    let served = shares.open_ids();
    let missing = recorded
        .iter()
        .filter(|id| !served.contains(id))
        .map(|id| format!("share {id}: open on record, but nobody listens for it"));
    let strays = served
        .iter()
        .filter(|id| !recorded.contains(id))
        .map(|id| format!("share {id}: listened for, but not open on record"));
    missing.chain(strays).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_secret_stays_and_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let first = secret(folder.path()).unwrap();
        assert_eq!(
            (first.len(), secret(folder.path()).unwrap()),
            (SECRET_BYTES, first)
        );
        let file = folder.path().join(SECRET);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&file, b"short").unwrap();
        assert_eq!(secret(folder.path()).unwrap().len(), SECRET_BYTES);
    }
}
