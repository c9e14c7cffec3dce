//! Connections over TLS.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::{ServiceExt as _, service_fn};

use super::tls_error::TlsError;
use crate::tls::{ALPN, crypto_provider, read_certificates, read_private_key, roots};

/// How the server of an `https://` address is authenticated, and how the client authenticates itself.
///
/// The files are read for each connection, so that renewed ones are used when the client reconnects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// The CA certificates that are trusted (PEM). Default: those that the system trusts.
    pub ca: Option<PathBuf>,
    /// The client's certificate and the intermediate CA certificates (PEM). Needs [`key`](Self::key). Default: none.
    pub certificate: Option<PathBuf>,
    /// The private key of [`certificate`](Self::certificate) (PEM).
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must have. Default: the host of the address.
    pub server_name: Option<String>,
}

impl TlsOptions {
    /// Reads the files. Blocks.
    fn config(&self) -> Result<ClientConfig, TlsError> {
        let options = |error: &dyn ToString| TlsError::Options(error.to_string());
        let roots = match &self.ca {
            Some(path) => read_certificates(path)
                .and_then(|certificates| roots(path, certificates))
                .map_err(|error| options(&error))?,
            None => system_roots()?,
        };
        let builder = ClientConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| options(&error))?
            .with_root_certificates(roots);
        let mut config = match (&self.certificate, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate), Some(key)) => {
                let chain = read_certificates(certificate).map_err(|error| options(&error))?;
                let key_pem = read_private_key(key).map_err(|error| options(&error))?;
                builder.with_client_auth_cert(chain, key_pem).map_err(|error| {
                    let (certificate, key) = (certificate.display(), key.display());
                    TlsError::Options(format!(
                        "the key {key} cannot be used with {certificate}: {error}"
                    ))
                })?
            }
            _ => return Err(options(&"a certificate needs its key, and a key its certificate")),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

/// The CA certificates that the system trusts.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let mut reason = "the system has no trusted certificates".to_owned();
    if let Some(error) = found.errors.first() {
        reason = format!("{reason} ({error})");
    }
    Err(TlsError::Options(format!(
        "{reason}; install them (ca-certificates), or give the CA certificate with --ca"
    )))
}

/// Connects to `endpoint`, whose host is `host`. If the connection breaks later because of TLS, the reason is put into `failure`.
pub(super) async fn connect(
    endpoint: &Endpoint,
    host: &str,
    options: &TlsOptions,
    failure: &Arc<OnceLock<TlsError>>,
) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
    let name = options.server_name.as_deref().unwrap_or(host);
    let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
    let server_name = ServerName::try_from(name.clone())
        .map_err(|_| TlsError::Options(format!("{name:?} is not a name that a certificate can have")))?;
    let options = options.clone();
    let config = tokio::task::spawn_blocking(move || options.config()).await??;
    let connector = TlsConnector::from(Arc::new(config));
    let mut tcp = HttpConnector::new();
    // It connects to the host and port, whatever the scheme.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let failure = Arc::clone(failure);
    let connector = service_fn(move |uri: Uri| {
        let (tcp, connector, server_name) = (tcp.clone(), connector.clone(), server_name.clone());
        let failure = Arc::clone(&failure);
        async move {
            let stream = tcp.oneshot(uri).await?.into_inner();
            let io = connector.connect(server_name, stream).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(TokioIo::new(WatchedIo { io, failure }))
        }
    });
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// A connection that notes why it breaks, because the HTTP/2 library keeps only the text of that. A server that does not accept
/// the client's certificate says so after the handshake (TLS 1.3).
struct WatchedIo<T> {
    io: T,
    failure: Arc<OnceLock<TlsError>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read
            && let Some(error) = TlsError::find(error)
        {
            // Only the first is the cause.
            self.failure.set(error).ok();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WatchedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
