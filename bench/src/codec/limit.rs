//! The protocol of the limit server: the length of a text in four bytes, big-endian, and the text. An empty text from
//! the server tells the client that it has joined.

use super::{Codec, ConnectionError, Event, EventSink, Split};

/// The longest message accepted, in bytes.
pub(crate) const MAX_MESSAGE: usize = 65_536;

/// One client of the limit server.
#[derive(Debug, Default)]
pub(crate) struct Limit;

/// Splits off the first message of `input`.
pub(crate) fn take_message(input: &[u8]) -> Result<Split<'_>, ConnectionError> {
    let Some((&length, rest)) = input.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(ConnectionError(format!(
            "a message of {length} bytes, at most {MAX_MESSAGE} are allowed"
        )));
    }
    Ok(rest.split_at_checked(length))
}

impl Codec for Limit {
    fn open(&mut self, _out: &mut Vec<u8>) {}

    fn receive(
        &mut self,
        input: &[u8],
        sink: &mut impl EventSink,
        _out: &mut Vec<u8>,
    ) -> Result<usize, ConnectionError> {
        let mut rest = input;
        while let Some((text, after)) = take_message(rest)? {
            rest = after;
            if text.is_empty() {
                sink.joined(0);
            } else {
                sink.event(0, &Event::plain(text));
            }
        }
        Ok(input.len() - rest.len())
    }

    fn publish(&mut self, _timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool {
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(text);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::feed;
    use super::*;

    #[test]
    fn messages_are_decoded_at_any_read_boundary() {
        let mut bytes = vec![0, 0, 0, 0];
        for text in ["one", "two"] {
            assert!(Limit.publish(0, text.as_bytes(), &mut bytes));
        }
        for size in 1..=bytes.len() {
            let (recorder, _) = feed(&mut Limit, &bytes, size).unwrap();
            assert_eq!(recorder.joined, [0]);
            assert_eq!(recorder.texts, [(0, "one".into()), (0, "two".into())]);
        }
    }

    #[test]
    fn an_excessive_length_is_rejected() {
        assert!(feed(&mut Limit, &[255, 0, 0, 0], 4).is_err());
    }
}
