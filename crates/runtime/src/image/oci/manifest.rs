//! What manifests and configurations say: the layers of an image, and how it wants to be run.

use super::blob::Wanted;
use super::reference::Digest;
use super::{OciError, OciRunConfig};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Platform};
use sha2::{Digest as _, Sha256};

const MOST_LAYERS: usize = 512;
const MOST_ENTRIES: usize = 4096;
/// The kinds of layer that are understood; how one is compressed is seen from its content.
const LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A manifest, of either sort.
#[derive(Debug)]
pub(super) enum Manifest {
    /// A list of images, one a platform.
    Index(ImageIndex),
    /// One image.
    Image(Parts),
}

/// What an image is made of.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) config: Wanted,
    pub(super) layers: Vec<Wanted>,
}

/// What an image's configuration says.
#[derive(Clone, Debug)]
pub(super) struct Configuration {
    /// The digests of the layers' content.
    pub(super) contents: Vec<Digest>,
    pub(super) run: OciRunConfig,
}

/// Just enough of a manifest to see of which sort it is.
#[derive(serde::Deserialize)]
struct Sort {
    #[serde(rename = "schemaVersion")]
    version: Option<u64>,
    #[serde(rename = "mediaType")]
    kind: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest.
pub(super) fn read(text: &[u8], kind: Option<&str>) -> Result<Manifest, OciError> {
    let sort: Sort = parse(text, "manifest")?;
    if sort.version != Some(2) {
        return Err(unsupported(
            "its manifest is of an old form (schema 1): push it again with a newer tool".into(),
        ));
    }
    let kind = sort.kind.as_deref().or(kind).unwrap_or_default();
    let is_index = kind.ends_with("index.v1+json") || kind.ends_with("manifest.list.v2+json");
    if is_index || (kind.is_empty() && sort.manifests.is_some()) {
        return Ok(Manifest::Index(parse(text, "list of manifests")?));
    }
    let manifest: ImageManifest = parse(text, "manifest")?;
    if manifest.layers().len() > MOST_LAYERS {
        return Err(unsupported(format!(
            "it has more than {MOST_LAYERS} layers"
        )));
    }
    let layers = manifest.layers().iter().map(|layer| {
        let kind = layer.media_type().to_string();
        if LAYERS.contains(&kind.as_str()) {
            return wanted(layer);
        }
        Err(unsupported(format!(
            "one of its layers is of the kind {kind:?}, which is no layer of a Linux image"
        )))
    });
    Ok(Manifest::Image(Parts {
        layers: layers.collect::<Result<_, _>>()?,
        config: wanted(manifest.config())?,
    }))
}

/// The image for this machine's platform in a list.
pub(super) fn for_this_machine(index: &ImageIndex) -> Result<Digest, OciError> {
    let (architecture, variant) = architecture();
    let fits = |platform: &Platform| {
        platform.os().to_string() == "linux" && platform.architecture().to_string() == architecture
    };
    let all = index.manifests();
    if all.len() > MOST_ENTRIES {
        return Err(unsupported("its list of platforms is too long".into()));
    }
    let fitting: Vec<(&Descriptor, Option<&str>)> = all
        .iter()
        .filter_map(|entry| {
            let platform = entry.platform().as_ref().filter(|p| fits(p))?;
            Some((entry, platform.variant().as_deref()))
        })
        .collect();
    // One that is for every machine of the kind, before one that may want a newer one.
    let best = fitting
        .iter()
        .find(|(_, found)| found.is_none() || *found == variant)
        .or(fitting.iter().find(|(_, found)| *found == Some("v1")));
    match best {
        Some((entry, _)) => Ok(wanted(entry)?.digest),
        None => {
            let mut there: Vec<String> = all
                .iter()
                .filter_map(|entry| entry.platform().as_ref())
                .map(|p| format!("{}/{}", p.os(), p.architecture()))
                .filter(|name| name != "unknown/unknown")
                .collect();
            there.sort();
            there.dedup();
            there.truncate(20);
            Err(unsupported(format!(
                "it is not for linux/{architecture}, but for {}",
                there.join(", ")
            )))
        }
    }
}

/// Reads a configuration, and compares it with the manifest and with this machine.
pub(super) fn configuration(text: &[u8], parts: &Parts) -> Result<Configuration, OciError> {
    let config: ImageConfiguration = parse(text, "configuration")?;
    let (architecture, _) = architecture();
    let (os, found) = (config.os().to_string(), config.architecture().to_string());
    if os != "linux" || found != architecture {
        return Err(unsupported(format!(
            "it is not for linux/{architecture}, but for {os}/{found}"
        )));
    }
    let contents = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|id| {
            Digest::parse(id).ok_or_else(|| {
                unsupported("its configuration names a layer by something else than sha256".into())
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if contents.len() != parts.layers.len() {
        return Err(unsupported(format!(
            "its manifest has {} layers, its configuration {}",
            parts.layers.len(),
            contents.len()
        )));
    }
    let run = config.config().as_ref().map(run_config).unwrap_or_default();
    Ok(Configuration { contents, run })
}

fn run_config(config: &oci_spec::image::Config) -> OciRunConfig {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let env = config.env().iter().flatten().filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    });
    OciRunConfig {
        env: env.collect(),
        workdir: filled(config.working_dir()),
        user: filled(config.user()),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        command: config.cmd().clone().unwrap_or_default(),
    }
}

/// The chain ids of an image's layers: what names a layer together with all below it.
pub(super) fn chain(contents: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(contents.len());
    for content in contents {
        let id = match chain.last() {
            None => content.clone(),
            Some(below) => Digest::of_hash(Sha256::new_with_prefix(format!("{below} {content}"))),
        };
        chain.push(id);
    }
    chain
}

/// This machine, as images name it.
fn architecture() -> (&'static str, Option<&'static str>) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "x86" => ("386", None),
        "powerpc64" => ("ppc64le", None),
        other => (other, None),
    }
}

fn wanted(descriptor: &Descriptor) -> Result<Wanted, OciError> {
    let digest = Digest::parse(&descriptor.digest().to_string()).ok_or_else(|| {
        unsupported("it names one of its parts by something else than sha256".into())
    })?;
    Ok(Wanted {
        digest,
        size: descriptor.size(),
    })
}

fn parse<'a, T: serde::Deserialize<'a>>(text: &'a [u8], what: &str) -> Result<T, OciError> {
    serde_json::from_slice(text).map_err(|e| unsupported(format!("its {what} is none: {e}")))
}

fn unsupported(reason: String) -> OciError {
    OciError::Unsupported { reason }
}
