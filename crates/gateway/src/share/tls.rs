//! The certificate of host names, read again when its files change.

use super::TlsFiles;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Between two looks at whether the files have changed.
const LOOK: Duration = Duration::from_secs(5);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("{} holds no {what} in PEM (keys `share.tls_certificate`, `share.tls_key`)", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The two do not fit.
    #[error("the certificate {} and its key do not serve", path.display())]
    Pair {
        /// The certificate.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// The certificate that is served now.
pub(super) struct Certificate {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
}

type Stamps = [Option<SystemTime>; 2];

fn stamp(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let file = |path: &PathBuf, what| {
        let path = path.clone();
        move |source| TlsError::File { path, what, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(file(&files.certificate, "certificate"))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(file(&files.key, "private key"))?;
    let pair = |source| TlsError::Pair {
        path: files.certificate.clone(),
        source,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Certificate {
    pub(super) fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = RwLock::new(load(&files)?);
        Ok(Self { files, current })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(current.clone())
    }

    fn stamps(&self) -> Stamps {
        [stamp(&self.files.certificate), stamp(&self.files.key)]
    }

    /// Reads the files again whenever they have changed. What cannot be read leaves the old certificate in force.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        let mut seen = self.stamps();
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK))
            .await
            .is_some()
        {
            let now = self.stamps();
            if now == seen {
                continue;
            }
            match load(&self.files) {
                Ok(config) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                    seen = now;
                    tracing::info!("the certificate of shares was read again");
                }
                // The two files change one after the other: the next look tries again.
                Err(error) => {
                    tracing::warn!(%error, "the certificate of shares has changed and does not serve")
                }
            }
        }
    }
}
