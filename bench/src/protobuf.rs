//! The subset of protobuf that the generator needs. It decodes the fields that are checked without copying, and skips
//! the others.

use super::codec::EventKind;

/// The fields of a `ServerMessage` that the generator uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broadcast<'a> {
    pub(super) sender_id: i32,
    pub(super) sender_name: &'a [u8],
    pub(super) text: &'a [u8],
    /// `None` if the type is unknown.
    pub(super) kind: Option<EventKind>,
    pub(super) timestamp: i64,
    pub(super) sequence: u64,
    /// Whether the field `welcome` is set.
    pub(super) welcome: bool,
}

/// Decodes a `ServerMessage`; `None` if it is not valid protobuf.
#[inline]
pub(super) fn decode_broadcast(mut input: &[u8]) -> Option<Broadcast<'_>> {
    let mut broadcast = Broadcast {
        sender_id: 0,
        sender_name: b"",
        text: b"",
        kind: Some(EventKind::Join),
        timestamp: 0,
        sequence: 0,
        welcome: false,
    };
    while !input.is_empty() {
        let tag = take_varint(&mut input)?;
        match tag {
            // Field number times 8 plus the wire type: 0 = varint, 2 = length-delimited.
            0x08 => broadcast.sender_id = int32(take_varint(&mut input)?),
            0x12 => broadcast.sender_name = take_bytes(&mut input)?,
            0x22 => broadcast.text = take_bytes(&mut input)?,
            0x28 => {
                broadcast.kind = match take_varint(&mut input)? {
                    0 => Some(EventKind::Join),
                    1 => Some(EventKind::Message),
                    2 => Some(EventKind::Leave),
                    _ => None,
                };
            }
            0x30 => broadcast.timestamp = take_varint(&mut input)?.cast_signed(),
            0x50 => broadcast.sequence = take_varint(&mut input)?,
            0x8A => {
                take_bytes(&mut input)?;
                broadcast.welcome = true;
            }
            _ => skip(tag, &mut input)?,
        }
    }
    Some(broadcast)
}

/// Converts a decoded varint to an `int32`, which the wire format sign-extends to 64 bits.
fn int32(value: u64) -> i32 {
    let [.., a, b, c, d] = value.to_be_bytes();
    i32::from_be_bytes([a, b, c, d])
}

#[inline]
fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = input.split_first()?;
    if first < 0x80 {
        *input = rest;
        return Some(u64::from(first));
    }
    take_long_varint(input)
}

/// Decodes up to eight bytes at once if the input is long enough, as it is for all but the last field of a message. A
/// loop over the bytes was the largest share of the generator's CPU time.
#[inline]
fn take_long_varint(input: &mut &[u8]) -> Option<u64> {
    let Some(word) = input.first_chunk::<8>() else {
        return take_varint_slowly(input);
    };
    let word = u64::from_le_bytes(*word);
    let ends = !word & 0x8080_8080_8080_8080;
    if ends == 0 {
        return take_varint_slowly(input);
    }
    let end = ends.trailing_zeros();
    // Take seven bits of each byte up to the terminating one, then compact them in pairs, quadruples and all eight.
    let bits = word & (u64::MAX >> (63 - end)) & 0x7F7F_7F7F_7F7F_7F7F;
    let bits = (bits & 0x007F_007F_007F_007F) | ((bits & 0x7F00_7F00_7F00_7F00) >> 1);
    let bits = (bits & 0x0000_3FFF_0000_3FFF) | ((bits & 0x3FFF_0000_3FFF_0000) >> 2);
    let bits = (bits & 0x0000_0000_0FFF_FFFF) | ((bits & 0x0FFF_FFFF_0000_0000) >> 4);
    *input = input.get(usize::try_from(end / 8).ok()? + 1..)?;
    Some(bits)
}

#[cold]
fn take_varint_slowly(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for (index, &byte) in input.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (index * 7);
        if byte < 0x80 {
            *input = input.get(index + 1..)?;
            return Some(value);
        }
    }
    None
}

/// Skips a varint of up to ten bytes.
#[inline]
fn skip_varint(input: &mut &[u8]) -> Option<()> {
    let Some(word) = input.first_chunk::<8>() else {
        return take_varint_slowly(input).map(drop);
    };
    let ends = !u64::from_le_bytes(*word) & 0x8080_8080_8080_8080;
    let length = match ends.trailing_zeros() {
        64 if *input.get(8)? < 0x80 => 9,
        64 if *input.get(9)? < 0x80 => 10,
        64 => return None,
        end => usize::try_from(end / 8).ok()? + 1,
    };
    *input = input.get(length..)?;
    Some(())
}

#[inline]
fn take_bytes<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(input)?).ok()?;
    let (bytes, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(bytes)
}

#[inline]
fn skip(tag: u64, input: &mut &[u8]) -> Option<()> {
    let fixed = match tag & 7 {
        0 => return skip_varint(input),
        2 => return take_bytes(input).map(drop),
        1 => 8,
        5 => 4,
        _ => return None,
    };
    *input = input.get(fixed..)?;
    Some(())
}

