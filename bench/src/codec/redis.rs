//! The publish/subscribe of redis-server (RESP2). A room is a channel. A subscribed connection may not publish, so a
//! publisher has two: one publishes, and its sibling subscribes and receives its own messages.

use super::nats::put;
use super::{ClientSlot, Codec, ConnectionError, Event, EventSink, PublishHeader, Split, decimal, take_line};

/// The longest string accepted, in bytes.
const MAX_STRING: usize = 65_536;

/// One connection to redis-server.
#[derive(Debug)]
pub(crate) struct Redis {
    slot: ClientSlot,
    subscribes: bool,
    /// The start of a message of this room, up to the length of its text.
    message_prefix: Vec<u8>,
    publish_header: PublishHeader,
}

/// A reply of the server.
#[derive(Debug, PartialEq, Eq)]
enum Reply<'a> {
    Line(&'a [u8]),
    Message(&'a [u8]),
    Subscribed,
}

impl Redis {
    /// A connection that subscribes to the slot's room.
    pub(crate) fn subscriber(slot: ClientSlot) -> Self {
        Self::new(slot, true)
    }

    /// A connection that only publishes to the slot's room.
    pub(crate) fn publisher(slot: ClientSlot) -> Self {
        Self::new(slot, false)
    }

    fn new(slot: ClientSlot, subscribes: bool) -> Self {
        let mut message_prefix = Vec::new();
        put(
            &mut message_prefix,
            format_args!(
                "*3\r\n$7\r\nmessage\r\n${}\r\n{}\r\n$",
                slot.room.len(),
                slot.room
            ),
        );
        Self {
            slot,
            subscribes,
            message_prefix,
            publish_header: PublishHeader::default(),
        }
    }

    /// Splits off the first reply of `input`; `None` while it is incomplete.
    fn take_reply<'a>(&self, input: &'a [u8]) -> Result<Option<(Reply<'a>, &'a [u8])>, ConnectionError> {
        if let Some(rest) = input.strip_prefix(&*self.message_prefix) {
            return Ok(take_string(rest)?.map(|(text, rest)| (Reply::Message(text), rest)));
        }
        let Some((line, length)) = take_line(input) else {
            return Ok(None);
        };
        let Some(mut rest) = input.get(length..) else {
            return Ok(None);
        };
        if line != b"*3" {
            return Ok(Some((Reply::Line(line), rest)));
        }
        // Anything but a message of this room is rare, so parsing its three elements may be slow.
        let mut subscribed = false;
        for part in 0..3 {
            let Some((line, length)) = take_line(rest) else {
                return Ok(None);
            };
            let is_string = line.first() == Some(&b'$');
            let Some(after) = rest.get(if is_string { 1 } else { length }..) else {
                return Ok(None);
            };
            if !is_string {
                rest = after;
                continue;
            }
            let Some((string, after)) = take_string(after)? else {
                return Ok(None);
            };
            subscribed |= part == 0 && string == b"subscribe";
            rest = after;
        }
        if subscribed {
            Ok(Some((Reply::Subscribed, rest)))
        } else {
            Err(malformed(input))
        }
    }
}

/// Splits off a bulk string after its `$`: a length, a line ending, that many bytes and a line ending.
fn take_string(input: &[u8]) -> Result<Split<'_>, ConnectionError> {
    let Some((digits, length)) = take_line(input) else {
        return Ok(None);
    };
    let size = decimal(digits)
        .filter(|&size| size <= MAX_STRING)
        .ok_or_else(|| malformed(digits))?;
    let Some((string, rest)) = input.get(length..).and_then(|rest| rest.split_at_checked(size)) else {
        return Ok(None);
    };
    let Some((end, rest)) = rest.split_first_chunk::<2>() else {
        return Ok(None);
    };
    if end == b"\r\n" {
        Ok(Some((string, rest)))
    } else {
        Err(malformed(string))
    }
}

fn malformed(input: &[u8]) -> ConnectionError {
    let start = input.get(..60).unwrap_or(input);
    ConnectionError(format!(
        "malformed reply: {}",
        String::from_utf8_lossy(start).escape_debug()
    ))
}

impl Codec for Redis {
    fn open(&mut self, out: &mut Vec<u8>) {
        if self.subscribes {
            let room = &self.slot.room;
            put(
                out,
                format_args!("*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n{room}\r\n", room.len()),
            );
        }
    }

    fn receive(
        &mut self,
        input: &[u8],
        sink: &mut impl EventSink,
        _out: &mut Vec<u8>,
    ) -> Result<usize, ConnectionError> {
        let mut rest = input;
        while let Some((reply, after)) = self.take_reply(rest)? {
            rest = after;
            match reply {
                Reply::Message(text) => {
                    sink.event(0, &Event::plain(text));
                }
                Reply::Subscribed => sink.joined(0),
                Reply::Line(line) if line.first() == Some(&b'-') => {
                    return Err(ConnectionError(format!(
                        "the server replied {}",
                        String::from_utf8_lossy(line)
                    )));
                }
                // The reply to PUBLISH is the number of receivers. The checkers count deliveries themselves.
                Reply::Line(line) if line.first() == Some(&b':') => {}
                Reply::Line(line) => return Err(malformed(line)),
            }
        }
        if rest.len() > MAX_STRING * 2 {
            return Err(ConnectionError("a line that is too long".to_owned()));
        }
        Ok(input.len() - rest.len())
    }

    fn publish(&mut self, _timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool {
        let room = &self.slot.room;
        let header = self.publish_header.of(text.len(), |header| {
            put(
                header,
                format_args!(
                    "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{room}\r\n${}\r\n",
                    room.len(),
                    text.len()
                ),
            );
        });
        out.extend_from_slice(header);
        out.extend_from_slice(text);
        out.extend_from_slice(b"\r\n");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{feed, slots};
    use super::*;

    fn codec() -> Redis {
        Redis::subscriber(slots(&["a"]).remove(0))
    }

    #[test]
    fn messages_are_decoded_at_any_read_boundary() {
        let bytes = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n\
            *3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$3\r\none\r\n:104\r\n\
            *3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$5\r\nt\r\nwo\r\n";
        for size in 1..=bytes.len() {
            let (recorder, _) = feed(&mut codec(), bytes, size).unwrap();
            assert_eq!(recorder.joined, [0]);
            assert_eq!(recorder.texts, [(0, "one".into()), (0, "t\r\nwo".into())]);
        }
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = Vec::new();
        codec().open(&mut out);
        assert_eq!(out, b"*2\r\n$9\r\nSUBSCRIBE\r\n$4\r\nroom\r\n");
        out.clear();
        assert!(codec().publish(0, b"hello", &mut out));
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$4\r\nroom\r\n$5\r\nhello\r\n");
    }

    #[test]
    fn errors_and_malformed_input_are_reported() {
        let wrong = [
            &b"-ERR unknown\r\n"[..],
            b"+what\r\n",
            b"*3\r\n$7\r\nmessage\r\n$5\r\nother\r\n$1\r\nx\r\n",
            b"*3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$99999999\r\n",
        ];
        for bytes in wrong {
            assert!(
                feed(&mut codec(), bytes, 999).is_err(),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
}
