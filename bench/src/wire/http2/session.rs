//! One HTTP/2 connection: settings, flow control both ways, and which stream a payload belongs to.

use super::frame::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADER_LEN, HEADERS, PADDED, PING,
    PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use super::hpack::{Outcome, put_header};
use crate::plan::Http2Settings;
use crate::wire::Cut;

/// What every HTTP/2 connection starts with.
const DEFAULT_WINDOW: u32 = 65_535;
const DEFAULT_FRAME: usize = 16_384;
/// Frames other than DATA are read whole, so they have to be short.
const MAX_CONTROL: usize = 65_536;
/// The longest header block.
const MAX_BLOCK: usize = 65_536;

/// Takes what arrives on streams. Streams are counted from 0 in the order they were opened.
pub(in crate::wire) trait Handler {
    /// The next bytes of a stream's body.
    fn data(&mut self, stream: usize, bytes: &[u8]) -> Result<(), Cut>;
    /// The stream is over; `None` = with the gRPC status OK.
    fn ended(&mut self, stream: usize, why: Option<String>);
}

/// What comes next in the input.
#[derive(Debug, Clone, Copy)]
enum Expect {
    Header,
    /// A frame that is read whole.
    Whole(Frame),
    /// So many bytes of a DATA frame's payload.
    Body {
        stream: usize,
        remaining: usize,
        end: bool,
    },
}

#[derive(Debug)]
struct Stream {
    may_send: i64,
    /// Received and not yet given back to the server as window.
    unreported: u32,
    outcome: Outcome,
    over: bool,
}

/// The client's side of a connection.
#[derive(Debug)]
pub(in crate::wire) struct Session {
    settings: Http2Settings,
    expect: Expect,
    streams: Vec<Stream>,
    may_send: i64,
    unreported: u32,
    peer_window: u32,
    peer_frame: usize,
    peer_streams: u32,
    settled: bool,
    /// A header block that is not complete: the frame that began it and its bytes.
    block: Option<(Frame, Vec<u8>)>,
    goaway: Option<String>,
}

impl Session {
    pub(in crate::wire) fn new(settings: Http2Settings) -> Self {
        Self {
            settings,
            expect: Expect::Header,
            streams: Vec::new(),
            may_send: i64::from(DEFAULT_WINDOW),
            unreported: 0,
            peer_window: DEFAULT_WINDOW,
            peer_frame: DEFAULT_FRAME,
            peer_streams: u32::MAX,
            settled: false,
            block: None,
            goaway: None,
        }
    }

    /// Appends the preface, the settings and the connection's window.
    pub(in crate::wire) fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        let settings = [
            // No dynamic table: then header blocks can be read without remembering earlier ones.
            (1_u16, 0),
            // No pushes.
            (2, 0),
            (4, self.settings.stream_window),
            (5, self.settings.max_frame_size),
        ];
        let mut payload = Vec::with_capacity(24);
        for (identifier, value) in settings {
            payload.extend_from_slice(&identifier.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        frame::put(SETTINGS, 0, 0, &payload, out);
        let more = self.settings.connection_window.saturating_sub(DEFAULT_WINDOW);
        put_window(0, more, out);
    }

    /// Whether the server has told its settings, so that streams may be opened.
    pub(in crate::wire) fn settled(&self) -> bool {
        self.settled
    }

    /// How many streams the server allows at a time.
    pub(in crate::wire) fn allowed_streams(&self) -> u32 {
        self.peer_streams
    }

    /// Why the server is about to close the connection, when it said so.
    pub(in crate::wire) fn goaway(&self) -> Option<&str> {
        self.goaway.as_deref()
    }

    /// Opens the next stream with a gRPC request.
    pub(in crate::wire) fn request(&mut self, authority: &str, path: &str, out: &mut Vec<u8>) {
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
        frame::put(HEADERS, END_HEADERS, identifier(self.streams.len()), &block, out);
        self.streams.push(Stream {
            may_send: i64::from(self.peer_window),
            unreported: 0,
            outcome: Outcome::default(),
            over: false,
        });
    }

    /// Whether `length` bytes may be sent on a stream now. A stream that is not open yet has the initial window.
    pub(in crate::wire) fn permits(&self, stream: usize, length: usize) -> bool {
        let window = self
            .streams
            .get(stream)
            .map_or(i64::from(self.peer_window), |stream| stream.may_send);
        i64::try_from(length).is_ok_and(|length| length <= window.min(self.may_send))
    }

    /// Appends `bytes` as DATA. The caller has asked [`Self::permits`].
    pub(in crate::wire) fn send(&mut self, stream: usize, bytes: &[u8], last: bool, out: &mut Vec<u8>) {
        let spent = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        self.may_send -= spent;
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.may_send -= spent;
        }
        let mut pieces = bytes.chunks(self.peer_frame).peekable();
        while let Some(piece) = pieces.next() {
            let flags = if last && pieces.peek().is_none() {
                END_STREAM
            } else {
                0
            };
            frame::put(DATA, flags, identifier(stream), piece, out);
        }
    }

