//! Chit Chat's own protocol: a stream of gRPC messages for each client, several on a connection if need be.

use std::cell::RefCell;
use std::rc::Rc;

use super::http2::{Handler, Session};
use super::memo::{Meaning, Memo};
use super::{Cut, Event, Kind, Seat, Sink, Wire};
use crate::order::fingerprint;
use crate::plan::Http2Settings;
use crate::protobuf::{Said, read_broadcast, write_said};
use chitchat::client::SendObserver;
use chitchat::domain::TraceContext;
use chitchat::telemetry::ClientSpans;

/// The method that takes part in a room.
const PATH: &str = "/itu.chitchat.ChatService/Chat";
/// Longer messages are a fault.
const MAX_MESSAGE: usize = 131_072;
/// What gRPC puts in front of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// One connection to Chit Chat.
#[derive(Debug)]
pub(crate) struct Chitchat {
    authority: String,
    session: Session,
    seats: Vec<Taken>,
    /// How many of the seats have sent their JOIN.
    joining: usize,
    scratch: Vec<u8>,
    /// What the clients of this thread have read lately.
    memo: Rc<RefCell<Memo>>,
    spans: ClientSpans,
}

/// A seat and what its stream has brought of a message that is not complete yet.
#[derive(Debug)]
struct Taken {
    seat: Seat,
    partial: Vec<u8>,
    joined: bool,
    /// Where the memo keeps this room's messages, so that rooms do not displace each other.
    shelf: u64,
    /// The sequence that comes next when all is well.
    next: u64,
}

impl Chitchat {
    /// A connection for these clients.
    pub(crate) fn new(
        authority: String,
        settings: Http2Settings,
        seats: Vec<Seat>,
        memo: Rc<RefCell<Memo>>,
        spans: ClientSpans,
    ) -> Self {
        let taken = |seat: Seat| Taken {
            shelf: fingerprint(0, 0, 0, seat.room.as_bytes()),
            seat,
            partial: Vec::new(),
            joined: false,
            next: 0,
        };
        Self {
            authority,
            session: Session::new(settings),
            seats: seats.into_iter().map(taken).collect(),
            joining: 0,
            scratch: Vec::new(),
            memo,
            spans,
        }
    }

    /// Opens a stream and sends a JOIN for each seat, as far as the server's windows permit.
    fn join(&mut self, out: &mut Vec<u8>) -> Result<(), Cut> {
        let allowed = usize::try_from(self.session.allowed_streams()).unwrap_or(usize::MAX);
        if self.seats.len() > allowed {
            let needed = self.seats.len();
            return Err(Cut(format!(
                "the server allows {allowed} streams a connection and {needed} are needed: use more --connections"
            )));
        }
        while let Some(Taken { seat, .. }) = self.seats.get(self.joining) {
            let said = Said {
                kind: Kind::Join,
                name: &seat.name,
                room: &seat.room,
                timestamp: 1,
                text: b"",
                trace: "",
            };
            frame_message(&said, &mut self.scratch);
            if !self.session.permits(self.joining, self.scratch.len()) {
                break;
            }
            self.session.request(&self.authority, PATH, out);
            self.session.send(self.joining, &self.scratch, false, out);
            self.joining += 1;
        }
        Ok(())
    }
}

