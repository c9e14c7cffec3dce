//! Recognizes connections that send frames which cost work and carry nothing: floods of PRIORITY, WINDOW_UPDATE, PING and
//! the like, and of frames for streams that have ended, to which h2 responds with RST_STREAM. h2 accepts any number of them.

use tokio::time::Instant;

use super::header_table::{HeaderTable, READ_BUFFER};
use super::open_streams::{DataRun, OpenStreams};

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

/// The work of a call, compared with that of a frame.
const CALL_WORK: usize = 16;

/// For how many open streams h2 changes the window in the time that it takes for a frame.
const STREAMS_PER_WORK: usize = 16;

/// How many header fields are as much work as a frame.
const FIELDS_PER_WORK: usize = 4;

/// How many header fields that are too many count as a frame that is too short.
const FIELDS_PER_SHORT_FRAME: usize = 4;

/// Length of what precedes each gRPC message: whether it is compressed, and its length.
const MESSAGE_PREFIX_LEN: usize = 5;

/// Flags of a DATA frame.
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

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
    /// The length of its payload.
    len: usize,
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
    stream: u32,
    /// The length of its payload.
    len: usize,
    /// Whether it is a HEADERS frame that begins a stream.
    is_request: bool,
    /// Where its payload begins, in bytes from the beginning of the connection.
    offset: u64,
}

/// A part of the bytes of a connection.
enum FramePart<'a> {
    Header(FrameHeader),
    Payload(Payload<'a>),
}

/// A part of the payload of a frame.
struct Payload<'a> {
    kind: u8,
    bytes: &'a [u8],
    is_last: bool,
}

impl FrameScanner {
    /// Calls `on_part` with each part of the next `bytes`; a header counts where it ends.
    fn scan<'a>(&mut self, mut bytes: &'a [u8], mut on_part: impl FnMut(FramePart<'a>)) {
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            if skipped > 0 {
                on_part(FramePart::Payload(Payload {
                    kind: self.kind,
                    bytes: &bytes[..skipped],
                    is_last: self.payload == 0,
                }));
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
                (self.kind, self.len) = (kind, self.payload);
                let is_request = kind == HEADERS && stream > self.newest_stream;
                if is_request {
                    self.newest_stream = stream;
                }
                on_part(FramePart::Header(FrameHeader {
                    kind,
                    flags,
                    stream,
                    len: self.payload,
                    is_request,
                    offset: self.scanned,
                }));
            }
        }
    }

    /// The length of the frame that has arrived in part, in bytes, if it has a buffer of its own.
    fn incomplete(&self) -> usize {
        if self.payload > 0 && self.len > READ_BUFFER {
            self.len
        } else {
            0
        }
    }
}

/// A DATA frame that is being read.
#[derive(Debug, Clone, Copy, Default)]
struct DataFrame {
    stream: u32,
    /// The length of the data, or that of the whole payload as long as that of the padding is not known.
    len: usize,
    is_padding_known: bool,
    padding: usize,
    ends_stream: bool,
}

impl DataFrame {
    /// Reads the length of the padding.
    fn read_padding(&mut self, padding: u8) {
        self.is_padding_known = true;
        self.padding = padding.into();
        self.len = self.len.saturating_sub(1 + self.padding);
    }

    /// Whether it is too short for a message. Clients do not send such frames.
    fn is_short(&self) -> bool {
        self.len < MESSAGE_PREFIX_LEN && !self.ends_stream
    }
}

/// The frames in some bytes that were read from a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ReadFrames {
    /// The work that they make: 1 each, but [`CALL_WORK`] for one that begins a call, and 1 for each [`FIELDS_PER_WORK`] header fields.
    pub(super) work: usize,
    /// Whether a header block has begun and not ended.
    pub(super) is_in_headers: bool,
    /// The length of a frame that has arrived in part and has a buffer of its own, in bytes.
    pub(super) incomplete: usize,
    /// What the table of headers keeps, in bytes.
    pub(super) header_table: usize,
    /// DATA frames that are too short for a message, and as many for [excessive](HeaderTable::excess) header fields.
    pub(super) short: u32,
}

