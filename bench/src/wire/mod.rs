//! What each kind of server speaks, without any input or output: bytes in, events and bytes out.

mod chitchat;
mod http2;
mod limit;
mod memo;
mod mqtt;
mod nats;
mod redis;

use thiserror::Error;

pub(super) use chitchat::Chitchat;
pub(super) use limit::{Limit, MAX_MESSAGE, take_message};
pub(super) use memo::Memo;
pub(super) use mqtt::Mqtt;
pub(super) use nats::Nats;
pub(super) use redis::Redis;

/// What happened in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Join,
    Message,
    Leave,
}

/// A client's place on a connection. Its index there is how the wire and the generator name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seat {
    /// The participant's name.
    pub(super) name: String,
    /// The room, or what stands for one; empty = the lobby.
    pub(super) room: String,
}

/// Something a client received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a [u8],
    pub(super) sender: i32,
    /// 0 where there is none.
    pub(super) sequence: u64,
    /// 0 where there is none.
    pub(super) timestamp: i64,
    /// The fingerprint of all this, where streams are compared; 0 elsewhere.
    pub(super) print: u64,
}

impl<'a> Event<'a> {
    /// A message of a server that stamps nothing on it.
    fn plain(text: &'a [u8]) -> Self {
        Self {
            kind: Kind::Message,
            text,
            sender: 0,
            sequence: 0,
            timestamp: 0,
            print: 0,
        }
    }
}

/// Takes what clients receive.
pub(super) trait Sink {
    /// The client takes part: from now on it hears everything.
    fn joined(&mut self, seat: usize);
    /// The client received something.
    fn event(&mut self, seat: usize, event: &Event<'_>);
    /// The client's stream ended while the connection lives on; `why` is `None` when it ended well.
    fn ended(&mut self, seat: usize, why: Option<String>);
}

/// Why a connection is of no use any more, in one line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub(super) struct Cut(pub(super) String);

/// One side of one connection. Where a connection publishes, its first seat does.
pub(super) trait Wire {
    /// Appends what is said first, unasked.
    fn open(&mut self, out: &mut Vec<u8>);
    /// Reads `input`, tells `sink` what is in it and appends answers to `out`. Gives how much of the input is done with;
    /// the rest comes again in front of what arrives next.
    fn receive(&mut self, input: &[u8], sink: &mut impl Sink, out: &mut Vec<u8>) -> Result<usize, Cut>;
    /// Appends a message. `false` when flow control does not permit it now; then nothing was appended.
    fn publish(&mut self, timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool;
    /// Appends a client's farewell. `false` when none is customary: the connection may just be closed.
    fn leave(&mut self, seat: usize, timestamp: i64, out: &mut Vec<u8>) -> bool;
}

/// Something at the front of the input and what follows it; `None` while it is incomplete.
type Front<'a> = Option<(&'a [u8], &'a [u8])>;

/// Cuts the line at the front of `input` off, without its end; gives it and how long it was with its end.
fn take_line(input: &[u8]) -> Option<(&[u8], usize)> {
    let end = input.iter().position(|&byte| byte == b'\n')?;
    let line = input.get(..end)?;
    Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1))
}

/// Reads a decimal number; `None` when there is anything else in it.
fn decimal(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0_usize, |value, digit| {
        digit
            .is_ascii_digit()
            .then(|| value * 10 + usize::from(digit - b'0'))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Keeps what it is told.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub(super) struct Kept {
        pub(super) joined: Vec<usize>,
        pub(super) texts: Vec<(usize, String)>,
        pub(super) ended: Vec<(usize, Option<String>)>,
    }

    impl Sink for Kept {
        fn joined(&mut self, seat: usize) {
            self.joined.push(seat);
        }

        fn event(&mut self, seat: usize, event: &Event<'_>) {
            self.texts
                .push((seat, String::from_utf8_lossy(event.text).into_owned()));
        }

        fn ended(&mut self, seat: usize, why: Option<String>) {
            self.ended.push((seat, why));
        }
    }

    /// Feeds `input` in pieces of `size` bytes, as the network might.
    pub(super) fn feed(wire: &mut impl Wire, input: &[u8], size: usize) -> Result<(Kept, Vec<u8>), Cut> {
        let (mut kept, mut out, mut waiting) = (Kept::default(), Vec::new(), Vec::new());
        for piece in input.chunks(size) {
            waiting.extend_from_slice(piece);
            let done = wire.receive(&waiting, &mut kept, &mut out)?;
            waiting.drain(..done);
        }
        Ok((kept, out))
    }

    pub(super) fn seats(names: &[&str]) -> Vec<Seat> {
        names
            .iter()
            .map(|name| Seat {
                name: (*name).into(),
                room: "room".into(),
            })
            .collect()
    }

    #[test]
    fn numbers_are_decimal_and_bounded() {
        assert_eq!(decimal(b"120"), Some(120));
        for wrong in [&b""[..], b"-1", b"1x", b"9999999999"] {
            assert_eq!(decimal(wrong), None);
        }
    }
}
