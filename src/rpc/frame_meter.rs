//! Recognizes connections that send frames which cost work and carry nothing: floods of PRIORITY, WINDOW_UPDATE, PING and
//! the like, and of frames for streams that have ended, to which h2 responds with RST_STREAM. h2 accepts any number of them.

use tokio::time::Instant;

use super::data_frames::DataFrames;
use super::header_table::HeaderTable;

/// Length of a frame's header: the length of its payload (3 bytes), its type, its flags and its stream.
const HEADER_LEN: usize = 9;

/// How many frames without data a connection may send at once: more than a client sends that cancels thousands of streams
/// or opens the windows of all its streams.
const BURST: f64 = 8_192.0;

/// How many more it may send per second.
const PER_SECOND: f64 = 512.0;

/// One more for this many bytes that the server has sent, because receivers answer data with WINDOW_UPDATE: up to two frames
/// for each DATA frame, of which the shortest with an event have more than 32 bytes.
const SENT_BYTES_PER_FRAME: f64 = 16.0;

/// Types of frames that carry data or belong to a call: DATA, HEADERS, PUSH_PROMISE, CONTINUATION. h2 and the budget for what is
/// unread bound them.
const UNMETERED: [u8; 4] = [0, 1, 5, 9];

/// The work of a call, compared with that of a frame.
const CALL_WORK: usize = 16;

/// How many header fields are as much work as a frame.
const FIELDS_PER_WORK: usize = 4;

/// How many header fields that are too many count as a frame that is too short.
const FIELDS_PER_SHORT_FRAME: usize = 4;

/// Length of what precedes each gRPC message: whether it is compressed, and its length.
const MESSAGE_PREFIX_LEN: usize = 5;

const END_STREAM: u8 = 1;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;

/// A connection has sent more frames without data than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many frames that carry no data")]
pub(super) struct Flood;

/// Finds the frames in the bytes of one direction of a connection.
#[derive(Debug, Default)]
struct FrameScanner {
    header: [u8; HEADER_LEN],
    header_len: usize,
    /// How much of the current frame's payload is missing.
    payload: usize,
    /// The type of the current frame.
    kind: u8,
    /// How many bytes there were so far.
    scanned: u64,
    /// The highest stream identifier of the HEADERS frames so far.
    newest_stream: u32,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy)]
struct FrameHeader {
    kind: u8,
    flags: u8,
    /// The length of its payload.
    len: usize,
    /// Whether it is a HEADERS frame that begins a stream.
    is_request: bool,
    /// How many bytes of the connection there are before its payload.
    scanned: u64,
}

/// A part of the bytes of a connection.
enum FramePart<'a> {
    Header(FrameHeader),
    /// A part of the payload of a frame of this type.
    Payload(u8, &'a [u8]),
}

impl FrameScanner {
    /// Calls `on_part` with each part of the next `bytes`; a header counts where it ends.
    fn scan<'a>(&mut self, mut bytes: &'a [u8], mut on_part: impl FnMut(FramePart<'a>)) {
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            if skipped > 0 {
                on_part(FramePart::Payload(self.kind, &bytes[..skipped]));
            }
            bytes = &bytes[skipped..];
            let copied = bytes.len().min(HEADER_LEN - self.header_len);
            self.header[self.header_len..][..copied].copy_from_slice(&bytes[..copied]);
            self.header_len += copied;
            self.scanned += (skipped + copied) as u64;
            bytes = &bytes[copied..];
            if self.header_len == HEADER_LEN {
                self.header_len = 0;
                let [a, b, c, kind, flags, stream @ ..] = self.header;
                self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                // The highest bit is reserved.
                let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
                self.kind = kind;
                let is_request = kind == HEADERS && stream > self.newest_stream;
                if is_request {
                    self.newest_stream = stream;
                }
                on_part(FramePart::Header(FrameHeader {
                    kind,
                    flags,
                    len: self.payload,
                    is_request,
                    scanned: self.scanned,
                }));
            }
        }
    }
}

