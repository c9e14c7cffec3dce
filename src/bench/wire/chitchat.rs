//! Chit Chat's own protocol: a stream of gRPC messages for each client, several on a connection if need be.

use super::http2::{Handler, Session};
use super::{Cut, Event, Kind, Seat, Sink, Wire};
use crate::bench::plan::Http2Settings;
use crate::bench::protobuf::{Said, read_broadcast, write_said};

/// The method that takes part in a room.
const PATH: &str = "/itu.chitchat.ChatService/Chat";
/// Longer messages are a fault.
const MAX_MESSAGE: usize = 131_072;
/// What gRPC puts in front of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// One connection to Chit Chat.
#[derive(Debug)]
pub(in crate::bench) struct Chitchat {
    authority: String,
    session: Session,
    seats: Vec<Taken>,
    /// How many of the seats have sent their JOIN.
    joining: usize,
    scratch: Vec<u8>,
}

/// A seat and what its stream has brought of a message that is not complete yet.
#[derive(Debug)]
struct Taken {
    seat: Seat,
    partial: Vec<u8>,
    joined: bool,
}

impl Chitchat {
    /// A connection for these clients.
    pub(in crate::bench) fn new(authority: String, settings: Http2Settings, seats: Vec<Seat>) -> Self {
        let taken = |seat| Taken {
            seat,
            partial: Vec::new(),
            joined: false,
        };
        Self {
            authority,
            session: Session::new(settings),
            seats: seats.into_iter().map(taken).collect(),
            joining: 0,
            scratch: Vec::new(),
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
        let mut streams = Streams {
            seats: &mut self.seats,
            sink,
        };
        let done = self.session.receive(input, &mut streams, out)?;
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
        frame_message(
            &Said {
                kind: Kind::Message,
                name: "",
                room: "",
                timestamp,
                text,
            },
            &mut self.scratch,
        );
        if !self.session.permits(0, self.scratch.len()) {
            return false;
        }
        self.session.send(0, &self.scratch, false, out);
        true
    }

    fn leave(&mut self, seat: usize, timestamp: i64, out: &mut Vec<u8>) -> bool {
        let said = Said {
            kind: Kind::Leave,
            name: "",
            room: "",
            timestamp,
            text: b"",
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
            taken.message(stream, partial.get(PREFIX..).unwrap_or_default(), self.sink)?;
            partial.clear();
            taken.partial = partial;
        }
        while let Some(length) = message_length(bytes)? {
            let Some((message, rest)) = bytes.split_at_checked(PREFIX + length) else {
                break;
            };
            taken.message(stream, message.get(PREFIX..).unwrap_or_default(), self.sink)?;
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
    fn message(&mut self, seat: usize, bytes: &[u8], sink: &mut impl Sink) -> Result<(), Cut> {
        let Some(message) = read_broadcast(bytes) else {
            return Err(Cut("a message that is not valid protobuf".to_owned()));
        };
        // The welcome is for this client alone and no event of the room.
        let (false, Some(kind)) = (message.welcome, message.kind) else {
            return Ok(());
        };
        sink.event(
            seat,
            &Event {
                kind,
                text: message.text,
                sender: message.sender_id,
                sequence: message.sequence,
                timestamp: message.timestamp,
            },
        );
        if !self.joined && kind == Kind::Join && self.is_own(message.sender_name, message.text) {
            self.joined = true;
            sink.joined(seat);
        }
        Ok(())
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
