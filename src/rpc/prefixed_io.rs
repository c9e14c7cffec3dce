//! Checks that a connection speaks HTTP/2 before it is passed to hyper, and that it does not flood the server with frames.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::connection_budgets::ConnectionBudgets;
use super::frame_meter::FrameMeter;
use super::transport::answer_http1;
use super::unread::ReadPause;

/// The connection preface: the first bytes that an HTTP/2 client sends (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A socket whose HTTP/2 preface has been read and validated. Reads return the preface once more, then what follows. They fail once the
/// client floods the server with frames, and pause while it leaves too much unread and after too many short frames.
#[derive(Debug)]
pub(super) struct PrefixedIo<T> {
    io: T,
    /// How many bytes of the preface have been replayed.
    replayed: usize,
    meter: FrameMeter,
    budgets: Arc<ConnectionBudgets>,
    /// Whether the client has sent too many frames.
    is_flood: bool,
    pause: ReadPause,
}

/// The connection did not begin with the HTTP/2 preface, or not in time.
#[derive(Debug)]
pub(super) struct NotHttp2;

impl<T: AsyncRead + AsyncWrite + Unpin> PrefixedIo<T> {
    /// Reads the preface from `io`. Answers a client that speaks HTTP/1 instead.
    ///
    /// # Errors
    ///
    /// If `io` yields anything else, or not all of it within `timeout`.
    pub(super) async fn accept(
        mut io: T,
        timeout: Duration,
        budgets: Arc<ConnectionBudgets>,
    ) -> Result<Self, NotHttp2> {
        let mut preface = [0; PREFACE.len()];
        let mut len = 0;
        let read = async {
            while len < PREFACE.len() && PREFACE.starts_with(&preface[..len]) {
                match io.read(&mut preface[len..]).await {
                    Ok(read @ 1..) => len += read,
                    Ok(0) | Err(_) => return Err(NotHttp2),
                }
            }
            Ok(())
        };
        tokio::time::timeout(timeout, read)
            .await
            .map_err(|_| NotHttp2)??;
        if preface != *PREFACE {
            answer_http1(io, &preface[..len]).await;
            return Err(NotHttp2);
        }
        Ok(Self {
            io,
            replayed: 0,
            meter: FrameMeter::new(),
            budgets,
            is_flood: false,
            pause: ReadPause::default(),
        })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PrefixedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.replayed < PREFACE.len() {
            let rest = &PREFACE[self.replayed..];
            let len = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..len]);
            self.replayed += len;
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        let max_read = ready!(this.pause.poll_end(cx, &this.budgets.unread));
        let before = buf.filled().len();
        let is_slow = max_read < buf.remaining();
        if is_slow {
            let mut limited = ReadBuf::new(buf.initialize_unfilled_to(max_read));
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut limited))?;
            let len = limited.filled().len();
            buf.advance(len);
        } else {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        }
        match this
            .budgets
            .unread
            .receive(&buf.filled()[before..], &mut this.meter)
        {
            Ok(frames) => {
                // Frames that are read in many pieces take as much time as many frames.
                let work = frames.work + usize::from(is_slow);
                this.budgets.record_work(work, cx);
                if frames.short > 0
                    && let Some(pause) = this.budgets.pause_after_short_frames(frames.short)
                {
                    this.pause.begin(pause);
                }
                Poll::Ready(Ok(()))
            }
            Err(flood) => {
                this.is_flood = true;
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, flood)))
            }
        }
    }
}

