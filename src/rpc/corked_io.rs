//! Collects what a connection writes in one poll and writes it to the socket at once.
//!
//! h2 writes and flushes each frame by itself, and most clients allow frames of at most 16 KiB. Each write costs a system call,
//! a TCP segment, an acknowledgement and a wake-up of the receiver; copying a frame into a buffer costs far less.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Capacity of the buffer, in bytes. Half of it makes each message of a room at full load a tenth more expensive; twice as
/// much gains nothing. A connection whose client does not read holds at most this much.
const CAPACITY: usize = 128 * 1024;

thread_local! {
    /// The buffer that the connections of this thread share. A connection takes it when it writes, and returns it empty unless
    /// the socket blocks.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A socket that buffers writes and ignores flushes until [`CorkedIo::uncork`]. Clones share the socket.
#[derive(Debug)]
pub(super) struct CorkedIo<T>(Arc<Mutex<Corked<T>>>);

#[derive(Debug)]
struct Corked<T> {
    io: T,
    buffer: Vec<u8>,
    /// How many bytes of the buffer have been written.
    written: usize,
    /// Whether the last write to the socket was pending.
    is_blocked: bool,
    /// How many bytes the socket has accepted.
    accepted: u64,
}

impl<T> CorkedIo<T> {
    pub(super) fn new(io: T) -> Self {
        Self(Arc::new(Mutex::new(Corked {
            io,
            buffer: Vec::new(),
            written: 0,
            is_blocked: false,
            accepted: 0,
        })))
    }
}

impl<T> CorkedIo<T> {
    /// Whether there are bytes that the socket does not accept, and how many it has accepted so far.
    pub(super) fn progress(&self) -> (bool, u64) {
        let corked = self.0.lock();
        (corked.is_blocked, corked.accepted)
    }

    /// How many bytes have been written so far, whether the socket has accepted them or not.
    pub(super) fn written(&self) -> u64 {
        let corked = self.0.lock();
        corked.accepted + (corked.buffer.len() - corked.written) as u64
    }

    /// Looks at the socket.
    pub(super) fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.lock().io)
    }
}

impl<T> Clone for CorkedIo<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: AsyncWrite + Unpin> CorkedIo<T> {
    /// Writes the buffer and flushes the socket. While this is pending, writes are pending too, and the task is woken when the
    /// socket accepts more.
    pub(super) fn uncork(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().uncork(cx)
    }
}

impl<T: AsyncWrite + Unpin> Corked<T> {
    fn uncork(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            let rest = &self.buffer[self.written..];
            match Pin::new(&mut self.io).poll_write(cx, rest)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(len) => {
                    self.written += len;
                    self.accepted += len as u64;
                }
                Poll::Pending => {
                    // Keep only the rest: many connections can stay blocked for a long time.
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
        Pin::new(&mut self.0.lock().io).poll_read(cx, buf)
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
        let mut this = self.0.lock();
        if this.is_blocked || this.buffer.len() >= CAPACITY {
            ready!(this.uncork(cx))?;
        }
        if this.buffer.is_empty() {
            this.buffer = SPARE.take();
            this.buffer.reserve_exact(CAPACITY);
        }
        let before = this.buffer.len();
        for buf in bufs {
            let len = buf.len().min(CAPACITY - this.buffer.len());
            this.buffer.extend_from_slice(&buf[..len]);
        }
        Poll::Ready(Ok(this.buffer.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.0.lock();
        ready!(this.uncork(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Records what is written to it.
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
    async fn what_is_written_before_uncorking_is_one_write() {
        let mut io = CorkedIo::new(Socket::default());
        for part in [b"one ", b"two "] {
            io.write_all(part).await.unwrap();
            io.flush().await.unwrap();
        }
        let three = [IoSlice::new(b"thr"), IoSlice::new(b"ee")];
        assert_eq!(io.write_vectored(&three).await.unwrap(), 5);
        assert!(io.0.lock().io.writes.is_empty());
        assert!(uncork(&io).is_ready());
        assert!(uncork(&io).is_ready());
        assert_eq!(io.0.lock().io.writes, [b"one two three"]);
        io.write_all(b"last").await.unwrap();
        io.shutdown().await.unwrap();
        let socket = &io.0.lock().io;
        assert_eq!((socket.writes.len(), socket.shutdowns), (2, 1));
        assert_eq!(socket.writes[1], b"last");
    }

    #[tokio::test]
    async fn no_more_than_the_capacity_is_buffered() {
        let io = CorkedIo::new(Socket::default());
        io.clone().write_all(&vec![7; 2 * CAPACITY + 1]).await.unwrap();
        assert!(uncork(&io).is_ready());
        let written: Vec<usize> = io.0.lock().io.writes.iter().map(Vec::len).collect();
        assert_eq!(written, [CAPACITY, CAPACITY, 1]);
    }

    #[tokio::test]
    async fn the_rest_of_a_pending_write_is_kept_and_nothing_more_is_buffered() {
        let (client, mut server) = tokio::io::duplex(10);
        let mut io = CorkedIo::new(client);
        io.write_all(b"0123456789abcdef").await.unwrap();
        assert!(uncork(&io).is_pending());
        assert_eq!(io.0.lock().buffer, b"abcdef");
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
    async fn a_broken_socket_is_reported() {
        let (client, server) = tokio::io::duplex(10);
        drop(server);
        let io = CorkedIo::new(client);
        io.clone().write_all(b"lost").await.unwrap();
        assert!(matches!(uncork(&io), Poll::Ready(Err(_))));
    }
}
