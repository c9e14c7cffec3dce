//! Framing: broadcasts as bytes that are ready for the wire, each a gRPC length prefix and a `ServerMessage`.
//!
//! A broadcast is encoded once for all of its receivers, field by field from the domain's event, without building the
//! generated message first. A test compares the bytes with the generated type. Notices use the generated type.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::encode_varint;

use crate::domain::{
    Epoch, Event, EventKind, LamportTime, MessageId, Name, ParticipantId, RoomName, Sequence, Text,
    TraceContext, WallTime,
};
use crate::proto;

/// The length of gRPC's message prefix, in bytes: a compression flag and a length of four bytes.
const PREFIX_LEN: usize = 5;

const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;

/// Appends the framed broadcast of `event` to `buffer`.
pub fn write_event(buffer: &mut BytesMut, room: &RoomName, epoch: Epoch, event: &Event) {
    let start = buffer.len();
    buffer.put_bytes(0, PREFIX_LEN);
    put_int(buffer, 1, event.participant.get().into());
    put_text(buffer, 2, event.name.as_str());
    put_text(buffer, 4, &event.display_text());
    put_int(buffer, 5, i32::from(proto::EventType::from(&event.kind)).into());
    put_int(buffer, 6, event.time.get());
    put_text(buffer, 9, room.as_str());
    put_number(buffer, 10, event.sequence.get());
    put_number(buffer, 11, epoch.get());
    put_time(buffer, 12, event.at);
    if let Some(id) = event.message_id() {
        put_text(buffer, 13, id.as_str());
    }
    if let Some(trace) = &event.trace {
        put_text(buffer, 14, trace.traceparent());
        put_text(buffer, 15, trace.tracestate());
    }
    // Names, texts and trace contexts are bounded far below 4 GiB.
    let len = u32::try_from(buffer.len() - start - PREFIX_LEN).unwrap_or(u32::MAX);
    buffer[start + 1..start + PREFIX_LEN].copy_from_slice(&len.to_be_bytes());
}

/// The broadcast of `event` as the generated type, unframed.
pub(crate) fn broadcast(room: &RoomName, epoch: Epoch, event: &Event) -> proto::ServerMessage {
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    proto::ServerMessage {
        sender_id: event.participant.get(),
        sender_name: event.name.to_string(),
        msg_stream: event.display_text().into(),
        r#type: proto::EventType::from(&event.kind).into(),
        timestamp: event.time.get(),
        room: room.to_string(),
        sequence: event.sequence.get(),
        epoch: epoch.get(),
        broadcast_time: Some(timestamp(event.at)),
        message_id: text(event.message_id().map(MessageId::as_str)),
        traceparent: text(event.trace.as_ref().map(TraceContext::traceparent)),
        tracestate: text(event.trace.as_ref().map(TraceContext::tracestate)),
        notice: None,
        welcome: None,
    }
}

/// The event that [`write_event`] wrote; `None` if `frame` is not the frame of an event.
#[must_use]
pub fn read_event(frame: &Bytes) -> Option<Event> {
    let message = proto::ServerMessage::decode(frame.get(PREFIX_LEN..)?).ok()?;
    let kind = match message.r#type() {
        proto::EventType::Join => EventKind::Join,
        proto::EventType::Message => EventKind::Message {
            // The limit may have been higher when the event was accepted.
            text: Text::parse(&message.msg_stream, usize::MAX).ok()?,
            message_id: match message.message_id.as_str() {
                "" => None,
                id => Some(MessageId::try_from(id).ok()?),
            },
        },
        proto::EventType::Leave => EventKind::Leave,
    };
    let at = message.broadcast_time?;
    let millis =
        u64::try_from(at.seconds).ok()?.checked_mul(1_000)? + u64::try_from(at.nanos).ok()? / 1_000_000;
    Some(Event {
        sequence: Sequence::new(message.sequence),
        time: LamportTime::from_wire(message.timestamp)?,
        at: WallTime::from_millis(millis),
        participant: ParticipantId::from_wire(message.sender_id)?,
        name: Name::from_stored(&message.sender_name)?,
        kind,
        trace: TraceContext::parse(&message.traceparent, &message.tracestate),
    })
}

/// The message in a frame; `None` if it cannot be decoded.
pub(crate) fn read_message(frame: &Bytes) -> Option<proto::ServerMessage> {
    proto::ServerMessage::decode(frame.get(PREFIX_LEN..)?).ok()
}

/// Encodes and frames a message, such as a notice.
pub(crate) fn encode(message: &proto::ServerMessage) -> Bytes {
    let len = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(PREFIX_LEN + len);
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    message.encode_raw(&mut buffer);
    buffer.freeze()
}

