//! TLS of the gRPC port: the certificate, which is replaced while the server runs, and the handshake.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, InconsistentKeys, OtherError, ServerConfig,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;

use super::certificate_expiry::not_after;
use super::connection_budgets::ConnectionBudgets;
use super::linger::linger;
use super::observer::Observer;
use super::tls_connection::{TlsConnection, TlsSocket, end_handshake};
use crate::file_poller::FilePoller;
use crate::run_queue::requeue;
use crate::tls::{ALPN, FileError, crypto_provider, read_certificates, read_private_key, roots};

/// How many handshakes are computed in one turn of the scheduler. Signing takes up to a millisecond. When all clients reconnect
/// at once, more would delay the messages of those who are connected.
const CONCURRENT_HANDSHAKES: usize = 4;

/// How many certificates a client may send: its own and three issuers.
const MAX_CHAIN: usize = 4;

/// The files with the server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those of its issuers, without the root (PEM).
    pub certificate: PathBuf,
    /// The private key (PEM).
    pub key: PathBuf,
    /// The issuers of the certificates that clients must have (PEM). `None` if clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// Why the server's certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerTlsError {
    /// The file with the certificate is wrong.
    #[error("--tls-cert {0}")]
    Certificate(FileError),
    /// The file with the key is wrong.
    #[error("--tls-key {0}")]
    Key(FileError),
    /// The file with the issuers of clients' certificates is wrong.
    #[error("--tls-client-ca {0}")]
    ClientCa(FileError),
    /// The key does not belong to the certificate.
    #[error(
        "--tls-key {} is not the key of the first certificate in --tls-cert {}",
        .0.key.display(), .0.certificate.display()
    )]
    OtherKey(TlsFiles),
    /// The TLS library rejects them.
    #[error("--tls-cert {} with --tls-key {} cannot be used: {reason}", .files.certificate.display(), .files.key.display())]
    Unusable {
        /// The files.
        files: TlsFiles,
        /// The reason that the library gives.
        reason: String,
    },
}

/// The content of the files.
#[derive(Debug, PartialEq, Eq)]
struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_ca: Option<Vec<CertificateDer<'static>>>,
}

impl Credentials {
    fn read(files: &TlsFiles) -> Result<Self, ServerTlsError> {
        let client_ca = files.client_ca.as_deref().map(read_certificates).transpose();
        Ok(Self {
            chain: read_certificates(&files.certificate).map_err(ServerTlsError::Certificate)?,
            key: read_private_key(&files.key).map_err(ServerTlsError::Key)?,
            client_ca: client_ca.map_err(ServerTlsError::ClientCa)?,
        })
    }

    fn config(&self, files: &TlsFiles) -> Result<ServerConfig, ServerTlsError> {
        let unusable = |reason: &dyn ToString| ServerTlsError::Unusable {
            files: files.clone(),
            reason: reason.to_string(),
        };
        let builder = ServerConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?;
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(certificates), Some(path)) => {
                let roots = roots(path, certificates.iter().cloned()).map_err(ServerTlsError::ClientCa)?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
                        .build()
                        .map_err(|error| unusable(&error))?;
                builder.with_client_cert_verifier(Arc::new(ShortChains(verifier)))
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    ServerTlsError::OtherKey(files.clone())
                }
                error => unusable(&error),
            })?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Clients that reconnect need no signature. The keys of the tickets end with the certificate, so that a client whose
        // issuer is no longer trusted cannot resume.
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|error| unusable(&error))?;
        Ok(config)
    }

    /// When the first certificate of the chain expires.
    fn not_after(&self) -> Option<SystemTime> {
        self.chain
            .iter()
            .filter_map(|certificate| not_after(certificate))
            .min()
    }
}

/// A client sends more than [`MAX_CHAIN`] certificates.
#[derive(Debug, thiserror::Error)]
#[error("the client has sent {0} certificates; it may send at most {MAX_CHAIN}")]
struct LongChain(usize);

/// Verifies certificates of clients, unless there are so many in the chain that it takes long to find out which of them has signed which: with
/// dozens of one name up to 200,000 chains are tried.
#[derive(Debug)]
struct ShortChains(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ShortChains {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let count = 1 + intermediates.len();
        if count > MAX_CHAIN {
            let error = OtherError(Arc::new(LongChain(count)));
            return Err(CertificateError::Other(error).into());
        }
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The server's certificate, and the handshakes that use it.
pub struct ServerTls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
    credentials: FilePoller<Result<Credentials, ServerTlsError>>,
    computing: Semaphore,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// If one cannot be read, or they do not fit together.
    pub fn load(files: TlsFiles) -> Result<Self, ServerTlsError> {
        let credentials = Credentials::read(&files)?;
        let config = credentials.config(&files)?;
        Ok(Self {
            files,
            config: RwLock::new(Arc::new(config)),
            credentials: FilePoller::new(Ok(credentials)),
            computing: Semaphore::new(CONCURRENT_HANDSHAKES),
        })
    }

    /// When the first certificate of the chain expires; `None` if that cannot be read.
    #[must_use]
    pub fn not_after(&self) -> Option<SystemTime> {
        self.credentials
            .with(|read| read.as_ref().ok().and_then(Credentials::not_after))
    }

    /// Makes [`ServerTls::watch`] read the files at once.
    pub fn request_reload(&self) {
        self.credentials.request();
    }

    /// Reads the files every two seconds and when a reload is requested. New connections use what they contain; if it is not
    /// valid they use what they used before, and `observer` learns of it.
    pub async fn watch(self: Arc<Self>, observer: Arc<dyn Observer>) {
        let this = Arc::clone(&self);
        let reload = move |is_requested| this.reload(is_requested, &*observer);
        self.credentials.watch(reload).await;
    }

    fn reload(&self, is_requested: bool, observer: &dyn Observer) {
        let credentials = Credentials::read(&self.files);
        self.credentials.update(credentials, is_requested, |credentials| {
            let config = match credentials {
                Ok(credentials) => credentials.config(&self.files),
                Err(error) => Err(error.clone()),
            };
            match config {
                Ok(config) => {
                    *self.config.write() = Arc::new(config);
                    observer.tls_reloaded(credentials.as_ref().ok().and_then(Credentials::not_after));
                }
                Err(error) => observer.tls_reload_failed(&error),
            }
        });
    }

    /// Performs the handshake with a client that has begun one. The caller limits the time.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        budgets: Arc<ConnectionBudgets>,
    ) -> io::Result<TlsConnection> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), TlsSocket::new(stream)).await?;
        // Whoever has not sent its half of the handshake does not keep others waiting.
        let of_address = budgets.address.handshakes.acquire().await;
        let computing = self.computing.acquire().await;
        let config = Arc::clone(&self.config.read());
        let handshake = start.into_stream(config);
        requeue().await;
        drop((computing, of_address));
        match handshake.into_fallible().await {
            Ok(mut connection) => {
                end_handshake(&mut connection, budgets);
                Ok(connection)
            }
            Err((error, socket)) => {
                // The client must be able to read the alert, which says what is wrong.
                linger(socket.into_stream()).await;
                Err(error)
            }
        }
    }
}
