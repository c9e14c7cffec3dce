//! The protocols of the servers, without I/O: bytes in, events and bytes out.

mod chitchat;
mod decode_cache;
mod http2;
mod jetstream;
mod limit;
mod mqtt;
mod nats;
mod redis;

use thiserror::Error;

pub(super) use chitchat::Chitchat;
pub(super) use decode_cache::DecodeCache;
pub(super) use jetstream::JetStream;
pub(super) use limit::{Limit, MAX_MESSAGE, take_message};
pub(super) use mqtt::Mqtt;
pub(super) use nats::Nats;
pub(super) use redis::Redis;

/// The kind of an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventKind {
    Join,
    Message,
    Leave,
}

/// A client on a connection, identified by its index there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientSlot {
    pub(super) name: String,
    /// The room, or its equivalent in the protocol. Empty means the lobby.
    pub(super) room: String,
}

/// Something that a client received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub(super) kind: EventKind,
    pub(super) text: &'a [u8],
    pub(super) sender: i32,
    /// 0 if the protocol has none.
    pub(super) sequence: u64,
    /// 0 if the protocol has none.
    pub(super) timestamp: i64,
    /// A hash of the other fields; 0 for protocols whose streams are not compared.
    pub(super) fingerprint: u64,
}

impl<'a> Event<'a> {
    /// A message without a sequence and a Lamport time.
    fn plain(text: &'a [u8]) -> Self {
        Self {
            kind: EventKind::Message,
            text,
            sender: 0,
            sequence: 0,
            timestamp: 0,
            fingerprint: 0,
        }
    }
}

/// Receives the events of a connection.
pub(super) trait EventSink {
    /// The client has joined and receives every event from now on.
    fn joined(&mut self, slot: usize);
    fn event(&mut self, slot: usize, event: &Event<'_>);
    /// The client's stream ended, but not the connection. `why` is `None` if it ended without an error.
    fn ended(&mut self, slot: usize, why: Option<String>);
}

/// Why a connection can no longer be used, in one line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub(super) struct ConnectionError(pub(super) String);

/// The client side of a protocol, for one connection. On a publishing connection the first slot publishes.
pub(super) trait Codec {
    /// Appends what the client sends first.
    fn open(&mut self, out: &mut Vec<u8>);
    /// Parses `input`, passes its events to `sink` and appends replies to `out`. Returns the number of bytes consumed;
    /// the rest is passed again, followed by what arrives next.
    fn receive(
        &mut self,
        input: &[u8],
        sink: &mut impl EventSink,
        out: &mut Vec<u8>,
    ) -> Result<usize, ConnectionError>;
    /// Appends a message. Returns `false`, and appends nothing, if flow control does not permit it now.
    fn publish(&mut self, timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool;
    /// Appends what a client sends when it leaves. Returns `false` if disconnecting is enough, as it mostly is.
    fn leave(&mut self, _slot: usize, _timestamp: i64, _out: &mut Vec<u8>) -> bool {
        false
    }
}

/// What precedes the text of a message that is published. The texts of a run have the same length, so it is formatted once.
#[derive(Debug, Default)]
struct PublishHeader {
    bytes: Vec<u8>,
    /// The length of the text that it is for.
    text_len: Option<usize>,
}

impl PublishHeader {
    /// The header for a text of this length. `write` writes one, after nothing.
    fn of(&mut self, text_len: usize, write: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        if self.text_len != Some(text_len) {
            self.bytes.clear();
            write(&mut self.bytes);
            self.text_len = Some(text_len);
        }
        &self.bytes
    }
}

/// A parsed prefix of the input and the rest; `None` while the input is incomplete.
type Split<'a> = Option<(&'a [u8], &'a [u8])>;

/// Returns the first line of `input` without its line ending, and its length including that.
fn take_line(input: &[u8]) -> Option<(&[u8], usize)> {
    let end = input.iter().position(|&byte| byte == b'\n')?;
    let line = input.get(..end)?;
    Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1))
}

/// Parses a decimal number of at most nine digits.
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

    /// Records the events.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub(super) struct Recorder {
        pub(super) joined: Vec<usize>,
        pub(super) texts: Vec<(usize, String)>,
        pub(super) ended: Vec<(usize, Option<String>)>,
    }

    impl EventSink for Recorder {
        fn joined(&mut self, slot: usize) {
            self.joined.push(slot);
        }

        fn event(&mut self, slot: usize, event: &Event<'_>) {
            self.texts
                .push((slot, String::from_utf8_lossy(event.text).into_owned()));
        }

        fn ended(&mut self, slot: usize, why: Option<String>) {
            self.ended.push((slot, why));
        }
    }

    /// Passes `input` to `codec` in chunks of `size` bytes.
    pub(super) fn feed(
        codec: &mut impl Codec,
        input: &[u8],
        size: usize,
    ) -> Result<(Recorder, Vec<u8>), ConnectionError> {
        let (mut recorder, mut out, mut pending) = (Recorder::default(), Vec::new(), Vec::new());
        for chunk in input.chunks(size) {
            pending.extend_from_slice(chunk);
            let done = codec.receive(&pending, &mut recorder, &mut out)?;
            pending.drain(..done);
        }
        Ok((recorder, out))
    }

    pub(super) fn slots(names: &[&str]) -> Vec<ClientSlot> {
        names
            .iter()
            .map(|name| ClientSlot {
                name: (*name).into(),
                room: "room".into(),
            })
            .collect()
    }

    #[test]
    fn only_short_decimal_numbers_are_parsed() {
        assert_eq!(decimal(b"120"), Some(120));
        for wrong in [&b""[..], b"-1", b"1x", b"9999999999"] {
            assert_eq!(decimal(wrong), None);
        }
    }
}