/// Appends the tag of a field whose number is below 16, which has one byte.
fn put_tag(buffer: &mut BytesMut, field: u8, wire_type: u8) {
    debug_assert!(field < 16, "the tag of field {field} has two bytes");
    buffer.put_u8(field << 3 | wire_type);
}

/// Like the functions below, omits a field that has its default value, as proto3 does.
fn put_number(buffer: &mut BytesMut, field: u8, value: u64) {
    if value != 0 {
        put_tag(buffer, field, VARINT);
        encode_varint(value, buffer);
    }
}

fn put_int(buffer: &mut BytesMut, field: u8, value: i64) {
    // Protobuf encodes a negative number as its 64-bit two's complement.
    put_number(buffer, field, value.cast_unsigned());
}

fn put_text(buffer: &mut BytesMut, field: u8, text: &str) {
    if !text.is_empty() {
        put_tag(buffer, field, LENGTH_DELIMITED);
        encode_varint(text.len() as u64, buffer);
        buffer.put_slice(text.as_bytes());
    }
}

fn put_time(buffer: &mut BytesMut, field: u8, at: WallTime) {
    let time = timestamp(at);
    put_tag(buffer, field, LENGTH_DELIMITED);
    encode_varint(time.encoded_len() as u64, buffer);
    time.encode_raw(buffer);
}

/// A wall time as the contract has it.
pub(crate) fn timestamp(at: WallTime) -> prost_types::Timestamp {
    let millis = at.as_millis();
    prost_types::Timestamp {
        // Neither saturates: a 1000th of a u64 fits an i64, and less than a second in nanoseconds an i32.
        seconds: i64::try_from(millis / 1_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1_000 * 1_000_000).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{Attachment, Command, Join, Origin, Outcome, Room, Rules, Say, Timestamp};

    fn joined(room: &mut Room, join: Join, at: WallTime) -> (Event, Attachment) {
        match room.apply(Command::Join(join), at) {
            Outcome::Joined {
                joined, attachment, ..
            } => (joined, attachment),
            other => panic!("{other:?}"),
        }
    }

    fn accepted(room: &mut Room, command: Command, at: WallTime) -> Event {
        match room.apply(command, at) {
            Outcome::Accepted(event) => event,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn the_generated_type_decodes_what_is_written(
            id in any::<i32>().prop_filter_map("clients cannot choose it", |id| ParticipantId::from_wire(id).filter(|id| !id.is_assigned())),
            time in 0..i64::from(u32::MAX),
            millis in 0..u64::MAX / 4,
            text in "[ -~é山]{0,200}",
        ) {
            let at = WallTime::from_millis(millis);
            let (epoch, name) = (Epoch::created_at(at), RoomName::try_from("tea").unwrap());
            let mut room = Room::new(Rules { max_clock_ahead: i64::MAX, ..Rules::default() });
            let trace = TraceContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1");
            let join = Join { session: None, id: Some(id), name: Name::try_from("Ada").unwrap(), timestamp: Timestamp(0), owner: None, origin: Origin::default(), is_resumable: false, trace: None };
            let (joined, attachment) = joined(&mut room, join, at);
            let say = Say {
                attachment,
                message: crate::domain::Message {
                    timestamp: Timestamp(time),
                    text: Text::parse(&text, 200),
                    message_id: Some(MessageId::try_from("m1")),
                    trace,
                },
            };
            let said = accepted(&mut room, Command::Say(say), at);
            let mut buffer = BytesMut::new();
            for event in [&joined, &said] {
                write_event(&mut buffer, &name, epoch, event);
            }
            let mut bytes = buffer.freeze();
            for event in [&joined, &said] {
                prop_assert_eq!(bytes[0], 0);
                let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
                let frame = bytes.split_to(5 + len);
                let read = read_event(&frame);
                prop_assert_eq!(read.as_ref(), Some(event));
                let message = read_message(&frame).unwrap();
                let expected = super::broadcast(&name, epoch, event);
                prop_assert_eq!(&message, &expected);
                prop_assert_eq!(encode(&expected).len(), 5 + len);
            }
            prop_assert!(bytes.is_empty());
        }
    }

    #[test]
    fn an_event_can_be_read_although_its_name_is_no_longer_accepted() {
        let (epoch, room) = (Epoch::created_at(WallTime::from_millis(1)), RoomName::default());
        let event = Event {
            sequence: Sequence::new(1),
            time: LamportTime::from_wire(1).unwrap(),
            at: WallTime::default(),
            participant: ParticipantId::from_wire(7).unwrap(),
            name: Name::from_stored("Ada: I agree").unwrap(),
            kind: EventKind::Join,
            trace: None,
        };
        assert!(Name::try_from(event.name.as_str()).is_err());
        let mut buffer = BytesMut::new();
        write_event(&mut buffer, &room, epoch, &event);
        assert_eq!(read_event(&buffer.freeze()), Some(event));
    }
}
