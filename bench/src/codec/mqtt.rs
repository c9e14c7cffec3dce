//! MQTT 3.1.1 at QoS 0. A room is a topic. A publisher subscribes on its own connection and so receives its own
//! messages.

use super::{ClientSlot, Codec, ConnectionError, Event, EventSink, PublishHeader};

/// The longest packet accepted, in bytes.
const MAX_PACKET: usize = 65_536;

/// The first byte of each packet type, including the flags that the standard requires.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

/// Protocol level 4, a clean session, no keep-alive (section 3.1.2 of the standard).
const CONNECT_HEADER: &[u8] = b"\x00\x04MQTT\x04\x02\x00\x00";
/// No session present, connection accepted (section 3.2.2).
const ACCEPTED: &[u8] = &[0, 0];
/// Packet identifier 1, granted QoS 0 (section 3.9.3).
const GRANTED: &[u8] = &[0, 1, 0];

/// One connection to an MQTT server.
#[derive(Debug)]
pub(crate) struct Mqtt {
    slot: ClientSlot,
    publish_header: PublishHeader,
}

/// The first packet of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet<'a> {
    first: u8,
    body: &'a [u8],
    /// The input after the packet.
    rest: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `None` while it is incomplete.
    fn take(input: &'a [u8]) -> Result<Option<Self>, ConnectionError> {
        let Some((&first, mut rest)) = input.split_first() else {
            return Ok(None);
        };
        // The length is a varint. Three bytes suffice for MAX_PACKET.
        let mut length = 0;
        for shift in [0, 7, 14] {
            let Some((&byte, after)) = rest.split_first() else {
                return Ok(None);
            };
            rest = after;
            length |= usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
            if shift == 14 {
                length = usize::MAX;
            }
        }
        if length > MAX_PACKET {
            return Err(ConnectionError(format!(
                "not MQTT, or a packet of more than {MAX_PACKET} bytes: {}",
                String::from_utf8_lossy(input.get(..60).unwrap_or(input)).escape_debug()
            )));
        }
        Ok(rest
            .split_at_checked(length)
            .map(|(body, rest)| Self { first, body, rest }))
    }
}

impl Mqtt {
    pub(crate) fn new(slot: ClientSlot) -> Self {
        Self {
            slot,
            publish_header: PublishHeader::default(),
        }
    }

    /// Returns the text of a PUBLISH packet; `None` if the topic is not the client's.
    fn text<'a>(&self, body: &'a [u8]) -> Option<&'a [u8]> {
        let (&length, rest) = body.split_first_chunk::<2>()?;
        let (topic, text) = rest.split_at_checked(usize::from(u16::from_be_bytes(length)))?;
        (topic == self.slot.room.as_bytes()).then_some(text)
    }
}

impl Codec for Mqtt {
    fn open(&mut self, out: &mut Vec<u8>) {
        let ClientSlot { name, room } = &self.slot;
        put_head(out, CONNECT, CONNECT_HEADER.len() + 2 + name.len());
        out.extend_from_slice(CONNECT_HEADER);
        put_string(out, name);
        put_head(out, SUBSCRIBE, 2 + 2 + room.len() + 1);
        out.extend_from_slice(&[0, 1]);
        put_string(out, room);
        out.push(0);
    }

    fn receive(
        &mut self,
        input: &[u8],
        sink: &mut impl EventSink,
        _out: &mut Vec<u8>,
    ) -> Result<usize, ConnectionError> {
        let mut rest = input;
        while let Some(packet) = Packet::take(rest)? {
            match (packet.first, packet.body) {
                (PUBLISH, body) => {
                    let text = self
                        .text(body)
                        .ok_or_else(|| ConnectionError("a message of another topic".to_owned()))?;
                    sink.event(0, &Event::plain(text));
                }
                (CONNACK, ACCEPTED) => {}
                (SUBACK, GRANTED) => sink.joined(0),
                (first, body) => {
                    let body = body.get(..20).unwrap_or(body);
                    return Err(ConnectionError(format!(
                        "the server replied {first:#04x} {body:02x?}"
                    )));
                }
            }
            rest = packet.rest;
        }
        Ok(input.len() - rest.len())
    }

    fn publish(&mut self, _timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool {
        let room = &self.slot.room;
        let header = self.publish_header.of(text.len(), |header| {
            put_head(header, PUBLISH, 2 + room.len() + text.len());
            put_string(header, room);
        });
        out.extend_from_slice(header);
        out.extend_from_slice(text);
        true
    }
}

/// Appends the fixed header of a packet: its first byte and its length as a varint.
fn put_head(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    loop {
        let [group, ..] = (length & 0x7F).to_le_bytes();
        length >>= 7;
        out.push(if length > 0 { group | 0x80 } else { group });
        if length == 0 {
            return;
        }
    }
}

/// Appends a string with its length. Names and rooms of the generator are far shorter than 65,536 bytes.
fn put_string(out: &mut Vec<u8>, string: &str) {
    let length = u16::try_from(string.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(string.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::tests::{feed, slots};
    use super::*;

    fn codec() -> Mqtt {
        Mqtt::new(slots(&["a"]).remove(0))
    }

    #[test]
    fn messages_are_decoded_at_any_read_boundary() {
        let long = "x".repeat(20_000);
        let mut bytes = b"\x20\x02\x00\x00\x90\x03\x00\x01\x00".to_vec();
        for text in ["one", &long] {
            assert!(codec().publish(0, text.as_bytes(), &mut bytes));
        }
        for size in (1..40).chain([1_000, bytes.len()]) {
            let (recorder, out) = feed(&mut codec(), &bytes, size).unwrap();
            assert_eq!(recorder.joined, [0]);
            assert_eq!(recorder.texts, [(0, "one".into()), (0, long.clone())]);
            assert_eq!(out, b"");
        }
    }

    #[test]
    fn packets_are_encoded_as_in_the_standard() {
        let mut out = Vec::new();
        codec().open(&mut out);
        assert_eq!(
            out,
            b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a\x82\x09\x00\x01\x00\x04room\x00"
        );
        out.clear();
        assert!(codec().publish(0, &[b'x'; 200], &mut out));
        assert!(out.starts_with(b"\x30\xce\x01\x00\x04roomx"), "{out:?}");
    }

    #[test]
    fn rejections_and_malformed_input_are_reported() {
        for wrong in [
            &b"\x20\x02\x00\x05"[..],
            b"\x90\x03\x00\x01\x80",
            b"\x30\x06\x00\x04hall",
            b"\x30\x01\x00",
            b"\x30\xff\xff\xff\xff\x01",
            b"\x30\x80\x80\x80\x01",
        ] {
            assert!(feed(&mut codec(), wrong, 99).is_err(), "{wrong:?}");
        }
    }
}
