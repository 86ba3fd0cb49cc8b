//! Images made entry by entry, so that they can be as wrong as a test wants.

use sha2::{Digest, Sha256};
use std::io::Write;

pub const REGULAR: u8 = b'0';
pub const HARDLINK: u8 = b'1';
pub const SYMLINK: u8 = b'2';
pub const CHARACTER: u8 = b'3';
pub const BLOCK: u8 = b'4';
pub const FOLDER: u8 = b'5';
pub const FIFO: u8 = b'6';

pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// A tar archive under construction.
#[derive(Clone, Debug, Default)]
pub struct Tar(Vec<u8>);

/// What a header says, where it is not the usual.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    pub kind: u8,
    pub link: &'a [u8],
    pub mode: u32,
    pub owner: u64,
    pub group: u64,
    pub size: Option<u64>,
}

impl Default for Said<'_> {
    fn default() -> Self {
        Self {
            kind: REGULAR,
            link: b"",
            mode: 0o644,
            owner: 0,
            group: 0,
            size: None,
        }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn entry(mut self, name: impl AsRef<[u8]>, said: Said<'_>, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.as_ref().len()].copy_from_slice(name.as_ref());
        old.linkname[..said.link.len()].copy_from_slice(said.link);
        header.set_entry_type(tar::EntryType::new(said.kind));
        header.set_mode(said.mode);
        header.set_uid(said.owner);
        header.set_gid(said.group);
        header.set_mtime(1_600_000_000);
        header.set_size(said.size.unwrap_or(content.len() as u64));
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.raw(content)
    }

    /// Content, filled to whole blocks.
    pub fn raw(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(name, Said::default(), content.as_ref())
    }

    pub fn folder(self, name: &str) -> Self {
        let said = Said {
            kind: FOLDER,
            mode: 0o755,
            ..Said::default()
        };
        self.entry(name, said, b"")
    }

    pub fn link(self, kind: u8, name: &str, target: &str) -> Self {
        let said = Said {
            kind,
            link: target.as_bytes(),
            mode: 0o777,
            ..Said::default()
        };
        self.entry(name, said, b"")
    }

    /// Attributes of the entry that comes next.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        let said = Said {
            kind: b'x',
            ..Said::default()
        };
        self.entry("pax", said, &text)
    }

    /// A GNU entry that names the next one: `L` its path, `K` its target.
    pub fn long(self, kind: u8, name: &str) -> Self {
        let said = Said {
            kind,
            ..Said::default()
        };
        self.entry("././@LongLink", said, format!("{name}\0").as_bytes())
    }

    /// The archive, with its end.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

/// A layer: what is sent, and what its image says of it.
#[derive(Clone, Debug)]
pub struct Layer {
    pub kind: &'static str,
    pub blob: Vec<u8>,
    pub content: String,
    pub size: u64,
    pub digest: String,
}

impl Layer {
    pub fn of(tar: &Tar, kind: &'static str) -> Self {
        Self::of_bytes(&tar.bytes(), kind)
    }

    pub fn of_bytes(bytes: &[u8], kind: &'static str) -> Self {
        let blob = match kind {
            GZIP | DOCKER_GZIP => gzip(bytes),
            ZSTD => zstd::encode_all(bytes, 1).unwrap(),
            _ => bytes.to_vec(),
        };
        Self::raw(blob, digest(bytes), kind)
    }

    pub fn raw(blob: Vec<u8>, content: String, kind: &'static str) -> Self {
        Self {
            kind,
            size: blob.len() as u64,
            digest: digest(&blob),
            content,
            blob,
        }
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image: a manifest, a configuration and layers.
#[derive(Clone, Debug)]
pub struct Image {
    pub kind: &'static str,
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub layers: Vec<Layer>,
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Image {
    pub fn new(layers: &[Layer]) -> Self {
        Self::with(layers, OCI_MANIFEST, architecture(), serde_json::json!({}))
    }

    pub fn of(tar: &Tar) -> Self {
        Self::new(&[Layer::of(tar, GZIP)])
    }

    pub fn with(
        layers: &[Layer],
        kind: &'static str,
        architecture: &str,
        run: serde_json::Value,
    ) -> Self {
        let contents: Vec<&String> = layers.iter().map(|layer| &layer.content).collect();
        let config = serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": contents},
        })
        .to_string()
        .into_bytes();
        let listed: Vec<serde_json::Value> = layers
            .iter()
            .map(|layer| {
                serde_json::json!({
                    "mediaType": layer.kind, "digest": layer.digest, "size": layer.size,
                })
            })
            .collect();
        let config_kind = if kind == DOCKER_MANIFEST {
            "application/vnd.docker.container.image.v1+json"
        } else {
            "application/vnd.oci.image.config.v1+json"
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {"mediaType": config_kind, "digest": digest(&config), "size": config.len()},
            "layers": listed,
        });
        Self {
            kind,
            manifest: manifest.to_string().into_bytes(),
            config,
            layers: layers.to_vec(),
        }
    }

    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }
}