    /// Reads `input`; gives how much of it is done with.
    pub(in crate::wire) fn receive(
        &mut self,
        input: &[u8],
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> Result<usize, Cut> {
        let mut rest = input;
        loop {
            match self.expect {
                Expect::Header => {
                    let Some((header, after)) = rest.split_first_chunk::<HEADER_LEN>() else {
                        break;
                    };
                    rest = after;
                    self.expect = self.begin(Frame::read(header), out)?;
                }
                Expect::Whole(frame) => {
                    let Some((payload, after)) = rest.split_at_checked(frame.length) else {
                        break;
                    };
                    rest = after;
                    self.expect = Expect::Header;
                    self.whole(frame, payload, handler, out)?;
                }
                Expect::Body {
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
                        self.expect = Expect::Body {
                            stream,
                            remaining: remaining - bytes.len(),
                            end,
                        };
                        break;
                    }
                    self.expect = Expect::Header;
                    if end {
                        self.end(stream, handler);
                    }
                }
            }
        }
        Ok(input.len() - rest.len())
    }

    /// Looks at a frame's header.
    fn begin(&mut self, frame: Frame, out: &mut Vec<u8>) -> Result<Expect, Cut> {
        let largest = usize::try_from(self.settings.max_frame_size).unwrap_or(usize::MAX);
        if frame.length > largest {
            return Err(Cut(format!(
                "a frame of {} bytes, at most {largest} were announced",
                frame.length
            )));
        }
        if self.block.is_some() && frame.kind != CONTINUATION {
            return Err(Cut("a header block is interrupted".to_owned()));
        }
        if frame.kind == DATA {
            self.received(frame, out)?;
            if !frame.has(PADDED) {
                let stream = self.index(frame.stream)?;
                return Ok(Expect::Body {
                    stream,
                    remaining: frame.length,
                    end: frame.has(END_STREAM),
                });
            }
        }
        if frame.length > MAX_CONTROL {
            return Err(Cut(format!(
                "a frame of type {} and {} bytes",
                frame.kind, frame.length
            )));
        }
        Ok(Expect::Whole(frame))
    }

    /// Counts a DATA frame against the windows, and widens them again when half is used up: everything that arrives is
    /// consumed at once.
    fn received(&mut self, frame: Frame, out: &mut Vec<u8>) -> Result<(), Cut> {
        let length = u32::try_from(frame.length).unwrap_or(u32::MAX);
        self.unreported = self.unreported.saturating_add(length);
        if self.unreported > self.settings.connection_window {
            return Err(Cut("the server sent more than the connection's window".to_owned()));
        }
        if self.unreported >= self.settings.connection_window / 2 {
            put_window(0, std::mem::take(&mut self.unreported), out);
        }
        let (window, index) = (self.settings.stream_window, self.index(frame.stream)?);
        let Some(stream) = self.streams.get_mut(index) else {
            return Ok(());
        };
        stream.unreported = stream.unreported.saturating_add(length);
        if stream.unreported > window {
            return Err(Cut("the server sent more than the stream's window".to_owned()));
        }
        if stream.unreported >= window / 2 && !frame.has(END_STREAM) {
            put_window(frame.stream, std::mem::take(&mut stream.unreported), out);
        }
        Ok(())
    }