/// The frames in some bytes that were read from a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ReadFrames {
    /// The work that they make: 1 each, but [`CALL_WORK`] for one that begins a call, and 1 for each [`FIELDS_PER_WORK`] header fields.
    pub(super) work: usize,
    pub(super) data: DataFrames,
    /// How many bytes are not in DATA frames.
    pub(super) other_bytes: usize,
    /// HEADERS frames that begin a stream.
    pub(super) requests: usize,
    /// HEADERS frames of streams that have begun.
    pub(super) trailers: usize,
    /// Whether a header block has begun and not ended.
    pub(super) ends_in_headers: bool,
    /// What the table of headers keeps, in bytes.
    pub(super) header_table: usize,
    /// DATA frames that are too short for a message, and as many for [excessive](HeaderTable::excess) header fields, as clients do not
    /// send them.
    pub(super) short: u32,
}

impl ReadFrames {
    /// Whether h2 holds something of the frames once it has read them.
    pub(super) fn take_memory(&self) -> bool {
        self.requests > 0 || self.trailers > 0 || self.ends_in_headers || self.data.count() > 0
    }
}

/// Counts the frames of a connection.
#[derive(Debug)]
pub(super) struct FrameMeter {
    read: FrameScanner,
    written: FrameScanner,
    header_table: HeaderTable,
    allowance: f64,
    refilled_at: Instant,
}

impl FrameMeter {
    pub(super) fn new() -> Self {
        Self {
            read: FrameScanner::default(),
            written: FrameScanner::default(),
            header_table: HeaderTable::default(),
            allowance: BURST,
            refilled_at: Instant::now(),
        }
    }

    /// Counts the frames in the next bytes of the connection.
    ///
    /// # Errors
    ///
    /// There are too many of them. The connection should be closed.
    pub(super) fn on_read(&mut self, bytes: &[u8]) -> Result<ReadFrames, Flood> {
        let (mut cost, mut frames) = (0.0, ReadFrames::default());
        frames.other_bytes = bytes.len();
        let fields = |table: &HeaderTable| {
            let work = table.fields() / FIELDS_PER_WORK;
            (work, table.excess() / FIELDS_PER_SHORT_FRAME)
        };
        let before = fields(&self.header_table);
        let header_table = &mut self.header_table;
        self.read.scan(bytes, |part| {
            let FrameHeader {
                kind,
                flags,
                len,
                is_request,
                scanned,
            } = match part {
                FramePart::Header(header) => header,
                FramePart::Payload(DATA, data) => {
                    frames.other_bytes -= data.len();
                    return;
                }
                FramePart::Payload(HEADERS | CONTINUATION, block) => {
                    header_table.read(block);
                    return;
                }
                FramePart::Payload(..) => return,
            };
            frames.requests += usize::from(is_request);
            frames.work += if kind == HEADERS { CALL_WORK } else { 1 };
            match kind {
                HEADERS => {
                    frames.trailers += usize::from(!is_request);
                    header_table.begin_headers(flags, len, scanned);
                }
                CONTINUATION => header_table.begin_continuation(flags, len, scanned),
                DATA => {
                    frames.data.add(len);
                    frames.short += u32::from(len < MESSAGE_PREFIX_LEN && flags & END_STREAM == 0);
                }
                _ => {}
            }
            cost += match kind {
                kind if UNMETERED.contains(&kind) => 0.0,
                // The answer to a PING must not pay for the next one.
                PING => 2.0,
                _ => 1.0,
            };
        });
        frames.ends_in_headers = self.header_table.is_open();
        frames.header_table = self.header_table.kept();
        let after = fields(&self.header_table);
        frames.work += after.0 - before.0;
        frames.short += u32::try_from(after.1 - before.1).unwrap_or(u32::MAX);
        if cost > self.allowance {
            let now = Instant::now();
            let refill = (now - self.refilled_at).as_secs_f64() * PER_SECOND;
            self.refilled_at = now;
            self.allowance = (self.allowance + refill).min(BURST);
        }
        self.allowance -= cost;
        if self.allowance < 0.0 {
            Err(Flood)
        } else {
            Ok(frames)
        }
    }

