//! Chit Chat's gRPC: a Chat stream per client, optionally several on a connection.

use std::cell::RefCell;
use std::rc::Rc;

use super::decode_cache::{DecodeCache, Decoded};
use super::http2::{Http2Connection, StreamHandler};
use super::{ClientSlot, Codec, ConnectionError, Event, EventKind, EventSink};
use crate::order_checker::fingerprint;
use crate::plan::Http2Settings;
use crate::protobuf::{OutgoingMessage, decode_broadcast, encode_message};
use chitchat::client::SendObserver;
use chitchat::domain::TraceContext;
use chitchat::telemetry::ClientSpans;

const PATH: &str = "/itu.chitchat.ChatService/Chat";
/// The longest message accepted, in bytes.
const MAX_MESSAGE: usize = 131_072;
/// The gRPC prefix of a message: the compression flag and the length.
const PREFIX: usize = 5;

/// One connection to Chit Chat.
#[derive(Debug)]
pub(crate) struct Chitchat {
    authority: String,
    connection: Http2Connection,
    streams: Vec<ClientStream>,
    /// The number of clients that have sent JOIN.
    joined: usize,
    scratch: Vec<u8>,
    cache: Rc<RefCell<DecodeCache>>,
    spans: ClientSpans,
}

/// A client and the state of its stream.
#[derive(Debug)]
struct ClientStream {
    slot: ClientSlot,
    partial: Vec<u8>,
    joined: bool,
    /// Added to cache keys, so that rooms do not evict each other's messages.
    room_hash: u64,
    /// The sequence of the next event, which is part of the cache key.
    next_sequence: u64,
}

impl Chitchat {
    pub(crate) fn new(
        authority: String,
        settings: Http2Settings,
        slots: Vec<ClientSlot>,
        cache: Rc<RefCell<DecodeCache>>,
        spans: ClientSpans,
    ) -> Self {
        let stream = |slot: ClientSlot| ClientStream {
            room_hash: fingerprint(0, 0, 0, slot.room.as_bytes()),
            slot,
            partial: Vec::new(),
            joined: false,
            next_sequence: 0,
        };
        Self {
            authority,
            connection: Http2Connection::new(settings),
            streams: slots.into_iter().map(stream).collect(),
            joined: 0,
            scratch: Vec::new(),
            cache,
            spans,
        }
    }

    /// Opens a stream and sends JOIN for each client, as far as the server's flow-control windows permit.
    fn join(&mut self, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let allowed = usize::try_from(self.connection.max_streams()).unwrap_or(usize::MAX);
        if self.streams.len() > allowed {
            let needed = self.streams.len();
            return Err(ConnectionError(format!(
                "the server allows {allowed} streams a connection and {needed} are needed: use more --connections"
            )));
        }
        while let Some(ClientStream { slot, .. }) = self.streams.get(self.joined) {
            let message = OutgoingMessage {
                kind: EventKind::Join,
                name: &slot.name,
                room: &slot.room,
                timestamp: 1,
                text: b"",
                trace: "",
            };
            frame_message(&message, &mut self.scratch);
            if !self.connection.has_window(self.joined, self.scratch.len()) {
                break;
            }
            self.connection.request(&self.authority, PATH, out);
            self.connection.send(self.joined, &self.scratch, false, out);
            self.joined += 1;
        }
        Ok(())
    }
}

/// Replaces `scratch` by a message with its gRPC prefix.
fn frame_message(message: &OutgoingMessage<'_>, scratch: &mut Vec<u8>) {
    scratch.clear();
    scratch.extend_from_slice(&[0; PREFIX]);
    encode_message(message, scratch);
    let length = u32::try_from(scratch.len() - PREFIX).unwrap_or(u32::MAX);
    if let Some(length_field) = scratch.get_mut(1..PREFIX) {
        length_field.copy_from_slice(&length.to_be_bytes());
    }
}

