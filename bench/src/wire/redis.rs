//! The publish/subscribe of redis-server (RESP2). A room is a channel. A connection that subscribes may not publish, so a
//! publisher has two: one publishes, its sibling subscribes and counts what comes back.

use super::nats::put;
use super::{Cut, Event, Front, Seat, Sink, Wire, decimal, take_line};

/// Longer strings are a fault.
const MAX_STRING: usize = 65_536;

/// One connection to redis-server.
#[derive(Debug)]
pub(crate) struct Redis {
    seat: Seat,
    subscribes: bool,
    /// What a message begins with, up to the length of its text.
    announcement: Vec<u8>,
    head: Vec<u8>,
    head_for: usize,
}

/// A reply of the server, as far as the generator distinguishes them.
#[derive(Debug, PartialEq, Eq)]
enum Reply<'a> {
    Line(&'a [u8]),
    Message(&'a [u8]),
    Subscribed,
}

impl Redis {
    /// A connection that reads what is said in the seat's room.
    pub(crate) fn subscriber(seat: Seat) -> Self {
        Self::new(seat, true)
    }

    /// A connection that only publishes into the seat's room.
    pub(crate) fn publisher(seat: Seat) -> Self {
        Self::new(seat, false)
    }

    fn new(seat: Seat, subscribes: bool) -> Self {
        let mut announcement = Vec::new();
        put(
            &mut announcement,
            format_args!(
                "*3\r\n$7\r\nmessage\r\n${}\r\n{}\r\n$",
                seat.room.len(),
                seat.room
            ),
        );
        Self {
            seat,
            subscribes,
            announcement,
            head: Vec::new(),
            head_for: usize::MAX,
        }
    }

    /// The reply at the front of `input` and what follows it; `None` while it is incomplete.
    fn take_reply<'a>(&self, input: &'a [u8]) -> Result<Option<(Reply<'a>, &'a [u8])>, Cut> {
        if let Some(rest) = input.strip_prefix(&*self.announcement) {
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
        // Anything that is not a message of this room is rare: its three parts are read one by one.
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
            Err(foreign(input))
        }
    }
}

/// A length, an end of line, that many bytes, an end of line; `None` while it is incomplete.
fn take_string(input: &[u8]) -> Result<Front<'_>, Cut> {
    let Some((digits, length)) = take_line(input) else {
        return Ok(None);
    };
    let size = decimal(digits)
        .filter(|&size| size <= MAX_STRING)
        .ok_or_else(|| foreign(digits))?;
    let Some((string, rest)) = input.get(length..).and_then(|rest| rest.split_at_checked(size)) else {
        return Ok(None);
    };
    let Some((end, rest)) = rest.split_first_chunk::<2>() else {
        return Ok(None);
    };
    if end == b"\r\n" {
        Ok(Some((string, rest)))
    } else {
        Err(foreign(string))
    }
}

fn foreign(input: &[u8]) -> Cut {
    let start = input.get(..60).unwrap_or(input);
    Cut(format!(
        "not understood: {}",
        String::from_utf8_lossy(start).escape_debug()
    ))
}

impl Wire for Redis {
    fn open(&mut self, out: &mut Vec<u8>) {
        if self.subscribes {
            let room = &self.seat.room;
            put(
                out,
                format_args!("*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n{room}\r\n", room.len()),
            );
        }
    }

    fn receive(&mut self, input: &[u8], sink: &mut impl Sink, _out: &mut Vec<u8>) -> Result<usize, Cut> {
        let mut rest = input;
        while let Some((reply, after)) = self.take_reply(rest)? {
            rest = after;
            match reply {
                Reply::Message(text) => {
                    sink.event(0, &Event::plain(text));
                }
                Reply::Subscribed => sink.joined(0),
                Reply::Line(line) if line.first() == Some(&b'-') => {
                    return Err(Cut(format!("the server said {}", String::from_utf8_lossy(line))));
                }
                // How many heard a published message: the checker knows better.
                Reply::Line(line) if line.first() == Some(&b':') => {}
                Reply::Line(line) => return Err(foreign(line)),
            }
        }
        if rest.len() > MAX_STRING * 2 {
            return Err(Cut("a line without an end".to_owned()));
        }
        Ok(input.len() - rest.len())
    }

    fn publish(&mut self, _timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool {
        if self.head_for != text.len() {
            let room = &self.seat.room;
            self.head.clear();
            put(
                &mut self.head,
                format_args!(
                    "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{room}\r\n${}\r\n",
                    room.len(),
                    text.len()
                ),
            );
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

#[cfg(test)]
mod tests {
    use super::super::tests::{feed, seats};
    use super::*;

    fn wire() -> Redis {
        Redis::subscriber(seats(&["a"]).remove(0))
    }

    #[test]
    fn messages_are_read_however_they_are_cut() {
        let bytes = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n\
            *3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$3\r\none\r\n:104\r\n\
            *3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$5\r\nt\r\nwo\r\n";
        for size in 1..=bytes.len() {
            let (kept, _) = feed(&mut wire(), bytes, size).unwrap();
            assert_eq!(kept.joined, [0]);
            assert_eq!(kept.texts, [(0, "one".into()), (0, "t\r\nwo".into())]);
        }
    }

    #[test]
    fn commands_are_arrays_of_strings() {
        let mut out = Vec::new();
        wire().open(&mut out);
        assert_eq!(out, b"*2\r\n$9\r\nSUBSCRIBE\r\n$4\r\nroom\r\n");
        out.clear();
        assert!(wire().publish(0, b"hello", &mut out));
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$4\r\nroom\r\n$5\r\nhello\r\n");
    }

    #[test]
    fn errors_and_nonsense_are_faults() {
        let wrong = [
            &b"-ERR unknown\r\n"[..],
            b"+what\r\n",
            b"*3\r\n$7\r\nmessage\r\n$5\r\nother\r\n$1\r\nx\r\n",
            b"*3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$99999999\r\n",
        ];
        for bytes in wrong {
            assert!(
                feed(&mut wire(), bytes, 999).is_err(),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
}
