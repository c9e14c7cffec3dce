//! Checks that a connection speaks HTTP/2 before it is passed to hyper, and that it does not flood the server with frames.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;
use tokio::time::{Sleep, sleep};

use super::budget::ConnectionBudgets;
use super::frame_meter::FrameMeter;
use super::observer::CutReason;
use super::transport::answer_http1;
use super::unread::TooMuchUnread;

/// The connection preface: the first bytes that an HTTP/2 client sends (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How many frames count as one of the operations of which tokio grants a task 128 each time it runs.
const WORK_PER_UNIT: usize = 4;

/// A socket whose HTTP/2 preface has been read and validated. Reads return the preface once more, then what follows, and fail
/// once the client floods the server with frames.
#[derive(Debug)]
pub(super) struct PrefixedIo<T> {
    io: T,
    /// How many bytes of the preface have been replayed.
    replayed: usize,
    meter: FrameMeter,
    /// Counts what is received.
    budgets: Option<Arc<ConnectionBudgets>>,
    cut: Option<CutReason>,
    /// Until when nothing is read.
    pause: Option<Pin<Box<Sleep>>>,
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
    pub(super) async fn accept(mut io: T, timeout: Duration) -> Result<Self, NotHttp2> {
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
            budgets: None,
            cut: None,
            pause: None,
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
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let before = buf.filled().len();
        if let Err(error) = ready!(Pin::new(&mut self.io).poll_read(cx, buf)) {
            if error.get_ref().is_some_and(|error| error.is::<TooMuchUnread>()) {
                self.cut = Some(CutReason::Unread);
            }
            return Poll::Ready(Err(error));
        }
        let cut = match self.meter.on_read(&buf.filled()[before..]) {
            Ok(frames) => {
                yield_after(frames.work, cx);
                if frames.short > 0
                    && let Some(budgets) = &self.budgets
                    && let Some(pause) = budgets.pause_after_short_frames(frames.short)
                {
                    self.pause = Some(Box::pin(sleep(pause)));
                }
                let is_allowed = self.budgets.as_ref().is_none_or(|budgets| {
                    budgets.work.fetch_add(frames.work as u64, Ordering::Relaxed);
                    budgets.unread.add(&frames)
                });
                (!is_allowed).then_some(CutReason::Unread)
            }
            Err(_) => Some(CutReason::Flood),
        };
        self.cut = self.cut.or(cut);
        Poll::Ready(match cut {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }
}

/// Counts work, so that the task yields to other connections when it has done some. Otherwise it would first handle everything
/// that the socket has.
fn yield_after(work: usize, cx: &mut Context<'_>) {
    for _ in 0..work / WORK_PER_UNIT {
        match poll_proceed(cx) {
            Poll::Ready(unit) => unit.made_progress(),
            Poll::Pending => return,
        }
    }
}

impl<T> PrefixedIo<T> {
    /// Counts what is received in `budgets`.
    pub(super) fn counted(self, budgets: Arc<ConnectionBudgets>) -> Self {
        Self {
            budgets: Some(budgets),
            ..self
        }
    }

    /// Why reading has failed, if the server has cut the connection.
    pub(super) const fn cut(&self) -> Option<CutReason> {
        self.cut
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PrefixedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        let answers = self.meter.on_written(&buf[..written]);
        if let Some(budgets) = self.budgets.as_ref().filter(|_| answers > 0) {
            budgets.unread.answered(answers);
        }
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

    use tokio::io::AsyncWriteExt;
    use tokio::time::Instant;

    use super::super::budget::{BudgetLimits, ServerBudgets};
    use super::*;

    #[tokio::test]
    async fn the_preface_is_replayed() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(&PREFACE[..7]).await.unwrap();
        let accepting = tokio::spawn(PrefixedIo::accept(server, Duration::from_secs(60)));
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
            let io = PrefixedIo::accept(io, Duration::from_secs(60)).await.unwrap();
            let mut io = io.counted(server.connection(Ipv4Addr::LOCALHOST.into()));
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
    async fn many_short_frames_do_not_keep_a_task_from_yielding() {
        // 2,000 PINGs.
        let frames = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[0; 8]].concat().repeat(2_000);
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        client
            .write_all(&[PREFACE.as_slice(), &frames].concat())
            .await
            .unwrap();
        let mut io = PrefixedIo::accept(server, Duration::from_secs(60)).await.unwrap();
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
        assert!(PrefixedIo::accept(server, Duration::from_secs(60)).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_speaks_http1_is_told() {
        let (mut client, server) = tokio::io::duplex(1024);
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: chat\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let accepting = PrefixedIo::accept(server, Duration::from_secs(60));
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
        assert!(PrefixedIo::accept(server, Duration::from_secs(10)).await.is_err());
    }
}