impl Codec for Chitchat {
    fn open(&mut self, out: &mut Vec<u8>) {
        self.connection.open(out);
    }

    fn receive(
        &mut self,
        input: &[u8],
        sink: &mut impl EventSink,
        out: &mut Vec<u8>,
    ) -> Result<usize, ConnectionError> {
        let mut cache = self.cache.borrow_mut();
        let mut streams = Streams {
            streams: &mut self.streams,
            cache: &mut cache,
            sink,
        };
        let done = self.connection.receive(input, &mut streams, out)?;
        drop(cache);
        if self.joined < self.streams.len() && self.connection.settings_received() {
            self.join(out)?;
        }
        if let Some(goaway) = self.connection.goaway()
            && self.joined < self.streams.len()
        {
            return Err(ConnectionError(goaway.to_owned()));
        }
        Ok(done)
    }

    fn publish(&mut self, timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool {
        let room = self.streams.first().map_or("", |stream| &stream.slot.room);
        let span = self.spans.start_send(room, text.len());
        let context = span.as_ref().map(|span| span.trace_context());
        frame_message(
            &OutgoingMessage {
                kind: EventKind::Message,
                name: "",
                room: "",
                timestamp,
                text,
                trace: context.as_ref().map_or("", TraceContext::traceparent),
            },
            &mut self.scratch,
        );
        let is_permitted = self.connection.has_window(0, self.scratch.len());
        if is_permitted {
            self.connection.send(0, &self.scratch, false, out);
        }
        match span {
            Some(span) if is_permitted => {
                span.on_sent(timestamp);
                span.record_handed_over();
            }
            Some(span) => span.abandon(),
            None => {}
        }
        is_permitted
    }

    fn leave(&mut self, slot: usize, timestamp: i64, out: &mut Vec<u8>) -> bool {
        let message = OutgoingMessage {
            kind: EventKind::Leave,
            name: "",
            room: "",
            timestamp,
            text: b"",
            trace: "",
        };
        frame_message(&message, &mut self.scratch);
        if slot < self.joined && self.connection.has_window(slot, self.scratch.len()) {
            self.connection.send(slot, &self.scratch, true, out);
            return true;
        }
        false
    }
}

/// Splits the response bodies into messages.
struct Streams<'a, S> {
    streams: &'a mut [ClientStream],
    cache: &'a mut DecodeCache,
    sink: &'a mut S,
}

impl<S: EventSink> StreamHandler for Streams<'_, S> {
    fn data(&mut self, stream: usize, mut bytes: &[u8]) -> Result<(), ConnectionError> {
        let Some(client) = self.streams.get_mut(stream) else {
            return Ok(());
        };
        if !client.partial.is_empty() {
            // Complete the partial message, and no more, so that the rest is parsed without copying.
            if let Some(missing) = PREFIX.checked_sub(client.partial.len()) {
                bytes = move_front(bytes, missing, &mut client.partial);
            }
            let Some(length) = message_length(&client.partial)? else {
                return Ok(());
            };
            let missing = (PREFIX + length).saturating_sub(client.partial.len());
            bytes = move_front(bytes, missing, &mut client.partial);
            if client.partial.len() < PREFIX + length {
                return Ok(());
            }
            let mut partial = std::mem::take(&mut client.partial);
            client.message(
                stream,
                partial.get(PREFIX..).unwrap_or_default(),
                self.cache,
                self.sink,
            )?;
            partial.clear();
            client.partial = partial;
        }
        while let Some(length) = message_length(bytes)? {
            let Some((message, rest)) = bytes.split_at_checked(PREFIX + length) else {
                break;
            };
            client.message(
                stream,
                message.get(PREFIX..).unwrap_or_default(),
                self.cache,
                self.sink,
            )?;
            bytes = rest;
        }
        client.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn ended(&mut self, stream: usize, why: Option<String>) {
        self.sink.ended(stream, why);
    }
}