impl<T> PrefixedIo<T> {
    /// Whether reading has failed because the client has sent too many frames.
    pub(super) const fn is_flood(&self) -> bool {
        self.is_flood
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PrefixedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        let this = &mut *self;
        this.budgets.unread.send(&buf[..written], &mut this.meter);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use std::net::Ipv4Addr;
    use std::sync::atomic::Ordering;

    use tokio::io::AsyncWriteExt;
    use tokio::time::Instant;

    use super::super::connection_budgets::{BudgetLimits, ServerBudgets};
    use super::super::unread::SLOW_READ;
    use super::*;

    async fn accept<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> Result<PrefixedIo<T>, NotHttp2> {
        let server = ServerBudgets::new(BudgetLimits::default(), 10);
        let budgets = server.connection(Ipv4Addr::LOCALHOST.into());
        PrefixedIo::accept(io, Duration::from_secs(60), budgets).await
    }

    #[tokio::test]
    async fn the_preface_is_replayed() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(&PREFACE[..7]).await.unwrap();
        let accepting = tokio::spawn(accept(server));
        client.write_all(&PREFACE[7..]).await.unwrap();
        client.write_all(b"rest").await.unwrap();
        drop(client);
        let mut read = Vec::new();
        accepting
            .await
            .unwrap()
            .unwrap()
            .read_to_end(&mut read)
            .await
            .unwrap();
        assert_eq!(read, [PREFACE.as_slice(), b"rest"].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_sends_messages_byte_by_byte_is_read_slowly() {
        let server = ServerBudgets::new(BudgetLimits::default(), 10);
        // How long it takes to read so many DATA frames of such a length with such flags.
        let read = async |count: usize, len: u8, flags: u8| {
            let frames = [&[0, 0, len, 0, flags, 0, 0, 0, 1][..], &vec![0; len.into()]].concat();
            let bytes = [PREFACE.as_slice(), &frames.repeat(count)].concat();
            let (mut client, io) = tokio::io::duplex(bytes.len());
            client.write_all(&bytes).await.unwrap();
            drop(client);
            let started = Instant::now();
            let budgets = server.connection(Ipv4Addr::LOCALHOST.into());
            let mut io = PrefixedIo::accept(io, Duration::from_secs(60), budgets)
                .await
                .unwrap();
            let mut buffer = [0; 1_000];
            while io.read(&mut buffer).await.unwrap() > 0 {}
            started.elapsed().as_secs()
        };
        assert_eq!(read(8_000, 1, 0).await, 0);
        let slow = read(8_000, 4, 0).await;
        assert!((13..=16).contains(&slow), "{slow}");
        // Whole messages, and the ends of streams, of the same address.
        assert_eq!(read(8_000, 5, 0).await + read(8_000, 0, 1).await, 0);
    }

    #[tokio::test]
    async fn little_is_read_at_a_time_while_others_of_the_address_hold_too_much() {
        let limits = BudgetLimits::default();
        let server = ServerBudgets::new(limits, 10);
        let [greedy, quiet] = [(); 2].map(|()| server.connection(Ipv4Addr::LOCALHOST.into()));
        let frame = [&[0, 0, 100, 0, 0, 0, 0, 0, 1][..], &[7; 100]].concat();
        let (mut client, io) = tokio::io::duplex(1_024);
        client
            .write_all(&[PREFACE.as_slice(), &frame, &frame].concat())
            .await
            .unwrap();
        drop(client);
        let mut io = PrefixedIo::accept(io, Duration::from_secs(60), Arc::clone(&quiet))
            .await
            .unwrap();
        let (mut bytes, mut buffer) = (Vec::new(), [0; 64]);
        while bytes.len() < PREFACE.len() + frame.len() {
            greedy.unread.set_undecrypted(limits.unread);
            let len = io.read(&mut buffer).await.unwrap();
            assert!((1..=SLOW_READ).contains(&len), "{len}");
            bytes.extend_from_slice(&buffer[..len]);
        }
        // Four reads, in which two frames begin.
        assert_eq!(quiet.work.load(Ordering::Relaxed), 4 + 2);
        greedy.unread.set_undecrypted(0);
        assert_eq!(io.read(&mut buffer).await.unwrap(), buffer.len());
        bytes.extend_from_slice(&buffer);
        io.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, [PREFACE.as_slice(), &frame, &frame].concat());
    }

    #[tokio::test]
    async fn many_short_frames_do_not_keep_a_task_from_yielding() {
        // 2,000 PINGs.
        let frames = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[0; 8]].concat().repeat(2_000);
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        client
            .write_all(&[PREFACE.as_slice(), &frames].concat())
            .await
            .unwrap();
        let mut io = accept(server).await.unwrap();
        let mut turns = Vec::new();
        let mut total = 0;
        while total < PREFACE.len() + frames.len() {
            tokio::task::yield_now().await;
            let read = poll_fn(|cx| {
                let (mut bytes, mut turn) = ([0; 512], 0);
                loop {
                    let mut buf = ReadBuf::new(&mut bytes);
                    let polled = Pin::new(&mut io).poll_read(cx, &mut buf);
                    if polled.is_pending() || buf.filled().is_empty() {
                        return Poll::Ready(turn);
                    }
                    turn += buf.filled().len();
                }
            });
            turns.push(read.await);
            total += turns.last().unwrap();
        }
        assert!(
            turns.len() > 2 && turns.iter().all(|read| *read < 600 * 17),
            "{turns:?}"
        );
    }

    #[tokio::test]
    async fn another_protocol_is_rejected_at_the_first_differing_byte() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"PRI * HTTP/1").await.unwrap();
        assert!(accept(server).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_speaks_http1_is_told() {
        let (mut client, server) = tokio::io::duplex(1024);
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: chat\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let accepting = accept(server);
        let (accepted, _) = tokio::join!(accepting, client.read_to_string(&mut answer));
        assert!(accepted.is_err());
        assert!(
            answer.starts_with("HTTP/1.1 505 ") && answer.contains("HTTP/2"),
            "{answer}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_rejected_after_the_timeout() {
        let (_client, server) = tokio::io::duplex(64);
        assert!(accept(server).await.is_err());
    }
}