/// Counts the frames of a connection.
#[derive(Debug)]
pub(super) struct FrameMeter {
    read: FrameScanner,
    written: FrameScanner,
    data: DataFrame,
    header_table: HeaderTable,
    allowance: f64,
    refilled_at: Instant,
}

impl FrameMeter {
    pub(super) fn new() -> Self {
        Self {
            read: FrameScanner::default(),
            written: FrameScanner::default(),
            data: DataFrame::default(),
            header_table: HeaderTable::default(),
            allowance: BURST,
            refilled_at: Instant::now(),
        }
    }

    /// Counts the frames in the next bytes of the connection, and in `streams` what h2 holds of them.
    ///
    /// # Errors
    ///
    /// There are too many of them. The connection should be closed.
    pub(super) fn on_read(&mut self, bytes: &[u8], streams: &mut OpenStreams) -> Result<ReadFrames, Flood> {
        let (mut cost, mut frames) = (0.0, ReadFrames::default());
        let fields = |table: &HeaderTable| {
            let work = table.fields() / FIELDS_PER_WORK;
            (work, table.excess() / FIELDS_PER_SHORT_FRAME)
        };
        let before = fields(&self.header_table);
        let (header_table, data) = (&mut self.header_table, &mut self.data);
        streams.receive_bytes(bytes.as_ptr().addr(), bytes.len());
        // Frames of one stream are counted together: most clients send them so.
        let mut uncounted = DataRun::default();
        self.read.scan(bytes, |part| {
            let FrameHeader {
                kind,
                flags,
                stream,
                len,
                is_request,
                offset,
            } = match part {
                FramePart::Header(header) => header,
                FramePart::Payload(payload) if payload.kind == DATA => {
                    if !data.is_padding_known {
                        data.read_padding(payload.bytes[0]);
                        frames.short += u32::from(data.is_short());
                    }
                    if payload.is_last {
                        let end = payload.bytes.as_ptr_range().end.addr() - data.padding;
                        let frame = DataRun::one(data.stream, end, data.len, data.ends_stream);
                        if let Err(frame) = uncounted.append(frame) {
                            streams.receive_data(&std::mem::replace(&mut uncounted, frame));
                        }
                    }
                    return;
                }
                FramePart::Payload(payload) => {
                    if matches!(payload.kind, HEADERS | CONTINUATION) {
                        header_table.read(payload.bytes);
                    }
                    return;
                }
            };
            if kind != DATA || len == 0 {
                streams.receive_data(&std::mem::take(&mut uncounted));
            }
            frames.work += match kind {
                HEADERS => CALL_WORK,
                // They may change the windows of all streams.
                SETTINGS => 1 + streams.len() / STREAMS_PER_WORK,
                _ => 1,
            };
            match kind {
                HEADERS => {
                    if is_request {
                        streams.open(stream);
                    } else {
                        streams.receive_trailers(stream);
                    }
                    header_table.begin_headers(flags, len, offset);
                }
                CONTINUATION => header_table.begin_continuation(flags, len, offset),
                DATA => {
                    *data = DataFrame {
                        stream,
                        len,
                        is_padding_known: flags & PADDED == 0 || len == 0,
                        padding: 0,
                        ends_stream: flags & END_STREAM != 0,
                    };
                    frames.short += u32::from(data.is_padding_known && data.is_short());
                    if len == 0 {
                        streams.receive_data(&DataRun::one(stream, 0, 0, data.ends_stream));
                    }
                }
                RST_STREAM => {
                    streams.close(stream);
                }
                // h2 resets a stream that depends on itself.
                PRIORITY => streams.receive_late(1),
                _ => {}
            }
            cost += match kind {
                // They carry data or belong to a call. h2 and the budget for what is unread bound them.
                DATA | HEADERS | PUSH_PROMISE | CONTINUATION => 0.0,
                // Their answers must not pay for the next ones.
                PING | SETTINGS => 2.0,
                _ => 1.0,
            };
        });
        streams.receive_data(&uncounted);
        frames.is_in_headers = self.header_table.is_open();
        frames.header_table = self.header_table.kept();
        frames.incomplete = self.read.incomplete();
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

    /// Counts the frames in bytes that were sent on the connection. `streams` learns which they answer and end.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn on_written(&mut self, bytes: &[u8], streams: &mut OpenStreams) {
        let mut cost = 0.0;
        self.written.scan(bytes, |part| {
            let FramePart::Header(FrameHeader {
                kind, flags, stream, ..
            }) = part
            else {
                return;
            };
            match kind {
                RST_STREAM => {
                    streams.reset(stream);
                    cost += 2.0;
                }
                HEADERS | DATA if flags & END_STREAM != 0 => {
                    streams.close(stream);
                }
                HEADERS => streams.answer(stream),
                _ => {}
            }
        });
        let earned = bytes.len() as f64 / SENT_BYTES_PER_FRAME;
        self.allowance = (self.allowance + earned - cost).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::header_table::END_HEADERS;
    use super::super::open_streams::{HEADER_MAP_BYTES, RequestReader, UNANSWERED_BYTES};
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let len = u32::try_from(payload).unwrap().to_be_bytes();
        let header = [&len[1..], &[kind], &[0; 5]].concat();
        [header, vec![0; payload]].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn floods_are_recognized_however_they_are_cut() {
        for (kind, allowed) in [
            (2, 8_192),
            (3, 8_192),
            (4, 4_096),
            (7, 8_192),
            (8, 8_192),
            (77, 8_192),
        ] {
            for size in [1, 13, 100, 4_096] {
                let (mut meter, streams) = (FrameMeter::new(), &mut OpenStreams::default());
                let allowed = frame(kind, 5).repeat(allowed);
                assert!(
                    allowed
                        .chunks(size)
                        .all(|bytes| meter.on_read(bytes, streams).is_ok())
                );
                assert_eq!(meter.on_read(&frame(kind, 5), streams), Err(Flood), "{kind}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn data_is_not_counted_and_answers_to_data_are_paid_for() {
        let (mut meter, streams) = (FrameMeter::new(), &mut OpenStreams::default());
        for _ in 0..100_000 {
            assert!(meter.on_read(&frame(0, 1), streams).is_ok());
            meter.on_written(&frame(0, 31), streams);
            assert!(meter.on_read(&frame(8, 4).repeat(2), streams).is_ok());
        }
        // A PING is answered with 17 bytes.
        let mut pings = 0;
        while meter.on_read(&frame(6, 8), streams).is_ok() {
            meter.on_written(&frame(6, 8), streams);
            pings += 1;
        }
        assert!(pings < 10_000, "{pings}");
        // A frame for a stream that has ended, with RST_STREAM.
        let (mut meter, streams) = (FrameMeter::new(), &mut OpenStreams::default());
        let mut late = 0;
        while meter.on_read(&frame(0, 1), streams).is_ok() {
            meter.on_written(&frame(3, 4), streams);
            late += 1;
        }
        assert!((5_000..10_000).contains(&late), "{late}");
    }

    /// A frame of a stream with these flags.
    fn stream_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = frame(kind, payload.len());
        frame[4] = flags;
        frame[5..9].copy_from_slice(&stream.to_be_bytes());
        frame[9..].copy_from_slice(payload);
        frame
    }

    #[test]
    fn streams_are_open_until_the_server_or_the_client_ends_them() {
        let (mut meter, streams) = (FrameMeter::new(), &mut OpenStreams::default());
        let requests = (1..10)
            .step_by(2)
            .map(|stream| stream_frame(HEADERS, END_HEADERS, stream, &[0x83]));
        let requests: Vec<u8> = requests.flatten().collect();
        for part in requests.chunks(7) {
            meter.on_read(part, streams).unwrap();
        }
        assert_eq!((streams.len(), streams.bytes()), (5, 5 * UNANSWERED_BYTES));
        meter
            .on_read(&stream_frame(RST_STREAM, 0, 1, &[0; 4]), streams)
            .unwrap();
        let written = [
            stream_frame(HEADERS, END_HEADERS, 3, &[0x88]),
            stream_frame(HEADERS, END_HEADERS | END_STREAM, 5, &[0x88]),
            stream_frame(DATA, END_STREAM, 7, &[]),
            stream_frame(DATA, 0, 9, &[]),
        ];
        meter.on_written(&written.concat(), streams);
        assert_eq!((streams.len(), streams.bytes()), (2, UNANSWERED_BYTES));
        meter.on_written(&stream_frame(RST_STREAM, 0, 9, &[0; 4]), streams);
        assert_eq!((streams.len(), streams.bytes()), (1, 0));
        streams.set_blocked(true);
        // Trailers of the client are no request, and what comes for streams that have ended is answered.
        let read = [
            stream_frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0x88]),
            stream_frame(HEADERS, END_HEADERS, 5, &[0x88]),
            stream_frame(DATA, 0, 7, &[0]),
            stream_frame(PRIORITY, 0, 11, &[0; 5]),
        ];
        meter.on_read(&read.concat(), streams).unwrap();
        assert_eq!(
            (streams.len(), streams.bytes()),
            (1, HEADER_MAP_BYTES + 3 * UNANSWERED_BYTES)
        );
    }

    #[test]
    fn settings_are_more_work_the_more_streams_are_open() {
        let (mut meter, streams) = (FrameMeter::new(), &mut OpenStreams::default());
        let settings = frame(SETTINGS, 6);
        assert_eq!(meter.on_read(&settings, streams).unwrap().work, 1);
        for stream in 0..1_000 {
            streams.open(2 * stream + 1);
        }
        assert_eq!(meter.on_read(&settings, streams).unwrap().work, 63);
    }

    #[test]
    fn header_blocks_without_an_end_and_incomplete_frames_are_recognized() {
        let (mut meter, streams) = (FrameMeter::new(), &mut OpenStreams::default());
        let mut read = |frame: &[u8]| {
            let read = meter.on_read(frame, streams).unwrap();
            (read.is_in_headers, read.incomplete)
        };
        assert_eq!(read(&stream_frame(HEADERS, 0, 1, &[0x83])), (true, 0));
        assert_eq!(read(&stream_frame(CONTINUATION, 0, 1, &[0x83])), (true, 0));
        assert_eq!(
            read(&stream_frame(CONTINUATION, END_HEADERS, 1, &[0x83])),
            (false, 0)
        );
        for (len, incomplete) in [(READ_BUFFER, 0), (16_384, 16_384)] {
            let long = frame(DATA, len);
            assert_eq!(read(&long[..100]), (false, incomplete));
            assert_eq!(read(&long[100..]), (false, 0));
        }
    }

    #[test]
    fn padding_is_no_data() {
        let (mut meter, streams) = (FrameMeter::new(), &mut OpenStreams::default());
        meter
            .on_read(&stream_frame(HEADERS, END_HEADERS, 1, &[0x83]), streams)
            .unwrap();
        let (mut short, mut reader) = (0, RequestReader::default());
        let frames = [5, 4, 0, 6].map(|len| {
            let payload = [&[3][..], &vec![7; len], &[0; 3]].concat();
            stream_frame(DATA, PADDED, 1, &payload)
        });
        let bytes = [frames.concat(), stream_frame(DATA, PADDED, 1, &[])].concat();
        for part in bytes.chunks(3) {
            short += meter.on_read(part, streams).unwrap().short;
        }
        assert_eq!(short, 3);
        // Four frames, of which the one without data is not kept, and an invalid one.
        let mut end = 0;
        for len in [5, 4, 0, 6] {
            let start = end + 10;
            end = start + len + 3;
            streams.read_data(&mut reader, &bytes[start..start + len]);
        }
        assert_eq!(streams.frames(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_allowance_is_refilled() {
        let (mut meter, streams) = (FrameMeter::new(), &mut OpenStreams::default());
        for _ in 0..100 {
            assert!(meter.on_read(&frame(6, 8).repeat(256), streams).is_ok());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