/// Moves up to `count` bytes to the end of `to`. Returns the rest.
fn move_front<'a>(bytes: &'a [u8], count: usize, to: &mut Vec<u8>) -> &'a [u8] {
    let (front, rest) = bytes.split_at(count.min(bytes.len()));
    to.extend_from_slice(front);
    rest
}

/// The length of the first message; `None` while its prefix is incomplete.
#[inline]
fn message_length(bytes: &[u8]) -> Result<Option<usize>, ConnectionError> {
    let Some((&[compressed, a, b, c, d], _)) = bytes.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if compressed != 0 || length > MAX_MESSAGE {
        return Err(ConnectionError(format!(
            "a gRPC message that is {length} bytes long, compressed: {compressed}; at most {MAX_MESSAGE} and 0 are expected"
        )));
    }
    Ok(Some(length))
}

impl ClientStream {
    #[inline]
    fn message(
        &mut self,
        slot: usize,
        bytes: &[u8],
        cache: &mut DecodeCache,
        sink: &mut impl EventSink,
    ) -> Result<(), ConnectionError> {
        let key = self.room_hash.wrapping_add(self.next_sequence);
        let decoded = match cache.get(key, bytes) {
            Some(decoded) => decoded,
            None => match self.decode(slot, bytes, cache, sink)? {
                Some(decoded) => decoded,
                None => return Ok(()),
            },
        };
        if decoded.sequence != 0 {
            self.next_sequence = decoded.sequence.wrapping_add(1);
        }
        let (from, to) = decoded.text;
        sink.event(
            slot,
            &Event {
                kind: decoded.kind,
                text: bytes.get(from..to).unwrap_or_default(),
                sender: decoded.sender,
                sequence: decoded.sequence,
                timestamp: decoded.timestamp,
                fingerprint: decoded.fingerprint,
            },
        );
        Ok(())
    }

    /// Decodes a message that is not cached. Returns `None` if it is not an event.
    fn decode(
        &mut self,
        slot: usize,
        bytes: &[u8],
        cache: &mut DecodeCache,
        sink: &mut impl EventSink,
    ) -> Result<Option<Decoded>, ConnectionError> {
        let Some(message) = decode_broadcast(bytes) else {
            return Err(ConnectionError("a message that is not valid protobuf".to_owned()));
        };
        // The welcome is not an event of the room.
        let (false, Some(kind)) = (message.welcome, message.kind) else {
            return Ok(None);
        };
        // The text is a subslice of `bytes`, or empty.
        let from = (message.text.as_ptr() as usize).wrapping_sub(bytes.as_ptr() as usize);
        let text = if message.text.is_empty() {
            (0, 0)
        } else {
            (from, from.wrapping_add(message.text.len()))
        };
        let decoded = Decoded {
            kind,
            text,
            sender: message.sender_id,
            sequence: message.sequence,
            timestamp: message.timestamp,
            fingerprint: fingerprint(
                message.sequence,
                message.timestamp,
                message.sender_id,
                message.text,
            ),
        };
        if kind == EventKind::Message && message.sequence != 0 {
            cache.insert(self.room_hash.wrapping_add(message.sequence), bytes, decoded);
        }
        if !self.joined && kind == EventKind::Join && self.is_own(message.sender_name, message.text) {
            self.joined = true;
            sink.joined(slot);
        }
        Ok(Some(decoded))
    }

