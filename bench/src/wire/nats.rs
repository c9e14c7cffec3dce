//! The text protocol of nats-server. A room is a subject; a client is a subscription, so that several share a connection.
//! A publisher subscribes on its own connection and counts what comes back, as Chit Chat's participants do.

use std::io::Write;

use super::{Cut, Event, Seat, Sink, Wire, decimal, take_line};

/// Longer lines and messages are a fault.
const MAX_MESSAGE: usize = 65_536;

/// One connection to nats-server.
#[derive(Debug)]
pub(crate) struct Nats {
    seats: Vec<Seat>,
    joined: bool,
    /// `PUB`, the subject, the length and the end of line of a message of the length in `head_for`.
    head: Vec<u8>,
    head_for: usize,
}

impl Nats {
    /// A connection for these clients.
    pub(crate) fn new(seats: Vec<Seat>) -> Self {
        Self {
            seats,
            joined: false,
            head: Vec::new(),
            head_for: usize::MAX,
        }
    }

    fn control(&mut self, line: &[u8], sink: &mut impl Sink, out: &mut Vec<u8>) -> Result<(), Cut> {
        if line == b"PING" {
            out.extend_from_slice(b"PONG\r\n");
        } else if line == b"PONG" {
            // The PING was sent after the subscriptions: the server has them all.
            if !std::mem::replace(&mut self.joined, true) {
                (0..self.seats.len()).for_each(|seat| sink.joined(seat));
            }
        } else if line.starts_with(b"-ERR") {
            return Err(Cut(format!("the server said {}", String::from_utf8_lossy(line))));
        } else if !line.starts_with(b"INFO ") && line != b"+OK" {
            return Err(Cut(format!(
                "not NATS: {}",
                String::from_utf8_lossy(line).escape_debug()
            )));
        }
        Ok(())
    }

    /// The seat and the length of a message, from the line that announces it: subject, subscription, length.
    fn announced(&self, fields: &[u8]) -> Option<(usize, usize)> {
        let mut fields = fields.rsplit(|&byte| byte == b' ');
        let length = decimal(fields.next()?).filter(|&length| length <= MAX_MESSAGE)?;
        let seat = decimal(fields.next()?)?.checked_sub(1)?;
        (seat < self.seats.len()).then_some((seat, length))
    }
}

impl Wire for Nats {
    fn open(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":true,\"protocol\":1}\r\n",
        );
        for (seat, Seat { room, .. }) in self.seats.iter().enumerate() {
            put(out, format_args!("SUB {room} {}\r\n", seat + 1));
        }
        out.extend_from_slice(b"PING\r\n");
    }

    fn receive(&mut self, input: &[u8], sink: &mut impl Sink, out: &mut Vec<u8>) -> Result<usize, Cut> {
        let mut rest = input;
        while let Some((line, length)) = take_line(rest) {
            let Some(after) = rest.get(length..) else { break };
            let Some(fields) = line.strip_prefix(b"MSG ") else {
                self.control(line, sink, out)?;
                rest = after;
                continue;
            };
            let Some((seat, length)) = self.announced(fields) else {
                return Err(Cut(format!(
                    "not understood: {}",
                    String::from_utf8_lossy(line).escape_debug()
                )));
            };
            let Some((text, after)) = after.split_at_checked(length) else {
                break;
            };
            let Some((end, after)) = after.split_first_chunk::<2>() else {
                break;
            };
            if end != b"\r\n" {
                return Err(Cut("a message is longer than announced".to_owned()));
            }
            sink.event(seat, &Event::plain(text));
            rest = after;
        }
        if rest.len() > MAX_MESSAGE * 2 {
            return Err(Cut("a line without an end".to_owned()));
        }
        Ok(input.len() - rest.len())
    }

    fn publish(&mut self, _timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool {
        if self.head_for != text.len() {
            let room = self.seats.first().map_or("", |seat| &seat.room);
            self.head.clear();
            put(&mut self.head, format_args!("PUB {room} {}\r\n", text.len()));
            self.head_for = text.len();
        }
        out.extend_from_slice(&self.head);
        out.extend_from_slice(text);
        out.extend_from_slice(b"\r\n");
        true
    }

    fn leave(&mut self, _seat: usize, _timestamp: i64, _out: &mut Vec<u8>) -> bool {
        false
    }
}

/// Appends formatted text. Writing to a `Vec` cannot fail.
pub(super) fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    drop(out.write_fmt(text));
}

#[cfg(test)]
mod tests {
    use super::super::tests::{feed, seats};
    use super::*;

    #[test]
    fn messages_reach_their_seats_however_they_are_cut() {
        let bytes = b"INFO {}\r\nPONG\r\nMSG room 2 3\r\none\r\nPING\r\nMSG room 1 5\r\nt\r\nwo\r\n";
        for size in 1..=bytes.len() {
            let (kept, out) = feed(&mut Nats::new(seats(&["a", "b"])), bytes, size).unwrap();
            assert_eq!(kept.joined, [0, 1]);
            assert_eq!(kept.texts, [(1, "one".into()), (0, "t\r\nwo".into())]);
            assert_eq!(out, b"PONG\r\n");
        }
    }

    #[test]
    fn subscriptions_come_before_the_ping_that_proves_them() {
        let mut out = Vec::new();
        Nats::new(seats(&["a", "b"])).open(&mut out);
        assert!(out.ends_with(b"SUB room 1\r\nSUB room 2\r\nPING\r\n"));
        let mut message = Vec::new();
        assert!(Nats::new(seats(&["a"])).publish(0, b"hello", &mut message));
        assert_eq!(message, b"PUB room 5\r\nhello\r\n");
    }

    #[test]
    fn errors_and_nonsense_are_faults() {
        for wrong in [
            &b"-ERR 'Slow Consumer'\r\n"[..],
            b"HTTP/1.1 400\r\n",
            b"MSG room 9 1\r\n",
            b"MSG room 1 x\r\n",
        ] {
            assert!(feed(&mut Nats::new(seats(&["a"])), wrong, 99).is_err());
        }
    }
}
