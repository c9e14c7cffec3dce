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

use super::connection_budgets::ConnectionBudgets;
use super::unread::ReadPause;

/// How many bytes a client may send in a handshake: more than a long chain of certificates needs. They are buffered, and are
/// as many as a connection takes in the memory plan.
const MAX_HANDSHAKE_BYTES: usize = 24 * 1024;

/// How many bytes may be read afterwards until something is decrypted: more than a message of TLS itself has, and a record. A client could
/// otherwise keep the server busy with records and messages that carry nothing.
const MAX_UNDECRYPTED_BYTES: usize = 96 * 1024;

/// How many bytes are read at a time, at most. rustls always has a buffer of this size. So whatever follows something that is decrypted fits
/// into that.
const MAX_READ: usize = 4 * 1024;

/// The socket of a connection.
#[derive(Debug)]
pub(super) struct TlsSocket {
    stream: TcpStream,
    /// How many bytes were read since something was decrypted.
    undecrypted: usize,
    /// Counts them, once the handshake is completed.
    budgets: Option<Arc<ConnectionBudgets>>,
    pause: ReadPause,
}

impl TlsSocket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            undecrypted: 0,
            budgets: None,
            pause: ReadPause::default(),
        }
    }

    fn set_undecrypted(&mut self, bytes: usize) {
        let counted = |bytes| if bytes > MAX_READ { bytes } else { 0 };
        let before = std::mem::replace(&mut self.undecrypted, bytes);
        if let Some(budgets) = &self.budgets
            && counted(bytes) != counted(before)
        {
            budgets.unread.set_undecrypted(counted(bytes));
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
        let this = &mut *self;
        if let Some(budgets) = &this.budgets {
            ready!(this.pause.poll_end(cx, &budgets.unread));
        }
        let len = buf.remaining().min(MAX_READ);
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(len));
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        this.set_undecrypted(this.undecrypted + read);
        let max = if this.budgets.is_some() {
            MAX_UNDECRYPTED_BYTES
        } else {
            MAX_HANDSHAKE_BYTES
        };
        if this.undecrypted > max {
            let error = format!("the client sent more than {max} bytes of TLS without data");
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

/// A connection whose handshake is completed.
pub(super) type TlsConnection = TlsStream<TlsSocket>;

/// Counts what cannot be decrypted in `budgets` from now on.
pub(super) fn end_handshake(connection: &mut TlsConnection, budgets: Arc<ConnectionBudgets>) {
    let socket = connection.get_mut().0;
    (socket.budgets, socket.undecrypted) = (Some(budgets), 0);
}

/// Reads what is decrypted, of one record: an error that follows it must be the result of the next call.
pub(super) fn poll_decrypted(
    connection: &mut TlsConnection,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let decrypted = ready!(Pin::new(&mut *connection).poll_fill_buf(cx))?;
    let len = decrypted.len().min(buf.remaining());
    buf.put_slice(&decrypted[..len]);
    if len > 0 {
        Pin::new(&mut *connection).consume(len);
        connection.get_mut().0.set_undecrypted(0);
    }
    Poll::Ready(Ok(()))
}
