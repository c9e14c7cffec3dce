//! The text protocol of nats-server. A room is a subject. A client is a subscription, so several can share a
//! connection. A publisher subscribes on its own connection and so receives its own messages.

use std::io::Write;

use super::{ClientSlot, Codec, ConnectionError, Event, EventSink, PublishHeader, Split, decimal, take_line};

/// The longest line or message accepted, in bytes.
pub(super) const MAX_MESSAGE: usize = 65_536;

/// One connection to nats-server.
#[derive(Debug)]
pub(crate) struct Nats {
    slots: Vec<ClientSlot>,
    joined: bool,
    publish_header: PublishHeader,
}

impl Nats {
    pub(crate) fn new(slots: Vec<ClientSlot>) -> Self {
        Self {
            slots,
            joined: false,
            publish_header: PublishHeader::default(),
        }
    }

    fn control(
        &mut self,
        line: &[u8],
        sink: &mut impl EventSink,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        if line == b"PING" {
            out.extend_from_slice(b"PONG\r\n");
        } else if line == b"PONG" {
            // The PING followed the subscriptions, so the server has processed them.
            if !std::mem::replace(&mut self.joined, true) {
                (0..self.slots.len()).for_each(|slot| sink.joined(slot));
            }
        } else if line.starts_with(b"-ERR") {
            return Err(ConnectionError(format!(
                "the server replied {}",
                String::from_utf8_lossy(line)
            )));
        } else if !line.starts_with(b"INFO ") && line != b"+OK" {
            return Err(ConnectionError(format!(
                "not NATS: {}",
                String::from_utf8_lossy(line).escape_debug()
            )));
        }
        Ok(())
    }

    /// Parses the slot and the length of a message from its `MSG` line: subject, subscription, length.
    fn parse_msg(&self, fields: &[u8]) -> Option<(usize, usize)> {
        let mut fields = fields.rsplit(|&byte| byte == b' ');
        let length = decimal(fields.next()?).filter(|&length| length <= MAX_MESSAGE)?;
        let slot = decimal(fields.next()?)?.checked_sub(1)?;
        (slot < self.slots.len()).then_some((slot, length))
    }
}

impl Codec for Nats {
    fn open(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":true,\"protocol\":1}\r\n",
        );
        for (slot, ClientSlot { room, .. }) in self.slots.iter().enumerate() {
            put(out, format_args!("SUB {room} {}\r\n", slot + 1));
        }
        out.extend_from_slice(b"PING\r\n");
    }

    fn receive(
        &mut self,
        input: &[u8],
        sink: &mut impl EventSink,
        out: &mut Vec<u8>,
    ) -> Result<usize, ConnectionError> {
        let mut rest = input;
        while let Some((line, length)) = take_line(rest) {
            let Some(after) = rest.get(length..) else { break };
            let Some(fields) = line.strip_prefix(b"MSG ") else {
                self.control(line, sink, out)?;
                rest = after;
                continue;
            };
            let Some((slot, length)) = self.parse_msg(fields) else {
                return Err(ConnectionError(format!(
                    "malformed message: {}",
                    String::from_utf8_lossy(line).escape_debug()
                )));
            };
            let Some((text, after)) = take_content(after, length)? else {
                break;
            };
            sink.event(slot, &Event::plain(text));
            rest = after;
        }
        if rest.len() > MAX_MESSAGE * 2 {
            return Err(ConnectionError("a line that is too long".to_owned()));
        }
        Ok(input.len() - rest.len())
    }

    fn publish(&mut self, _timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool {
        let room = self.slots.first().map_or("", |slot| &slot.room);
        let header = self.publish_header.of(text.len(), |header| {
            put(header, format_args!("PUB {room} {}\r\n", text.len()));
        });
        out.extend_from_slice(header);
        out.extend_from_slice(text);
        out.extend_from_slice(b"\r\n");
        true
    }
}

/// Splits off the content of a message, and its end; `None` while it is incomplete.
pub(super) fn take_content(input: &[u8], length: usize) -> Result<Split<'_>, ConnectionError> {
    let Some((content, after)) = input.split_at_checked(length) else {
        return Ok(None);
    };
    match after.split_first_chunk() {
        None => Ok(None),
        Some((b"\r\n", after)) => Ok(Some((content, after))),
        Some(_) => Err(ConnectionError(
            "a message is longer than its MSG line says".to_owned(),
        )),
    }
}

/// Appends formatted text, which cannot fail.
pub(super) fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    drop(out.write_fmt(text));
}

#[cfg(test)]
mod tests {
    use super::super::tests::{feed, slots};
    use super::*;

    #[test]
    fn messages_are_decoded_at_any_read_boundary() {
        let bytes = b"INFO {}\r\nPONG\r\nMSG room 2 3\r\none\r\nPING\r\nMSG room 1 5\r\nt\r\nwo\r\n";
        for size in 1..=bytes.len() {
            let (recorder, out) = feed(&mut Nats::new(slots(&["a", "b"])), bytes, size).unwrap();
            assert_eq!(recorder.joined, [0, 1]);
            assert_eq!(recorder.texts, [(1, "one".into()), (0, "t\r\nwo".into())]);
            assert_eq!(out, b"PONG\r\n");
        }
    }

    #[test]
    fn the_ping_follows_the_subscriptions() {
        let mut out = Vec::new();
        Nats::new(slots(&["a", "b"])).open(&mut out);
        assert!(out.ends_with(b"SUB room 1\r\nSUB room 2\r\nPING\r\n"));
        let mut message = Vec::new();
        assert!(Nats::new(slots(&["a"])).publish(0, b"hello", &mut message));
        assert_eq!(message, b"PUB room 5\r\nhello\r\n");
    }

    #[test]
    fn errors_and_malformed_input_are_reported() {
        for wrong in [
            &b"-ERR 'Slow Consumer'\r\n"[..],
            b"HTTP/1.1 400\r\n",
            b"MSG room 9 1\r\n",
            b"MSG room 1 x\r\n",
        ] {
            assert!(feed(&mut Nats::new(slots(&["a"])), wrong, 99).is_err());
        }
    }
}
