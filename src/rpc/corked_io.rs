//! What a connection writes in one turn goes to the socket in one piece.
//!
//! The HTTP/2 library writes and flushes frame by frame, and most clients permit frames of 16 KiB only. To the kernel each
//! write is a segment to send, acknowledge and wake the receiver for; copying a frame costs far less than that.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most, in bytes. Half of it costs a tenth more for each message in a room at full load; twice as much
/// is no better, and it is what a connection may hold back when its client does not read.
const LIMIT: usize = 128 * 1024;

thread_local! {
    /// The buffer that connections gather in, one after the other: empty between two turns.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A transport whose writes and flushes wait for [`CorkedIo::uncork`]. Clones are handles of the same transport.
#[derive(Debug)]
pub(super) struct CorkedIo<T>(Arc<Mutex<Corked<T>>>);

#[derive(Debug)]
struct Corked<T> {
    io: T,
    buffer: Vec<u8>,
    /// How much of the buffer has been written.
    written: usize,
    /// The transport takes no more for now.
    is_blocked: bool,
}

impl<T> CorkedIo<T> {
    pub(super) fn new(io: T) -> Self {
        Self(Arc::new(Mutex::new(Corked {
            io,
            buffer: Vec::new(),
            written: 0,
            is_blocked: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Corked<T>> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for CorkedIo<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: AsyncWrite + Unpin> CorkedIo<T> {
    /// Writes what was gathered and flushes it. When the transport takes no more, the rest is kept, and nothing is gathered
    /// until that is written; the task is woken when it may go on.
    ///
    /// # Errors
    ///
    /// Those of the transport, which is of no more use then.
    pub(super) fn uncork(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().uncork(cx)
    }
}

impl<T: AsyncWrite + Unpin> Corked<T> {
    fn uncork(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            let rest = &self.buffer[self.written..];
            match Pin::new(&mut self.io).poll_write(cx, rest)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(len) => self.written += len,
                Poll::Pending => {
                    // Many may wait for long, with little each.
                    self.buffer.drain(..self.written);
                    self.buffer.shrink_to_fit();
                    self.written = 0;
                    self.is_blocked = true;
                    return Poll::Pending;
                }
            }
        }
        if !self.buffer.is_empty() {
            self.buffer.clear();
            self.written = 0;
            SPARE.set(mem::take(&mut self.buffer));
        }
        self.is_blocked = false;
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CorkedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CorkedIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut me = self.lock();
        if me.is_blocked || me.buffer.len() >= LIMIT {
            ready!(me.uncork(cx))?;
        }
        if me.buffer.is_empty() {
            me.buffer = SPARE.take();
            me.buffer.reserve_exact(LIMIT);
        }
        let before = me.buffer.len();
        for buf in bufs {
            let len = buf.len().min(LIMIT - me.buffer.len());
            me.buffer.extend_from_slice(&buf[..len]);
        }
        Poll::Ready(Ok(me.buffer.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut me = self.lock();
        ready!(me.uncork(cx))?;
        Pin::new(&mut me.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts what reaches it.
    #[derive(Debug, Default)]
    struct Socket {
        writes: Vec<Vec<u8>>,
        flushes: usize,
        shutdowns: usize,
    }

    impl AsyncWrite for Socket {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.writes.push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shutdowns += 1;
            Poll::Ready(Ok(()))
        }
    }

    fn uncork<T: AsyncWrite + Unpin>(io: &CorkedIo<T>) -> Poll<io::Result<()>> {
        io.uncork(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn what_is_written_in_one_turn_goes_out_in_one_piece() {
        let mut io = CorkedIo::new(Socket::default());
        for piece in [b"one ", b"two "] {
            io.write_all(piece).await.unwrap();
            io.flush().await.unwrap();
        }
        let three = [IoSlice::new(b"thr"), IoSlice::new(b"ee")];
        assert_eq!(io.write_vectored(&three).await.unwrap(), 5);
        assert!(io.lock().io.writes.is_empty());
        assert!(uncork(&io).is_ready());
        assert!(uncork(&io).is_ready());
        assert_eq!(io.lock().io.writes, [b"one two three"]);
        io.write_all(b"last").await.unwrap();
        io.shutdown().await.unwrap();
        let socket = &io.lock().io;
        assert_eq!((socket.writes.len(), socket.shutdowns), (2, 1));
        assert_eq!(socket.writes[1], b"last");
    }

    #[tokio::test]
    async fn no_more_than_the_limit_is_gathered() {
        let io = CorkedIo::new(Socket::default());
        io.clone().write_all(&vec![7; 2 * LIMIT + 1]).await.unwrap();
        assert!(uncork(&io).is_ready());
        let written: Vec<usize> = io.lock().io.writes.iter().map(Vec::len).collect();
        assert_eq!(written, [LIMIT, LIMIT, 1]);
    }

    #[tokio::test]
    async fn what_a_full_transport_does_not_take_is_kept_and_nothing_more_is_taken() {
        let (client, mut server) = tokio::io::duplex(10);
        let mut io = CorkedIo::new(client);
        io.write_all(b"0123456789abcdef").await.unwrap();
        assert!(uncork(&io).is_pending());
        assert_eq!(io.lock().buffer, b"abcdef");
        {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(pin!(&mut io).poll_write(&mut cx, b"more").is_pending());
        }
        let mut read = [0; 10];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"0123456789");
        assert!(uncork(&io).is_ready());
        io.write_all(b"more").await.unwrap();
        io.shutdown().await.unwrap();
        let mut rest = String::new();
        server.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "abcdefmore");
    }

    #[tokio::test]
    async fn a_broken_transport_is_reported() {
        let (client, server) = tokio::io::duplex(10);
        drop(server);
        let io = CorkedIo::new(client);
        io.clone().write_all(b"lost").await.unwrap();
        assert!(matches!(uncork(&io), Poll::Ready(Err(_))));
    }
}