/// Writes a message with gRPC's prefix over `scratch`.
fn frame_message(said: &Said<'_>, scratch: &mut Vec<u8>) {
    scratch.clear();
    scratch.extend_from_slice(&[0; PREFIX]);
    write_said(said, scratch);
    let length = u32::try_from(scratch.len() - PREFIX).unwrap_or(u32::MAX);
    if let Some(place) = scratch.get_mut(1..PREFIX) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

impl Wire for Chitchat {
    fn open(&mut self, out: &mut Vec<u8>) {
        self.session.open(out);
    }

    fn receive(&mut self, input: &[u8], sink: &mut impl Sink, out: &mut Vec<u8>) -> Result<usize, Cut> {
        let mut memo = self.memo.borrow_mut();
        let mut streams = Streams {
            seats: &mut self.seats,
            memo: &mut memo,
            sink,
        };
        let done = self.session.receive(input, &mut streams, out)?;
        drop(memo);
        if self.joining < self.seats.len() && self.session.settled() {
            self.join(out)?;
        }
        if let Some(goaway) = self.session.goaway()
            && self.joining < self.seats.len()
        {
            return Err(Cut(goaway.to_owned()));
        }
        Ok(done)
    }

    fn publish(&mut self, timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool {
        let room = self.seats.first().map_or("", |taken| &taken.seat.room);
        let span = self.spans.send(room, text.len());
        let context = span.as_ref().map(|span| span.trace_context());
        frame_message(
            &Said {
                kind: Kind::Message,
                name: "",
                room: "",
                timestamp,
                text,
                trace: context.as_ref().map_or("", TraceContext::traceparent),
            },
            &mut self.scratch,
        );
        let is_permitted = self.session.permits(0, self.scratch.len());
        if is_permitted {
            self.session.send(0, &self.scratch, false, out);
        }
        match span {
            Some(span) if is_permitted => {
                span.on_sent(timestamp);
                span.handed_over();
            }
            Some(span) => span.abandon(),
            None => {}
        }
        is_permitted
    }

    fn leave(&mut self, seat: usize, timestamp: i64, out: &mut Vec<u8>) -> bool {
        let said = Said {
            kind: Kind::Leave,
            name: "",
            room: "",
            timestamp,
            text: b"",
            trace: "",
        };
        frame_message(&said, &mut self.scratch);
        if seat < self.joining && self.session.permits(seat, self.scratch.len()) {
            self.session.send(seat, &self.scratch, true, out);
            return true;
        }
        false
    }
}

/// Cuts the bodies of the streams into messages.
struct Streams<'a, S> {
    seats: &'a mut [Taken],
    memo: &'a mut Memo,
    sink: &'a mut S,
}

impl<S: Sink> Handler for Streams<'_, S> {
    fn data(&mut self, stream: usize, mut bytes: &[u8]) -> Result<(), Cut> {
        let Some(taken) = self.seats.get_mut(stream) else {
            return Ok(());
        };
        if !taken.partial.is_empty() {
            // A message began in an earlier piece: complete it, no more, so that the rest can be read in place.
            if let Some(missing) = PREFIX.checked_sub(taken.partial.len()) {
                bytes = move_front(bytes, missing, &mut taken.partial);
            }
            let Some(length) = message_length(&taken.partial)? else {
                return Ok(());
            };
            let missing = (PREFIX + length).saturating_sub(taken.partial.len());
            bytes = move_front(bytes, missing, &mut taken.partial);
            if taken.partial.len() < PREFIX + length {
                return Ok(());
            }
            let mut partial = std::mem::take(&mut taken.partial);
            taken.message(
                stream,
                partial.get(PREFIX..).unwrap_or_default(),
                self.memo,
                self.sink,
            )?;
            partial.clear();
            taken.partial = partial;
        }
        while let Some(length) = message_length(bytes)? {
            let Some((message, rest)) = bytes.split_at_checked(PREFIX + length) else {
                break;
            };
            taken.message(
                stream,
                message.get(PREFIX..).unwrap_or_default(),
                self.memo,
                self.sink,
            )?;
            bytes = rest;
        }
        taken.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn ended(&mut self, stream: usize, why: Option<String>) {
        self.sink.ended(stream, why);
    }
}

/// Moves up to `count` bytes to the end of `to`; gives the rest.
fn move_front<'a>(bytes: &'a [u8], count: usize, to: &mut Vec<u8>) -> &'a [u8] {
    let (front, rest) = bytes.split_at(count.min(bytes.len()));
    to.extend_from_slice(front);
    rest
}

/// How long the message at the front is; `None` while its prefix is incomplete.
#[inline]
fn message_length(bytes: &[u8]) -> Result<Option<usize>, Cut> {
    let Some((&[compressed, a, b, c, d], _)) = bytes.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if compressed != 0 || length > MAX_MESSAGE {
        return Err(Cut(format!(
            "a gRPC message that is {length} bytes long, compressed: {compressed}; at most {MAX_MESSAGE} and 0 are expected"
        )));
    }
    Ok(Some(length))
}

