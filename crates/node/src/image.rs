//! The image that VMs start from, brought from the host's cache into the pool.

use crate::config::NodeConfig;
use crate::node::OpenError;
use instavm_runtime::disk::DiskPool;
use instavm_runtime::image::ImageStore;
use instavm_runtime::image::oci::{OciConfig, OciStore};
use instavm_runtime::trust::TrustAnchors;
use std::io;
use std::path::{Path, PathBuf};

/// The folders that every VM has, beside what its image brings, with their permissions.
const FOLDERS: &[(&str, u32)] = &[
    ("app", 0o777),
    ("workspace", 0o777),
    ("dev", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("root", 0o700),
];

/// The authorities that VMs are to trust.
pub(crate) fn anchors(config: &NodeConfig) -> Result<TrustAnchors, OpenError> {
    let anchors = match &config.extra_ca {
        Some(files) => TrustAnchors::of_files(files),
        None => TrustAnchors::of_host(),
    };
    anchors.map_err(OpenError::Authorities)
}

/// The store of images from registries.
pub(crate) fn registry(config: &NodeConfig) -> Result<OciStore, OpenError> {
    let oci = OciConfig {
        auth_file: config.registry_auth.clone(),
        extra_ca: config.extra_ca.clone().unwrap_or_default(),
        private_registries: config.private_registries,
        anchors: anchors(config)?,
        ..OciConfig::new(config.image_cache.join("blobs"))
    };
    OciStore::new(oci).map_err(OpenError::Registry)
}

/// Makes sure that the configured image is in the pool; returns where. Slow the first time: minutes when the image
/// must be built, seconds when it must be imported.
pub(crate) fn ensure(
    config: &NodeConfig,
    disks: &DiskPool,
    progress: &dyn Fn(&str),
) -> Result<PathBuf, OpenError> {
    let anchors = anchors(config)?;
    let store = ImageStore::open(&config.image_cache).map_err(OpenError::image)?;
    let image = store
        .ensure(&config.image, config.image_source, progress)
        .map_err(OpenError::image)?;
    let digest: String = image
        .digest
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let key = format!(
        "{}-{}",
        digest.get(..32).unwrap_or(&digest),
        anchors.fingerprint()
    );
    let fill = |root: &Path| {
        store
            .import(&image, root, progress)
            .map_err(io::Error::other)?;
        anchors.install(root)?;
        FOLDERS
            .iter()
            .try_for_each(|(name, mode)| folder(&root.join(name), *mode))
    };
    Ok(disks.ensure_image(&key, fill)?)
}

fn folder(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))
}