    fn whole(
        &mut self,
        frame: Frame,
        payload: &[u8],
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> Result<(), Cut> {
        match frame.kind {
            DATA => {
                let bytes = frame::unpad(frame, payload).ok_or_else(|| malformed("DATA"))?;
                let stream = self.index(frame.stream)?;
                handler.data(stream, bytes)?;
                if frame.has(END_STREAM) {
                    self.end(stream, handler);
                }
            }
            HEADERS => {
                let mut bytes = frame::unpad(frame, payload).ok_or_else(|| malformed("HEADERS"))?;
                if frame.has(PRIORITY) {
                    bytes = bytes.get(5..).ok_or_else(|| malformed("HEADERS"))?;
                }
                self.block = Some((frame, bytes.to_vec()));
                self.continued(frame, handler)?;
            }
            CONTINUATION => {
                let Some((_, block)) = &mut self.block else {
                    return Err(malformed("CONTINUATION"));
                };
                block.extend_from_slice(payload);
                if block.len() > MAX_BLOCK {
                    return Err(Cut(format!("a header block of more than {MAX_BLOCK} bytes")));
                }
                self.continued(frame, handler)?;
            }
            RST_STREAM => {
                let code = code(payload, 0).ok_or_else(|| malformed("RST_STREAM"))?;
                let stream = self.index(frame.stream)?;
                self.finish(
                    stream,
                    Some(format!("RST_STREAM {}", frame::error_name(code))),
                    handler,
                );
            }
            SETTINGS if !frame.has(ACK) => {
                self.settings_of_peer(payload)?;
                frame::put(SETTINGS, ACK, 0, &[], out);
            }
            PING if !frame.has(ACK) => frame::put(PING, ACK, 0, payload, out),
            GOAWAY => {
                let code = code(payload, 4).ok_or_else(|| malformed("GOAWAY"))?;
                let data = String::from_utf8_lossy(payload.get(8..).unwrap_or_default());
                let text = format!("GOAWAY {} {}", frame::error_name(code), data.escape_debug());
                let text = text.trim_end().to_owned();
                if code != 0 {
                    return Err(Cut(text));
                }
                self.goaway = Some(text);
            }
            WINDOW_UPDATE => self.window_of_peer(frame, payload)?,
            PUSH_PROMISE => return Err(malformed("PUSH_PROMISE")),
            // Acknowledgements, PRIORITY and what HTTP/2 may get later.
            _ => {}
        }
        Ok(())
    }

    fn continued(&mut self, frame: Frame, handler: &mut impl Handler) -> Result<(), Cut> {
        if !frame.has(END_HEADERS) {
            return Ok(());
        }
        let Some((first, block)) = self.block.take() else {
            return Ok(());
        };
        let stream = self.index(first.stream)?;
        let read = Outcome::read(&block);
        if let Some(Stream { outcome, .. }) = self.streams.get_mut(stream) {
            outcome.http_status = read.http_status.or(outcome.http_status.take());
            outcome.grpc_status = read.grpc_status;
            outcome.grpc_message = read.grpc_message;
        }
        if first.has(END_STREAM) {
            self.end(stream, handler);
        }
        Ok(())
    }

    /// The server ended a stream.
    fn end(&mut self, stream: usize, handler: &mut impl Handler) {
        let why = self.streams.get(stream).and_then(|stream| stream.outcome.fault());
        self.finish(stream, why, handler);
    }

    fn finish(&mut self, index: usize, why: Option<String>, handler: &mut impl Handler) {
        // A server may reset a stream that it has ended, to say that it will not read the rest.
        if let Some(stream) = self.streams.get_mut(index)
            && !std::mem::replace(&mut stream.over, true)
        {
            handler.ended(index, why);
        }
    }

    fn settings_of_peer(&mut self, payload: &[u8]) -> Result<(), Cut> {
        let (entries, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(malformed("SETTINGS"));
        }
        for &[a, b, c, d, e, f] in entries {
            let value = u32::from_be_bytes([c, d, e, f]);
            match u16::from_be_bytes([a, b]) {
                3 => self.peer_streams = value,
                4 => {
                    let change = i64::from(value) - i64::from(self.peer_window);
                    self.peer_window = value;
                    self.streams
                        .iter_mut()
                        .for_each(|stream| stream.may_send += change);
                }
                5 => {
                    let largest = usize::try_from(value).unwrap_or(DEFAULT_FRAME);
                    self.peer_frame = largest.max(DEFAULT_FRAME);
                }
                _ => {}
            }
        }
        self.settled = true;
        Ok(())
    }

    fn window_of_peer(&mut self, frame: Frame, payload: &[u8]) -> Result<(), Cut> {
        let more = code(payload, 0).ok_or_else(|| malformed("WINDOW_UPDATE"))? & 0x7FFF_FFFF;
        if frame.stream == 0 {
            self.may_send += i64::from(more);
        } else {
            let index = self.index(frame.stream)?;
            if let Some(stream) = self.streams.get_mut(index) {
                stream.may_send += i64::from(more);
            }
        }
        Ok(())
    }

    /// Which of the generator's streams an identifier names: it opens 1, 3, 5, ….
    #[inline]
    fn index(&self, stream: u32) -> Result<usize, Cut> {
        let index = usize::try_from(stream / 2).unwrap_or(usize::MAX);
        if stream % 2 == 1 && index < self.streams.len() {
            Ok(index)
        } else {
            Err(Cut(format!("a frame for stream {stream}, which is not open")))
        }
    }
}

fn identifier(stream: usize) -> u32 {
    u32::try_from(stream * 2 + 1).unwrap_or(u32::MAX)
}

fn put_window(stream: u32, more: u32, out: &mut Vec<u8>) {
    if more > 0 {
        frame::put(WINDOW_UPDATE, 0, stream, &more.to_be_bytes(), out);
    }
}

fn code(payload: &[u8], at: usize) -> Option<u32> {
    payload
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
}

fn malformed(frame: &str) -> Cut {
    Cut(format!("a {frame} frame that makes no sense"))
}
