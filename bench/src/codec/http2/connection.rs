//! The client side of an HTTP/2 connection: settings, flow control, and the dispatch of payloads to streams.

use super::frame::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADER_LEN, HEADERS, PADDED, PING,
    PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use super::hpack::{StreamStatus, put_header};
use crate::codec::ConnectionError;
use crate::plan::Http2Settings;

/// The settings of RFC 9113, section 6.5.2, and their initial values.
const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const DEFAULT_WINDOW: u32 = 65_535;
const DEFAULT_FRAME: usize = 16_384;
/// The longest frame other than DATA, which is parsed only when it is complete.
const MAX_CONTROL: usize = 65_536;
/// The longest header block, in bytes.
const MAX_BLOCK: usize = 65_536;

/// Receives the data of the streams, which are numbered from 0 in the order in which they were opened.
pub(in crate::codec) trait StreamHandler {
    /// The next bytes of a response body.
    fn data(&mut self, stream: usize, bytes: &[u8]) -> Result<(), ConnectionError>;
    /// The stream has ended. `why` is `None` if its gRPC status is OK.
    fn ended(&mut self, stream: usize, why: Option<String>);
}

/// What the parser expects next.
#[derive(Debug, Clone, Copy)]
enum ParseState {
    Header,
    /// The payload of a frame that is parsed as a whole.
    Payload(Frame),
    /// The rest of the payload of a DATA frame.
    Data {
        stream: usize,
        remaining: usize,
        end: bool,
    },
}

#[derive(Debug)]
struct Stream {
    send_window: i64,
    /// Bytes received since the last WINDOW_UPDATE.
    unacknowledged: u32,
    status: StreamStatus,
    ended: bool,
}

/// The client side of a connection.
#[derive(Debug)]
pub(in crate::codec) struct Http2Connection {
    settings: Http2Settings,
    state: ParseState,
    streams: Vec<Stream>,
    send_window: i64,
    unacknowledged: u32,
    peer_initial_window: u32,
    peer_max_frame_size: usize,
    peer_max_streams: u32,
    settings_received: bool,
    /// An incomplete header block and the HEADERS frame that began it.
    header_block: Option<(Frame, Vec<u8>)>,
    goaway: Option<String>,
}

impl Http2Connection {
    pub(in crate::codec) fn new(settings: Http2Settings) -> Self {
        Self {
            settings,
            state: ParseState::Header,
            streams: Vec::new(),
            send_window: i64::from(DEFAULT_WINDOW),
            unacknowledged: 0,
            peer_initial_window: DEFAULT_WINDOW,
            peer_max_frame_size: DEFAULT_FRAME,
            peer_max_streams: u32::MAX,
            settings_received: false,
            header_block: None,
            goaway: None,
        }
    }

