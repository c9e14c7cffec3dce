//! What the server and the client share for TLS: the cryptography, and certificates and keys in PEM files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::regular_file;

/// The protocol that client and server agree on within the handshake (ALPN): HTTP/2.
pub(crate) const ALPN: &[u8] = b"h2";

/// The only cryptography in the program.
pub(crate) fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Why a PEM file cannot be used. Displayed as its path and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {reason}", .path.display())]
pub struct FileError {
    /// The path of the file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl FileError {
    fn new(path: &Path, reason: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// Reads the certificates in a file, of which there is at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let text = regular_file::read(path).map_err(|reason| FileError::new(path, reason))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| FileError::new(path, format!("is not a valid PEM file: {error}")))?;
    if certificates.is_empty() {
        let reason = "contains no certificate; expected \"-----BEGIN CERTIFICATE-----\"";
        return Err(FileError::new(path, reason));
    }
    Ok(certificates)
}

/// Reads the private key in a file.
pub(crate) fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let text = regular_file::read(path).map_err(|reason| FileError::new(path, reason))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let reason = match error {
            pem::Error::NoItemsFound => {
                "contains no private key; expected \"-----BEGIN PRIVATE KEY-----\", without a password"
                    .to_owned()
            }
            error => format!("is not a valid PEM file: {error}"),
        };
        FileError::new(path, reason)
    })
}

/// Makes the certificates of a file trusted.
pub(crate) fn roots(
    path: &Path,
    certificates: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| {
            FileError::new(path, format!("contains a certificate that is not valid: {error}"))
        })?;
    }
    Ok(roots)
}
