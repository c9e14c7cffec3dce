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

/// How many records count as much work as a message.
const RECORDS_PER_WORK: usize = 2;

/// A record that is shorter, without its header, contains less than the header of an HTTP/2 frame, the type of the content and the
/// authentication tag (RFC 8446, section 5.2). It takes as long as others to decrypt, and several times as long if it changes the client's
/// keys.
const MIN_RECORD: usize = 9 + 1 + 16;

/// The length of a record's header, which ends with the length of what follows (RFC 8446, section 5.1).
const RECORD_HEADER_LEN: usize = 5;

/// The records that begin in some bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Records {
    count: usize,
    /// How many of them are shorter than [`MIN_RECORD`].
    short: u32,
}

/// Counts the records in what is read.
#[derive(Debug, Default)]
struct RecordCounter {
    /// The header of the newest record.
    header: [u8; RECORD_HEADER_LEN],
    /// How many of its bytes were read.
    header_len: usize,
    /// How many bytes of that record are missing after its header.
    missing: usize,
}

impl RecordCounter {
    /// Counts the records whose headers end in the next bytes.
    fn count(&mut self, mut bytes: &[u8]) -> Records {
        let mut records = Records::default();
        while !bytes.is_empty() {
            let skipped = self.missing.min(bytes.len());
            self.missing -= skipped;
            bytes = &bytes[skipped..];
            let header_part = (RECORD_HEADER_LEN - self.header_len).min(bytes.len());
            let (header, rest) = bytes.split_at(header_part);
            self.header[self.header_len..][..header.len()].copy_from_slice(header);
            self.header_len += header.len();
            if self.header_len == RECORD_HEADER_LEN {
                self.header_len = 0;
                self.missing = u16::from_be_bytes([self.header[3], self.header[4]]).into();
                records.count += 1;
                records.short += u32::from(self.missing < MIN_RECORD);
            }
            bytes = rest;
        }
        records
    }
}

/// The socket of a connection.
#[derive(Debug)]
pub(super) struct TlsSocket {
    stream: TcpStream,
    records: RecordCounter,
    /// How many records are not counted as work yet: too few.
    uncounted: usize,
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
            records: RecordCounter::default(),
            uncounted: 0,
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
        let records = this.records.count(part.filled());
        if let Some(budgets) = &this.budgets {
            let count = this.uncounted + records.count;
            this.uncounted = count % RECORDS_PER_WORK;
            budgets.record_work(count / RECORDS_PER_WORK, cx);
            if records.short > 0
                && let Some(pause) = budgets.pause_after_short_frames(records.short)
            {
                this.pause.begin(pause);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_however_they_are_cut() {
        let records = [0, 1, 300, 5, 16_640, 2].map(|len: u16| {
            let [high, low] = len.to_be_bytes();
            [&[23, 3, 3, high, low][..], &vec![23; len.into()]].concat()
        });
        let bytes = records.concat();
        for size in [1, 2, 3, 7, 4_096, bytes.len()] {
            let (mut counter, mut read) = (RecordCounter::default(), Records::default());
            for part in bytes.chunks(size) {
                let Records { count, short } = counter.count(part);
                read.count += count;
                read.short += short;
            }
            assert_eq!(read, Records { count: 6, short: 4 }, "{size}");
        }
        // A record counts when its header is complete.
        let mut counter = RecordCounter::default();
        let counts = [&bytes[..4], &bytes[4..5]].map(|part| counter.count(part).count);
        assert_eq!(counts, [0, 1]);
    }
}