    /// Whether a JOIN is this client's own: by its sender or, with servers that send JOINs in their own name, by its
    /// text.
    fn is_own(&self, sender: &[u8], text: &[u8]) -> bool {
        let name = self.slot.name.as_bytes();
        sender == name
            || text
                .strip_prefix(b"Participant ")
                .and_then(|text| text.strip_prefix(name))
                .is_some_and(|text| text.starts_with(b" joined"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Recorder, feed, slots};
    use super::*;
    use crate::plan::tests::plan;
    use chitchat::proto;
    use prost::Message;

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    const WINDOW_UPDATE: u8 = 8;

    fn codec(names: &[&str]) -> Chitchat {
        Chitchat::new(
            "server".into(),
            plan().http2,
            slots(names),
            Rc::default(),
            ClientSpans::default(),
        )
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn message(kind: proto::EventType, sender: &str, text: &str) -> Vec<u8> {
        let message = proto::ServerMessage {
            sender_id: 3,
            sender_name: sender.into(),
            msg_stream: text.into(),
            r#type: kind.into(),
            timestamp: 5,
            sequence: 6,
            ..Default::default()
        };
        let mut bytes = vec![0; PREFIX];
        message.encode(&mut bytes).unwrap();
        let length = u32::try_from(bytes.len() - PREFIX).unwrap();
        bytes[1..PREFIX].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    /// The server's first frame, with default settings.
    fn settings() -> Vec<u8> {
        frame(SETTINGS, 0, 0, &[])
    }

    /// A connection whose clients have opened their streams, which they do once the server's settings have arrived.
    fn joined(names: &[&str]) -> Chitchat {
        let mut codec = codec(names);
        codec
            .receive(&settings(), &mut Recorder::default(), &mut Vec::new())
            .unwrap();
        codec
    }

    #[test]
    fn messages_are_decoded_at_any_frame_and_read_boundary() {
        let mut body = message(proto::EventType::Join, "a", "Participant a joined");
        body.extend(message(proto::EventType::Message, "b", "one"));
        body.extend(message(proto::EventType::Message, "b", &"long ".repeat(60)));
        for piece in [1, 3, 5, 7, 64, 1_000] {
            let mut bytes = frame(HEADERS, 4, 1, &[0x88]);
            for part in body.chunks(piece) {
                bytes.extend(frame(DATA, 0, 1, part));
            }
            for size in [1, 2, 9, 10, 63, 5_000] {
                let (recorder, _) = feed(&mut joined(&["a"]), &bytes, size).unwrap();
                assert_eq!(recorder.joined, [0]);
                let texts: Vec<_> = recorder.texts.iter().map(|(_, text)| text.len()).collect();
                assert_eq!(texts, [20, 3, 300]);
                assert_eq!(recorder.ended, []);
            }
        }
    }

    #[test]
    fn interleaved_streams_are_separated() {
        let (join_a, join_b) = (
            message(proto::EventType::Join, "a", ""),
            message(proto::EventType::Join, "b", ""),
        );
        // The messages of the two streams are interleaved.
        let mut bytes = frame(DATA, 0, 1, &join_a[..8]);
        bytes.extend(frame(DATA, 0, 3, &join_b[..2]));
        bytes.extend(frame(DATA, 0, 1, &join_a[8..]));
        bytes.extend(frame(DATA, 0, 3, &join_b[2..]));
        let (recorder, _) = feed(&mut joined(&["a", "b"]), &bytes, 4).unwrap();
        assert_eq!(recorder.joined, [0, 1]);
    }

    #[test]
    fn padding_and_trailers_are_parsed() {
        let mut padded = vec![2];
        padded.extend(message(proto::EventType::Message, "b", "x"));
        padded.extend([0, 0]);
        let mut bytes = frame(DATA, 8, 1, &padded);
        let mut trailers = Vec::new();
        for text in ["grpc-status", "7", "grpc-message", "no%20entry"] {
            if text.starts_with("grpc") {
                trailers.push(0);
            }
            trailers.push(u8::try_from(text.len()).unwrap());
            trailers.extend(text.as_bytes());
        }
        bytes.extend(frame(HEADERS, 5, 1, &trailers));
        let (recorder, _) = feed(&mut joined(&["a"]), &bytes, 6).unwrap();
        assert_eq!(recorder.texts, [(0, "x".into())]);
        assert_eq!(recorder.ended, [(0, Some("grpc-status 7: no entry".into()))]);
    }

    #[test]
    fn pings_and_settings_are_acknowledged() {
        let mut bytes = settings();
        bytes.extend(frame(PING, 0, 0, b"12345678"));
        let (_, out) = feed(&mut codec(&[]), &bytes, 3).unwrap();
        let mut answers = frame(SETTINGS, 1, 0, &[]);
        answers.extend(frame(PING, 1, 0, b"12345678"));
        assert_eq!(out, answers);
    }

    #[test]
    fn a_goaway_with_an_error_is_reported_with_its_reason() {
        let mut payload = vec![0, 0, 0, 0, 0, 0, 0, 11];
        payload.extend(b"too_many_data_frames");
        let cut = feed(&mut codec(&["a"]), &frame(GOAWAY, 0, 0, &payload), 99).unwrap_err();
        assert_eq!(cut.0, "GOAWAY ENHANCE_YOUR_CALM too_many_data_frames");
    }

    #[test]
    fn sending_respects_the_windows_of_the_server() {
        let mut codec = codec(&["a"]);
        let (mut recorder, mut out) = (Recorder::default(), Vec::new());
        // The JOIN and one message fit into a stream window of 200 bytes.
        codec
            .receive(
                &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 200]),
                &mut recorder,
                &mut out,
            )
            .unwrap();
        out.clear();
        assert!(codec.publish(9, &[b'x'; 100], &mut out));
        let sent = out.len();
        assert!(!codec.publish(9, &[b'x'; 100], &mut out));
        assert_eq!(
            out.len(),
            sent,
            "nothing is appended for a message that does not fit"
        );
        codec
            .receive(
                &frame(WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0]),
                &mut recorder,
                &mut out,
            )
            .unwrap();
        assert!(codec.publish(9, &[b'x'; 100], &mut out));
    }

    #[test]
    fn a_window_update_is_sent_when_half_a_window_is_used() {
        let mut codec = codec(&["a"]);
        codec.connection = Http2Connection::new(crate::plan::Http2Settings {
            max_frame_size: 16_384,
            stream_window: 65_535,
            connection_window: 65_535,
        });
        let (mut recorder, mut out) = (Recorder::default(), Vec::new());
        codec.receive(&settings(), &mut recorder, &mut out).unwrap();
        out.clear();
        let text = message(proto::EventType::Message, "b", &"x".repeat(16_000));
        for _ in 0..2 {
            codec
                .receive(&frame(DATA, 0, 1, &text), &mut recorder, &mut out)
                .unwrap();
        }
        assert!(out.is_empty());
        codec
            .receive(&frame(DATA, 0, 1, &text), &mut recorder, &mut out)
            .unwrap();
        let more = u32::try_from(text.len() * 3).unwrap().to_be_bytes();
        let mut expected = frame(WINDOW_UPDATE, 0, 0, &more);
        expected.extend(frame(WINDOW_UPDATE, 0, 1, &more));
        assert_eq!(out, expected);
    }

    #[test]
    fn protocol_errors_are_reported() {
        let wrong = [
            frame(DATA, 0, 2, b""),
            frame(DATA, 0, 9, b""),
            frame(DATA, 0, 1, &[1, 0, 0, 0, 0]),
            frame(DATA, 0, 1, &[0, 255, 0, 0, 0]),
            frame(DATA, 0, 1, &[0, 0, 0, 0, 1, 0x0B]),
            frame(WINDOW_UPDATE, 0, 0, &[1]),
            vec![255, 0, 0, 0, 0, 0, 0, 0, 0],
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        ];
        for bytes in wrong {
            assert!(feed(&mut joined(&["a"]), &bytes, 999).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_stream_limit_that_is_too_low_is_reported_before_any_join() {
        let one_stream = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]);
        let cut = feed(&mut codec(&["a", "b"]), &one_stream, 99).unwrap_err();
        assert!(cut.0.contains("--connections"), "{cut}");
    }
}
