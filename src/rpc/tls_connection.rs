//! A connection after its TLS handshake. Counts what the client has sent that cannot be decrypted yet.
//!
//! rustls keeps a record until it is complete, and a message of TLS itself that spans several records, up to 64 KiB.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::budget::ConnectionBudgets;
use super::unread::TooMuchUnread;

/// How many bytes a client may send in a handshake: more than a long chain of certificates needs. They are buffered, and are
/// as many as a connection takes in the memory plan.
const MAX_HANDSHAKE_BYTES: usize = 24 * 1024;

/// How many bytes are read at a time, at most. rustls always has a buffer of this size. So whatever follows something that is decrypted fits
/// into that.
const MAX_READ: usize = 4 * 1024;

/// The socket of a connection.
#[derive(Debug)]
pub(super) struct TlsSocket {
    stream: TcpStream,
    is_in_handshake: bool,
    /// How many bytes were read since something was decrypted.
    undecrypted: usize,
}

impl TlsSocket {
    pub(super) const fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            is_in_handshake: true,
            undecrypted: 0,
        }
    }

    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = buf.remaining().min(MAX_READ);
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(len));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        self.undecrypted += read;
        if self.is_in_handshake && self.undecrypted > MAX_HANDSHAKE_BYTES {
            let error = format!("the client sent more than {MAX_HANDSHAKE_BYTES} bytes");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An encrypted connection.
pub(super) struct TlsConnection {
    stream: TlsStream<TlsSocket>,
    budgets: Arc<ConnectionBudgets>,
    /// How many bytes are counted in the budgets.
    counted: usize,
}

impl TlsConnection {
    /// A connection whose handshake is completed.
    pub(super) fn new(mut stream: TlsStream<TlsSocket>, budgets: Arc<ConnectionBudgets>) -> Self {
        let socket = stream.get_mut().0;
        (socket.is_in_handshake, socket.undecrypted) = (false, 0);
        Self {
            stream,
            budgets,
            counted: 0,
        }
    }

    /// Reads what is decrypted, of one record: an error that follows it must be the result of the next call.
    fn poll_decrypted(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let decrypted = ready!(Pin::new(&mut self.stream).poll_fill_buf(cx))?;
        let len = decrypted.len().min(buf.remaining());
        buf.put_slice(&decrypted[..len]);
        if len > 0 {
            Pin::new(&mut self.stream).consume(len);
            self.stream.get_mut().0.undecrypted = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Counts what was read and is not decrypted. Returns false if the connection must be closed.
    fn count_undecrypted(&mut self) -> bool {
        let undecrypted = self.stream.get_ref().0.undecrypted;
        let counted = if undecrypted > MAX_READ { undecrypted } else { 0 };
        counted == std::mem::replace(&mut self.counted, counted)
            || self.budgets.unread.set_undecrypted(counted)
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.poll_decrypted(cx, buf);
        if self.count_undecrypted() {
            polled
        } else {
            Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                TooMuchUnread,
            )))
        }
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
