//! The images of this host's cache. The store's calls block, so each runs on a thread of its own.

use super::source;
use crate::cli::BuildSource;
use crate::commands::doctor::Finding;
use crate::commands::image::ImageLine;
use crate::config::{Config, ImageSource};
use crate::output;
use crate::rooms::RoomError;
use instavm_runtime::image::{Image, ImageError, ImageStore, Source};
use std::path::PathBuf;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Builds an image; says on standard error how far it is.
pub(crate) async fn build_image(
    config: &Config,
    from: Option<BuildSource>,
    name: Option<String>,
) -> Result<ImageLine, RoomError> {
    let from = match from {
        Some(BuildSource::Debian) => Some(Source::Debian),
        Some(BuildSource::Host) => Some(Source::Host),
        None => source(config.images_source),
    };
    let name = name.unwrap_or_else(|| config.images_default.clone());
    with_store(config, move |store| match from {
        Some(from) => store.build(from, &name, &output::note),
        None => match store.build(Source::Debian, &name, &output::note) {
            Err(ImageError::BadName(name)) => Err(ImageError::BadName(name)),
            Err(error) => {
                output::note(&format!(
                    "no image from Debian's packages ({}); taking this host's programs",
                    output::with_causes(&error)
                ));
                store.build(Source::Host, &name, &output::note)
            }
            built => built,
        },
    })
    .await
    .map(line)
}

/// All images.
pub(crate) async fn list_images(config: &Config) -> Result<Vec<ImageLine>, RoomError> {
    let images = with_store(config, |store| store.list()).await?;
    Ok(images.into_iter().map(line).collect())
}

/// Takes an image's name away.
pub(crate) async fn remove_image(config: &Config, name: &str) -> Result<(), RoomError> {
    let name = name.to_owned();
    with_store(config, move |store| store.remove(&name)).await
}

async fn with_store<T: Send + 'static>(
    config: &Config,
    work: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, RoomError> {
    let cache: PathBuf = config.images_cache_dir.clone();
    let done = tokio::task::spawn_blocking(move || work(&ImageStore::open(&cache)?));
    Ok(done.await??)
}

fn line(image: Image) -> ImageLine {
    ImageLine {
        name: image.name,
        digest: image.digest,
        source: image.source.as_str().to_owned(),
        size_bytes: image.size_bytes,
        created_at: OffsetDateTime::from(image.created)
            .format(&Rfc3339)
            .unwrap_or_default(),
    }
}

/// The program that makes an image from Debian's packages.
const DEBIAN_PROGRAM: &str = "mmdebstrap";

/// Whether VMs have an image to start from. Makes nothing.
pub(super) async fn finding(config: &Config) -> Finding {
    let name = config.images_default.clone();
    let cached = if config.images_cache_dir.is_dir() {
        with_store(config, move |store| store.get(&name)).await.ok()
    } else {
        None
    };
    let found = |ok, detail, fix: Option<&str>| Finding {
        name: "image".to_owned(),
        ok,
        required: false,
        detail,
        fix: fix.map(str::to_owned),
    };
    if let Some(image) = cached {
        let detail = format!("{} is there, made from {}", image.name, image.source);
        return found(true, detail, None);
    }
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let installed =
        std::env::split_paths(&searched).any(|folder| folder.join(DEBIAN_PROGRAM).is_file());
    if installed || config.images_source == ImageSource::Host {
        let detail = "made at the first start, which takes some minutes".to_owned();
        return found(true, detail, None);
    }
    found(
        false,
        format!("without {DEBIAN_PROGRAM} it is made from this host's programs, whatever they are"),
        Some("apt-get install mmdebstrap"),
    )
}
