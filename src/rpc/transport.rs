//! The first bytes of a connection: whether it is encrypted, and the answer to a client that assumes otherwise.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection_budgets::ConnectionBudgets;
use super::linger::linger;
use super::observer::SetupError;
use super::rates::AddressRate;
use super::server_tls::ServerTls;
use super::tls_connection::{TlsConnection, poll_decrypted};

/// The first byte of a TLS connection: a record of the handshake. No text begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a client is told that expects TLS where there is none. To it this is no TLS, which is the usual sign of that mistake.
const NO_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
    This port does not use TLS; connect with http://\n";

/// What a client is told that speaks HTTP/1.
const NO_HTTP1: &[u8] =
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
    This port serves gRPC, which needs HTTP/2\n";

/// How long a client may take to accept such an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What handshakes need.
pub(super) struct Handshakes {
    pub(super) tls: Arc<ServerTls>,
    pub(super) rate: Arc<AddressRate>,
}

/// A connection, encrypted or not.
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsConnection>),
}

/// A new connection.
pub(super) enum Accepted {
    /// It is as the server expects.
    Ready(Transport),
    /// It is not encrypted, but should be.
    PlaintextOnTlsPort(Transport),
}

impl Transport {
    /// Waits for the client's first byte and performs the handshake if there are `handshakes`, all within `limit`.
    pub(super) async fn accept(
        stream: TcpStream,
        peer: SocketAddr,
        handshakes: Option<&Handshakes>,
        budgets: Arc<ConnectionBudgets>,
        limit: Duration,
    ) -> Result<Accepted, SetupError> {
        let accepting = async {
            let mut first = [0];
            let is_tls = match stream.peek(&mut first).await {
                Ok(1..) => first == [TLS_HANDSHAKE],
                Ok(0) | Err(_) => return Err(SetupError::NotHttp2),
            };
            match (handshakes, is_tls) {
                (None, false) => Ok(Accepted::Ready(Self::Plain(stream))),
                (Some(_), false) => Ok(Accepted::PlaintextOnTlsPort(Self::Plain(stream))),
                (None, true) => {
                    answer(stream, NO_TLS).await;
                    Err(SetupError::UnexpectedTls)
                }
                (Some(Handshakes { tls, rate }), true) => {
                    if rate.try_acquire(Some(peer.ip())).is_err() {
                        return Err(SetupError::TooManyHandshakes);
                    }
                    match tls.accept(stream, budgets).await {
                        Ok(stream) => Ok(Accepted::Ready(Self::Tls(Box::new(stream)))),
                        Err(error) => Err(SetupError::Handshake(error)),
                    }
                }
            }
        };
        let late = match handshakes {
            Some(_) => SetupError::Timeout,
            None => SetupError::NotHttp2,
        };
        timeout(limit, accepting).await.unwrap_or(Err(late))
    }
}

/// Answers a client that does not speak HTTP/2, if it seems to speak HTTP/1, and closes the connection.
pub(super) async fn answer_http1<T: AsyncRead + AsyncWrite + Unpin>(io: T, received: &[u8]) {
    const METHODS: [&[u8]; 7] = [b"GET ", b"HEAD", b"POST", b"PUT ", b"OPTI", b"DELE", b"CONN"];
    if METHODS
        .iter()
        .any(|method| method.starts_with(received) || received.starts_with(method))
    {
        answer(io, NO_HTTP1).await;
    }
}

/// Sends `text` and closes the connection.
async fn answer<T: AsyncRead + AsyncWrite + Unpin>(mut io: T, text: &[u8]) {
    // The answer is a courtesy.
    if let Ok(Ok(())) = timeout(ANSWER_TIMEOUT, io.write_all(text)).await {
        linger(io).await;
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => poll_decrypted(io, cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
