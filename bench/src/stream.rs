//! A socket, with TLS or without.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::error::BenchError;

/// What a TLS handshake needs.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// Trusts the issuers in the file `ca`. `server` is host and port.
    pub(super) fn new(ca: &Path, server: &str) -> Result<Self, BenchError> {
        let wrong = |why: String| BenchError::Plan(format!("--ca {}: {why}", ca.display()));
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(ca).map_err(|error| wrong(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self {
            config: Arc::new(config),
            name: ServerName::try_from(host).map_err(|error| BenchError::Plan(error.to_string()))?,
        })
    }
}

/// A connected socket.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

/// A socket with TLS. Nothing that was received stays in the session, because a read takes more than the session keeps.
#[derive(Debug)]
pub(super) struct TlsStream {
    tcp: TcpStream,
    session: ClientConnection,
}

/// A socket as [`std::io`] knows it, which returns [`ErrorKind::WouldBlock`] instead of waiting.
struct NonBlocking<'a>(&'a TcpStream);

impl Read for NonBlocking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for NonBlocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// Performs a TLS handshake.
    pub(super) async fn handshake(tcp: TcpStream, tls: &Tls) -> io::Result<Self> {
        let session = ClientConnection::new(Arc::clone(&tls.config), tls.name.clone());
        let session = session.map_err(io::Error::other)?;
        let mut stream = TlsStream { tcp, session };
        loop {
            stream.send()?;
            if !stream.session.is_handshaking() {
                return Ok(Self::Tls(Box::new(stream)));
            }
            stream.tcp.ready(stream.interest()).await?;
            match stream.receive() {
                Ok(true) => {}
                Ok(false) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Plain(tcp) => tcp.ready(interest).await,
            Self::Tls(stream) => stream.tcp.ready(interest | stream.interest()).await,
        }
    }

    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_read(buffer),
            Self::Tls(stream) => stream.try_read(buffer),
        }
    }

    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(stream) => stream.try_write(bytes),
        }
    }

    /// Sends what an earlier write has left in the session.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => stream.send(),
        }
    }
}

impl TlsStream {
    fn interest(&self) -> Interest {
        if self.session.wants_write() {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        }
    }

    /// Writes encrypted bytes as far as the socket accepts them.
    fn send(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut NonBlocking(&self.tcp)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads encrypted bytes once. Returns false at the end of the stream.
    fn receive(&mut self) -> io::Result<bool> {
        if self.session.read_tls(&mut NonBlocking(&self.tcp))? == 0 {
            return Ok(false);
        }
        self.session.process_new_packets().map_err(io::Error::other)?;
        Ok(true)
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            if !self.receive()? {
                return Ok(0);
            }
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.session.writer().write(bytes)?;
        self.send()?;
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(count)
    }
}
