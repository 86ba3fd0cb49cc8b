//! Trust anchors: the authorities that VMs trust because the host does.
//!
//! A host whose outside goes through a proxy with a private authority would otherwise have VMs in which no `pip
//! install` works.

use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// Where Debian, Ubuntu and Alpine keep the authorities that an administrator has added.
const LOCAL_AUTHORITIES: &str = "/usr/local/share/ca-certificates";
/// The bundle that programs of an image read.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Authorities to add to an image, each a PEM text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustAnchors {
    authorities: Vec<String>,
}

impl TrustAnchors {
    /// The authorities that the host itself has added locally. A host without any has none.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of_host() -> io::Result<Self> {
        let Ok(entries) = std::fs::read_dir(LOCAL_AUTHORITIES) else {
            return Ok(Self::default());
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "crt" || e == "pem"));
        Self::of_files(&files)
    }

    /// The authorities in the given files.
    ///
    /// # Errors
    /// When a file cannot be read or holds no certificate.
    pub fn of_files(files: &[PathBuf]) -> io::Result<Self> {
        let mut files = files.to_vec();
        files.sort();
        let mut authorities = Vec::new();
        for file in files {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", file.display()));
            let text = std::fs::read_to_string(&file).map_err(named)?;
            if !text.contains("-----BEGIN CERTIFICATE-----") {
                return Err(named(io::Error::other("no certificate in PEM form")));
            }
            authorities.push(text);
        }
        Ok(Self { authorities })
    }

    /// The PEM texts.
    pub fn authorities(&self) -> &[String] {
        &self.authorities
    }

    /// A short name for exactly these authorities.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for text in &self.authorities {
            hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.finalize()[..6]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Adds the authorities to the trust stores of the root file system at `root`, which nobody else can change yet.
    ///
    /// # Errors
    /// The system's.
    pub fn install(&self, root: &Path) -> io::Result<()> {
        if self.authorities.is_empty() {
            return Ok(());
        }
        let local = root.join(LOCAL_AUTHORITIES.trim_start_matches('/'));
        std::fs::create_dir_all(&local)?;
        let bundle = root.join(BUNDLE);
        let mut text = std::fs::read_to_string(&bundle).unwrap_or_default();
        for (number, authority) in self.authorities.iter().enumerate() {
            std::fs::write(local.join(format!("host-{number}.crt")), authority)?;
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(authority);
        }
        if let Some(folder) = bundle.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&bundle, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_added_to_the_bundle_and_named_by_content() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("a.crt");
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&file, pem).unwrap();
        let anchors = TrustAnchors::of_files(&[file]).unwrap();
        let bundle = root.path().join(BUNDLE);
        std::fs::create_dir_all(bundle.parent().unwrap()).unwrap();
        std::fs::write(&bundle, "old").unwrap();
        anchors.install(root.path()).unwrap();
        assert_eq!(
            std::fs::read_to_string(bundle).unwrap(),
            format!("old\n{pem}")
        );
        assert_ne!(anchors.fingerprint(), TrustAnchors::default().fingerprint());
    }

    #[test]
    fn a_file_without_a_certificate_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("b.pem");
        std::fs::write(&file, "hello").unwrap();
        let error = TrustAnchors::of_files(&[file]).unwrap_err();
        assert!(error.to_string().contains("b.pem"));
    }
}