    /// Counts the frames in bytes that were sent on the connection. Returns how many of them answer a request or end one.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn on_written(&mut self, bytes: &[u8]) -> usize {
        let (mut cost, mut answers) = (0.0, 0);
        self.written.scan(bytes, |part| {
            let FramePart::Header(FrameHeader { kind, .. }) = part else {
                return;
            };
            answers += usize::from(kind == HEADERS || kind == RST_STREAM);
            if kind == RST_STREAM {
                cost += 2.0;
            }
        });
        let earned = bytes.len() as f64 / SENT_BYTES_PER_FRAME;
        self.allowance = (self.allowance + earned - cost).min(BURST);
        answers
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::header_table::END_HEADERS;
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let len = u32::try_from(payload).unwrap().to_be_bytes();
        let header = [&len[1..], &[kind], &[0; 5]].concat();
        [header, vec![0; payload]].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn floods_are_recognized_however_they_are_cut() {
        for kind in [2, 3, 4, 7, 8, 77] {
            for size in [1, 13, 100, 4_096] {
                let mut meter = FrameMeter::new();
                let allowed = frame(kind, 5).repeat(8_192);
                assert!(allowed.chunks(size).all(|bytes| meter.on_read(bytes).is_ok()));
                assert_eq!(meter.on_read(&frame(kind, 5)), Err(Flood), "{kind}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn data_is_not_counted_and_answers_to_data_are_paid_for() {
        let mut meter = FrameMeter::new();
        for _ in 0..100_000 {
            assert!(meter.on_read(&frame(0, 1)).is_ok());
            meter.on_written(&frame(0, 31));
            assert!(meter.on_read(&frame(8, 4).repeat(2)).is_ok());
        }
        // A PING is answered with 17 bytes.
        let mut pings = 0;
        while meter.on_read(&frame(6, 8)).is_ok() {
            meter.on_written(&frame(6, 8));
            pings += 1;
        }
        assert!(pings < 10_000, "{pings}");
        // A frame for a stream that has ended, with RST_STREAM.
        let mut meter = FrameMeter::new();
        let mut late = 0;
        while meter.on_read(&frame(0, 1)).is_ok() {
            meter.on_written(&frame(3, 4));
            late += 1;
        }
        assert!((5_000..10_000).contains(&late), "{late}");
    }

    fn headers(stream: u32) -> Vec<u8> {
        let mut headers = frame(HEADERS, 1);
        headers[5..9].copy_from_slice(&stream.to_be_bytes());
        headers
    }

    #[test]
    fn requests_and_answers_are_counted() {
        let mut meter = FrameMeter::new();
        let requests: Vec<u8> = (1..10).step_by(2).flat_map(headers).collect();
        assert_eq!(meter.on_read(&requests).unwrap().requests, 5);
        // Trailers of the client are no request.
        assert_eq!(meter.on_read(&headers(3)).unwrap().requests, 0);
        let written = [HEADERS, RST_STREAM, DATA].map(|kind| frame(kind, 4));
        assert_eq!(meter.on_written(&written.concat()), 2);
    }

    #[test]
    fn header_blocks_without_an_end_and_trailers_are_recognized() {
        let mut meter = FrameMeter::new();
        let mut read = |mut frame: Vec<u8>, flags| {
            frame[4] = flags;
            let read = meter.on_read(&frame).unwrap();
            (read.ends_in_headers, read.trailers, read.other_bytes)
        };
        assert_eq!(read(headers(1), 0), (true, 0, 10));
        assert_eq!(read(frame(CONTINUATION, 1), 0), (true, 0, 10));
        assert_eq!(read(frame(CONTINUATION, 1), END_HEADERS), (false, 0, 10));
        assert_eq!(read(frame(DATA, 1), 0), (false, 0, 9));
        assert_eq!(read(headers(1), END_HEADERS), (false, 1, 10));
        assert_eq!(read(headers(3), END_HEADERS), (false, 0, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_allowance_is_refilled() {
        let mut meter = FrameMeter::new();
        for _ in 0..100 {
            assert!(meter.on_read(&frame(6, 8).repeat(256)).is_ok());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