    /// Appends the preface, the settings and the update of the connection window.
    pub(in crate::codec) fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        let settings = [
            // No dynamic table, so decoding a header block needs no state.
            (HEADER_TABLE_SIZE, 0),
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW_SIZE, self.settings.stream_window),
            (MAX_FRAME_SIZE, self.settings.max_frame_size),
        ];
        let mut payload = Vec::with_capacity(24);
        for (setting, value) in settings {
            payload.extend_from_slice(&setting.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        frame::put(SETTINGS, 0, 0, &payload, out);
        let more = self.settings.connection_window.saturating_sub(DEFAULT_WINDOW);
        put_window(0, more, out);
    }

    /// Whether the server's settings have arrived, so that streams may be opened.
    pub(in crate::codec) fn settings_received(&self) -> bool {
        self.settings_received
    }

    /// The number of concurrent streams that the server permits.
    pub(in crate::codec) fn max_streams(&self) -> u32 {
        self.peer_max_streams
    }

    /// The text of a received GOAWAY frame.
    pub(in crate::codec) fn goaway(&self) -> Option<&str> {
        self.goaway.as_deref()
    }

    /// Opens a stream with a gRPC request.
    pub(in crate::codec) fn request(&mut self, authority: &str, path: &str, out: &mut Vec<u8>) {
        let mut block = Vec::with_capacity(160);
        let headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            (
                "user-agent",
                concat!("chitchat-bench/", env!("CARGO_PKG_VERSION")),
            ),
        ];
        for (name, value) in headers {
            put_header(name, value, &mut block);
        }
        frame::put(HEADERS, END_HEADERS, stream_id(self.streams.len()), &block, out);
        self.streams.push(Stream {
            send_window: i64::from(self.peer_initial_window),
            unacknowledged: 0,
            status: StreamStatus::default(),
            ended: false,
        });
    }

    /// Whether the windows permit `length` bytes on a stream now. For a stream that is not open yet the initial window
    /// counts.
    pub(in crate::codec) fn has_window(&self, stream: usize, length: usize) -> bool {
        let window = self
            .streams
            .get(stream)
            .map_or(i64::from(self.peer_initial_window), |stream| stream.send_window);
        i64::try_from(length).is_ok_and(|length| length <= window.min(self.send_window))
    }

    /// Appends `bytes` as DATA. The caller has checked [`Self::has_window`].
    pub(in crate::codec) fn send(&mut self, stream: usize, bytes: &[u8], last: bool, out: &mut Vec<u8>) {
        let spent = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        self.send_window -= spent;
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.send_window -= spent;
        }
        let mut chunks = bytes.chunks(self.peer_max_frame_size).peekable();
        while let Some(chunk) = chunks.next() {
            let flags = if last && chunks.peek().is_none() {
                END_STREAM
            } else {
                0
            };
            frame::put(DATA, flags, stream_id(stream), chunk, out);
        }
    }

    /// Parses `input`. Returns the number of bytes consumed.
    pub(in crate::codec) fn receive(
        &mut self,
        input: &[u8],
        handler: &mut impl StreamHandler,
        out: &mut Vec<u8>,
    ) -> Result<usize, ConnectionError> {
        let mut rest = input;
        loop {
            match self.state {
                ParseState::Header => {
                    let Some((header, after)) = rest.split_first_chunk::<HEADER_LEN>() else {
                        break;
                    };
                    rest = after;
                    self.state = self.begin_frame(Frame::read(header), out)?;
                }
                ParseState::Payload(frame) => {
                    let Some((payload, after)) = rest.split_at_checked(frame.length) else {
                        break;
                    };
                    rest = after;
                    self.state = ParseState::Header;
                    self.handle_frame(frame, payload, handler, out)?;
                }
                ParseState::Data {
                    stream,
                    remaining,
                    end,
                } => {
                    let (bytes, after) = rest.split_at(remaining.min(rest.len()));
                    rest = after;
                    if !bytes.is_empty() {
                        handler.data(stream, bytes)?;
                    }
                    if bytes.len() < remaining {
                        self.state = ParseState::Data {
                            stream,
                            remaining: remaining - bytes.len(),
                            end,
                        };
                        break;
                    }
                    self.state = ParseState::Header;
                    if end {
                        self.on_end_stream(stream, handler);
                    }
                }
            }
        }
        Ok(input.len() - rest.len())
    }

    /// Handles the header of a frame.
    fn begin_frame(&mut self, frame: Frame, out: &mut Vec<u8>) -> Result<ParseState, ConnectionError> {
        let largest = usize::try_from(self.settings.max_frame_size).unwrap_or(usize::MAX);
        if frame.length > largest {
            return Err(ConnectionError(format!(
                "a frame of {} bytes, at most {largest} were announced",
                frame.length
            )));
        }
        if self.header_block.is_some() && frame.kind != CONTINUATION {
            return Err(ConnectionError("another frame within a header block".to_owned()));
        }
        if frame.kind == DATA {
            self.count_received(frame, out)?;
            if !frame.has(PADDED) {
                let stream = self.index(frame.stream)?;
                return Ok(ParseState::Data {
                    stream,
                    remaining: frame.length,
                    end: frame.has(END_STREAM),
                });
            }
        }
        if frame.length > MAX_CONTROL {
            return Err(ConnectionError(format!(
                "a frame of type {} and {} bytes",
                frame.kind, frame.length
            )));
        }
        Ok(ParseState::Payload(frame))
    }

    /// Counts a DATA frame against the windows, and sends WINDOW_UPDATE when half a window is used. Received data is
    /// processed at once, so all of it can be acknowledged.
    fn count_received(&mut self, frame: Frame, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let length = u32::try_from(frame.length).unwrap_or(u32::MAX);
        self.unacknowledged = self.unacknowledged.saturating_add(length);
        if self.unacknowledged > self.settings.connection_window {
            return Err(ConnectionError(
                "the server sent more than the connection's window".to_owned(),
            ));
        }
        if self.unacknowledged >= self.settings.connection_window / 2 {
            put_window(0, std::mem::take(&mut self.unacknowledged), out);
        }
        let (window, index) = (self.settings.stream_window, self.index(frame.stream)?);
        let Some(stream) = self.streams.get_mut(index) else {
            return Ok(());
        };
        stream.unacknowledged = stream.unacknowledged.saturating_add(length);
        if stream.unacknowledged > window {
            return Err(ConnectionError(
                "the server sent more than the stream's window".to_owned(),
            ));
        }
        if stream.unacknowledged >= window / 2 && !frame.has(END_STREAM) {
            put_window(frame.stream, std::mem::take(&mut stream.unacknowledged), out);
        }
        Ok(())
    }

    fn handle_frame(
        &mut self,
        frame: Frame,
        payload: &[u8],
        handler: &mut impl StreamHandler,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        match frame.kind {
            DATA => {
                let bytes = frame::unpad(frame, payload).ok_or_else(|| malformed("DATA"))?;
                let stream = self.index(frame.stream)?;
                handler.data(stream, bytes)?;
                if frame.has(END_STREAM) {
                    self.on_end_stream(stream, handler);
                }
            }
            HEADERS => {
                let mut bytes = frame::unpad(frame, payload).ok_or_else(|| malformed("HEADERS"))?;
                if frame.has(PRIORITY) {
                    bytes = bytes.get(5..).ok_or_else(|| malformed("HEADERS"))?;
                }
                self.header_block = Some((frame, bytes.to_vec()));
                self.finish_header_block(frame, handler)?;
            }
            CONTINUATION => {
                let Some((_, block)) = &mut self.header_block else {
                    return Err(malformed("CONTINUATION"));
                };
                block.extend_from_slice(payload);
                if block.len() > MAX_BLOCK {
                    return Err(ConnectionError(format!(
                        "a header block of more than {MAX_BLOCK} bytes"
                    )));
                }
                self.finish_header_block(frame, handler)?;
            }
            RST_STREAM => {
                let code = read_u32(payload, 0).ok_or_else(|| malformed("RST_STREAM"))?;
                let stream = self.index(frame.stream)?;
                self.close_stream(
                    stream,
                    Some(format!("RST_STREAM {}", frame::error_name(code))),
                    handler,
                );
            }
            SETTINGS if !frame.has(ACK) => {
                self.apply_settings(payload)?;
                frame::put(SETTINGS, ACK, 0, &[], out);
            }
            PING if !frame.has(ACK) => frame::put(PING, ACK, 0, payload, out),
            GOAWAY => {
                let code = read_u32(payload, 4).ok_or_else(|| malformed("GOAWAY"))?;
                let data = String::from_utf8_lossy(payload.get(8..).unwrap_or_default());
                let text = format!("GOAWAY {} {}", frame::error_name(code), data.escape_debug());
                let text = text.trim_end().to_owned();
                if code != 0 {
                    return Err(ConnectionError(text));
                }
                self.goaway = Some(text);
            }
            WINDOW_UPDATE => self.apply_window_update(frame, payload)?,
            PUSH_PROMISE => return Err(malformed("PUSH_PROMISE")),
            // Acknowledgements, PRIORITY and extension frames.
            _ => {}
        }
        Ok(())
    }

    fn finish_header_block(
        &mut self,
        frame: Frame,
        handler: &mut impl StreamHandler,
    ) -> Result<(), ConnectionError> {
        if !frame.has(END_HEADERS) {
            return Ok(());
        }
        let Some((first, block)) = self.header_block.take() else {
            return Ok(());
        };
        let stream = self.index(first.stream)?;
        let read = StreamStatus::read(&block);
        if let Some(Stream { status, .. }) = self.streams.get_mut(stream) {
            status.http_status = read.http_status.or(status.http_status.take());
            status.grpc_status = read.grpc_status;
            status.grpc_message = read.grpc_message;
        }
        if first.has(END_STREAM) {
            self.on_end_stream(stream, handler);
        }
        Ok(())
    }

    /// Handles END_STREAM.
    fn on_end_stream(&mut self, stream: usize, handler: &mut impl StreamHandler) {
        let why = self.streams.get(stream).and_then(|stream| stream.status.error());
        self.close_stream(stream, why, handler);
    }

    fn close_stream(&mut self, index: usize, why: Option<String>, handler: &mut impl StreamHandler) {
        // A server may reset a stream that it has ended, because it does not read the rest of the request.
        if let Some(stream) = self.streams.get_mut(index)
            && !std::mem::replace(&mut stream.ended, true)
        {
            handler.ended(index, why);
        }
    }

    fn apply_settings(&mut self, payload: &[u8]) -> Result<(), ConnectionError> {
        let (entries, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(malformed("SETTINGS"));
        }
        for &[a, b, c, d, e, f] in entries {
            let value = u32::from_be_bytes([c, d, e, f]);
            match u16::from_be_bytes([a, b]) {
                MAX_CONCURRENT_STREAMS => self.peer_max_streams = value,
                INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - i64::from(self.peer_initial_window);
                    self.peer_initial_window = value;
                    self.streams
                        .iter_mut()
                        .for_each(|stream| stream.send_window += change);
                }
                MAX_FRAME_SIZE => {
                    let largest = usize::try_from(value).unwrap_or(DEFAULT_FRAME);
                    self.peer_max_frame_size = largest.max(DEFAULT_FRAME);
                }
                _ => {}
            }
        }
        self.settings_received = true;
        Ok(())
    }

    fn apply_window_update(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        let more = read_u32(payload, 0).ok_or_else(|| malformed("WINDOW_UPDATE"))? & 0x7FFF_FFFF;
        if frame.stream == 0 {
            self.send_window += i64::from(more);
        } else {
            let index = self.index(frame.stream)?;
            if let Some(stream) = self.streams.get_mut(index) {
                stream.send_window += i64::from(more);
            }
        }
        Ok(())
    }

    /// The index of a stream. Client-initiated streams are 1, 3, 5, ….
    #[inline]
    fn index(&self, stream: u32) -> Result<usize, ConnectionError> {
        let index = usize::try_from(stream / 2).unwrap_or(usize::MAX);
        if stream % 2 == 1 && index < self.streams.len() {
            Ok(index)
        } else {
            Err(ConnectionError(format!(
                "a frame for stream {stream}, which is not open"
            )))
        }
    }
}

fn stream_id(stream: usize) -> u32 {
    u32::try_from(stream * 2 + 1).unwrap_or(u32::MAX)
}

fn put_window(stream: u32, more: u32, out: &mut Vec<u8>) {
    if more > 0 {
        frame::put(WINDOW_UPDATE, 0, stream, &more.to_be_bytes(), out);
    }
}

fn read_u32(payload: &[u8], at: usize) -> Option<u32> {
    payload
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
}

fn malformed(frame: &str) -> ConnectionError {
    ConnectionError(format!("a malformed {frame} frame"))
}