impl Taken {
    #[inline]
    fn message(
        &mut self,
        seat: usize,
        bytes: &[u8],
        memo: &mut Memo,
        sink: &mut impl Sink,
    ) -> Result<(), Cut> {
        let place = self.shelf.wrapping_add(self.next);
        let meaning = match memo.recall(place, bytes) {
            Some(meaning) => meaning,
            None => match self.read(seat, bytes, memo, sink)? {
                Some(meaning) => meaning,
                None => return Ok(()),
            },
        };
        if meaning.sequence != 0 {
            self.next = meaning.sequence.wrapping_add(1);
        }
        let (from, to) = meaning.text;
        sink.event(
            seat,
            &Event {
                kind: meaning.kind,
                text: bytes.get(from..to).unwrap_or_default(),
                sender: meaning.sender,
                sequence: meaning.sequence,
                timestamp: meaning.timestamp,
                print: meaning.print,
            },
        );
        Ok(())
    }

    /// Reads a message that nobody on this thread has read; `None` when it is no event.
    fn read(
        &mut self,
        seat: usize,
        bytes: &[u8],
        memo: &mut Memo,
        sink: &mut impl Sink,
    ) -> Result<Option<Meaning>, Cut> {
        let Some(message) = read_broadcast(bytes) else {
            return Err(Cut("a message that is not valid protobuf".to_owned()));
        };
        // The welcome is for this client alone and no event of the room.
        let (false, Some(kind)) = (message.welcome, message.kind) else {
            return Ok(None);
        };
        // The text is a part of the bytes, or empty.
        let from = (message.text.as_ptr() as usize).wrapping_sub(bytes.as_ptr() as usize);
        let text = if message.text.is_empty() {
            (0, 0)
        } else {
            (from, from.wrapping_add(message.text.len()))
        };
        let meaning = Meaning {
            kind,
            text,
            sender: message.sender_id,
            sequence: message.sequence,
            timestamp: message.timestamp,
            print: fingerprint(
                message.sequence,
                message.timestamp,
                message.sender_id,
                message.text,
            ),
        };
        if kind == Kind::Message && message.sequence != 0 {
            memo.keep(self.shelf.wrapping_add(message.sequence), bytes, meaning);
        }
        if !self.joined && kind == Kind::Join && self.is_own(message.sender_name, message.text) {
            self.joined = true;
            sink.joined(seat);
        }
        Ok(Some(meaning))
    }