/// The fields of a `JoinMsgLeave` that the generator sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutgoingMessage<'a> {
    pub(super) kind: EventKind,
    pub(super) name: &'a str,
    /// Empty means the lobby.
    pub(super) room: &'a str,
    pub(super) timestamp: i64,
    pub(super) text: &'a [u8],
    /// The field `traceparent`; empty if the message is not traced.
    pub(super) trace: &'a str,
}

/// Appends a `JoinMsgLeave`.
pub(super) fn encode_message(message: &OutgoingMessage<'_>, out: &mut Vec<u8>) {
    put_bytes(0x12, message.name.as_bytes(), out);
    if message.timestamp != 0 {
        out.push(0x20);
        put_varint(message.timestamp.cast_unsigned(), out);
    }
    put_bytes(0x2A, message.text, out);
    let kind = match message.kind {
        EventKind::Join => 0,
        EventKind::Message => 1,
        EventKind::Leave => 2,
    };
    if kind != 0 {
        out.extend_from_slice(&[0x40, kind]);
    }
    put_bytes(0x4A, message.room.as_bytes(), out);
    put_bytes(0x72, message.trace.as_bytes(), out);
}

fn put_bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        out.push(tag);
        put_varint(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    }
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        let [low, ..] = value.to_le_bytes();
        out.push(low | 0x80);
        value >>= 7;
    }
    let [low, ..] = value.to_le_bytes();
    out.push(low);
}

#[cfg(test)]
mod tests {
    use super::*;
    use chitchat::proto;
    use proptest::prelude::*;
    use prost::Message;

    proptest! {
        #[test]
        fn broadcasts_are_decoded_as_prost_encoded_them(
            sender_id: i32, name in ".{0,20}", text in ".{0,200}", kind in 0_i32..4, timestamp: i64,
            sequence: u64, epoch: u64, seconds: i64, welcome: bool,
        ) {
            let message = proto::ServerMessage {
                sender_id,
                sender_name: name.clone(),
                msg_stream: text.clone(),
                r#type: kind,
                timestamp,
                room: "somewhere".into(),
                sequence,
                epoch,
                broadcast_time: Some(prost_types::Timestamp { seconds, nanos: 7 }),
                message_id: "id".into(),
                welcome: welcome.then(proto::Welcome::default),
                ..Default::default()
            };
            let bytes = message.encode_to_vec();
            let read = decode_broadcast(&bytes).unwrap();
            prop_assert_eq!(read.sender_id, sender_id);
            prop_assert_eq!(read.sender_name, name.as_bytes());
            prop_assert_eq!(read.text, text.as_bytes());
            let kinds = [Some(EventKind::Join), Some(EventKind::Message), Some(EventKind::Leave), None];
            prop_assert_eq!(read.kind, kinds[usize::try_from(kind).unwrap()]);
            prop_assert_eq!(read.timestamp, timestamp);
            prop_assert_eq!(read.sequence, sequence);
            prop_assert_eq!(read.welcome, welcome);
        }

        #[test]
        fn messages_are_decoded_by_prost(name in ".{0,20}", room in ".{0,20}", text in ".{0,200}", trace in ".{0,55}", timestamp: i64) {
            let kinds = [(EventKind::Join, 0), (EventKind::Message, 1), (EventKind::Leave, 2)];
            for (kind, number) in kinds {
                let mut bytes = Vec::new();
                encode_message(&OutgoingMessage { kind, name: &name, room: &room, timestamp, text: text.as_bytes(), trace: &trace }, &mut bytes);
                let read = proto::JoinMsgLeave::decode(&*bytes).unwrap();
                prop_assert_eq!(read.r#type, number);
                prop_assert_eq!(&read.client_name, &name);
                prop_assert_eq!(&read.room, &room);
                prop_assert_eq!(&read.msg, &text);
                prop_assert_eq!(&read.traceparent, &trace);
                prop_assert_eq!(read.timestamp, timestamp);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _read = decode_broadcast(&bytes);
        }
    }

    proptest! {
        #[test]
        fn varints_of_every_length_are_decoded_at_every_position(value: u64, shift in 0_u32..64, tail in 0_usize..12) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            put_varint(value, &mut bytes);
            bytes.resize(bytes.len() + tail, 0xFF);
            let (mut read, mut skipped) = (&*bytes, &*bytes);
            prop_assert_eq!(take_varint(&mut read), Some(value));
            prop_assert_eq!(skip_varint(&mut skipped), Some(()));
            prop_assert_eq!((read.len(), skipped.len()), (tail, tail));
        }
    }

    #[test]
    fn a_truncated_field_is_rejected() {
        assert_eq!(decode_broadcast(&[0x22, 5, b'a']), None);
        assert_eq!(decode_broadcast(&[0x08, 0x80]), None);
        assert_eq!(decode_broadcast(&[0x0B]), None);
    }
}