    /// Whether a JOIN is this client's: by who it is from or, with servers that announce it as their own, by what it says.
    fn is_own(&self, sender: &[u8], text: &[u8]) -> bool {
        let name = self.seat.name.as_bytes();
        sender == name
            || text
                .strip_prefix(b"Participant ")
                .and_then(|text| text.strip_prefix(name))
                .is_some_and(|text| text.starts_with(b" joined"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Kept, feed, seats};
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

    fn wire(names: &[&str]) -> Chitchat {
        Chitchat::new(
            "server".into(),
            plan().http2,
            seats(names),
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

    /// What a server says first: settings that are the defaults.
    fn settings() -> Vec<u8> {
        frame(SETTINGS, 0, 0, &[])
    }

    /// A connection whose clients have opened their streams, as they do when the server has told its settings.
    fn joined(names: &[&str]) -> Chitchat {
        let mut wire = wire(names);
        wire.receive(&settings(), &mut Kept::default(), &mut Vec::new())
            .unwrap();
        wire
    }

    #[test]
    fn messages_are_read_however_they_are_cut_into_frames_and_reads() {
        let mut body = message(proto::EventType::Join, "a", "Participant a joined");
        body.extend(message(proto::EventType::Message, "b", "one"));
        body.extend(message(proto::EventType::Message, "b", &"long ".repeat(60)));
        for piece in [1, 3, 5, 7, 64, 1_000] {
            let mut bytes = frame(HEADERS, 4, 1, &[0x88]);
            for part in body.chunks(piece) {
                bytes.extend(frame(DATA, 0, 1, part));
            }
            for size in [1, 2, 9, 10, 63, 5_000] {
                let (kept, _) = feed(&mut joined(&["a"]), &bytes, size).unwrap();
                assert_eq!(kept.joined, [0]);
                let texts: Vec<_> = kept.texts.iter().map(|(_, text)| text.len()).collect();
                assert_eq!(texts, [20, 3, 300]);
                assert_eq!(kept.ended, []);
            }
        }
    }

    #[test]
    fn streams_of_one_connection_are_kept_apart() {
        let (join_a, join_b) = (
            message(proto::EventType::Join, "a", ""),
            message(proto::EventType::Join, "b", ""),
        );
        // The two streams' messages are interleaved in the middle.
        let mut bytes = frame(DATA, 0, 1, &join_a[..8]);
        bytes.extend(frame(DATA, 0, 3, &join_b[..2]));
        bytes.extend(frame(DATA, 0, 1, &join_a[8..]));
        bytes.extend(frame(DATA, 0, 3, &join_b[2..]));
        let (kept, _) = feed(&mut joined(&["a", "b"]), &bytes, 4).unwrap();
        assert_eq!(kept.joined, [0, 1]);
    }

    #[test]
    fn padding_and_trailers_are_understood() {
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
        let (kept, _) = feed(&mut joined(&["a"]), &bytes, 6).unwrap();
        assert_eq!(kept.texts, [(0, "x".into())]);
        assert_eq!(kept.ended, [(0, Some("grpc-status 7: no entry".into()))]);
    }

    #[test]
    fn pings_and_settings_are_answered() {
        let mut bytes = settings();
        bytes.extend(frame(PING, 0, 0, b"12345678"));
        let (_, out) = feed(&mut wire(&[]), &bytes, 3).unwrap();
        let mut answers = frame(SETTINGS, 1, 0, &[]);
        answers.extend(frame(PING, 1, 0, b"12345678"));
        assert_eq!(out, answers);
    }

    #[test]
    fn an_angry_goaway_is_told_with_its_reason() {
        let mut payload = vec![0, 0, 0, 0, 0, 0, 0, 11];
        payload.extend(b"too_many_data_frames");
        let cut = feed(&mut wire(&["a"]), &frame(GOAWAY, 0, 0, &payload), 99).unwrap_err();
        assert_eq!(cut.0, "GOAWAY ENHANCE_YOUR_CALM too_many_data_frames");
    }

    #[test]
    fn nothing_is_sent_beyond_the_servers_windows() {
        let mut wire = wire(&["a"]);
        let (mut kept, mut out) = (Kept::default(), Vec::new());
        // A stream window of 200 bytes: the JOIN and one message fit.
        wire.receive(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 200]), &mut kept, &mut out)
            .unwrap();
        out.clear();
        assert!(wire.publish(9, &[b'x'; 100], &mut out));
        let sent = out.len();
        assert!(!wire.publish(9, &[b'x'; 100], &mut out));
        assert_eq!(out.len(), sent, "a refused message leaves nothing behind");
        wire.receive(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0]), &mut kept, &mut out)
            .unwrap();
        assert!(wire.publish(9, &[b'x'; 100], &mut out));
    }

    #[test]
    fn the_windows_are_widened_when_half_is_used_up() {
        let mut wire = wire(&["a"]);
        wire.session = Session::new(crate::plan::Http2Settings {
            max_frame_size: 16_384,
            stream_window: 65_535,
            connection_window: 65_535,
        });
        let (mut kept, mut out) = (Kept::default(), Vec::new());
        wire.receive(&settings(), &mut kept, &mut out).unwrap();
        out.clear();
        let text = message(proto::EventType::Message, "b", &"x".repeat(16_000));
        for _ in 0..2 {
            wire.receive(&frame(DATA, 0, 1, &text), &mut kept, &mut out)
                .unwrap();
        }
        assert!(out.is_empty());
        wire.receive(&frame(DATA, 0, 1, &text), &mut kept, &mut out)
            .unwrap();
        let more = u32::try_from(text.len() * 3).unwrap().to_be_bytes();
        let mut expected = frame(WINDOW_UPDATE, 0, 0, &more);
        expected.extend(frame(WINDOW_UPDATE, 0, 1, &more));
        assert_eq!(out, expected);
    }

    #[test]
    fn what_breaks_the_protocol_is_a_fault() {
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
    fn too_few_streams_are_told_before_anybody_joins() {
        let one_stream = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]);
        let cut = feed(&mut wire(&["a", "b"]), &one_stream, 99).unwrap_err();
        assert!(cut.0.contains("--connections"), "{cut}");
    }
}
