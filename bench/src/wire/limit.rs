//! The limit server's protocol: every message is its length in four bytes, the highest first, and the text. The server
//! greets a connection with an empty message once it will hear everything.

use super::{Cut, Event, Front, Sink, Wire};

/// Longer messages are a fault.
pub(crate) const MAX_MESSAGE: usize = 65_536;

/// One client of the limit server.
#[derive(Debug, Default)]
pub(crate) struct Limit;

/// The message at the front of `input`; `None` while it is incomplete.
pub(crate) fn take_message(input: &[u8]) -> Result<Front<'_>, Cut> {
    let Some((&length, rest)) = input.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(Cut(format!(
            "a message of {length} bytes, at most {MAX_MESSAGE} are allowed"
        )));
    }
    Ok(rest.split_at_checked(length))
}

impl Wire for Limit {
    fn open(&mut self, _out: &mut Vec<u8>) {}

    fn receive(&mut self, input: &[u8], sink: &mut impl Sink, _out: &mut Vec<u8>) -> Result<usize, Cut> {
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

    fn leave(&mut self, _seat: usize, _timestamp: i64, _out: &mut Vec<u8>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::feed;
    use super::*;

    #[test]
    fn what_is_published_is_received_however_it_is_cut() {
        let mut bytes = vec![0, 0, 0, 0];
        for text in ["one", "two"] {
            assert!(Limit.publish(0, text.as_bytes(), &mut bytes));
        }
        for size in 1..=bytes.len() {
            let (kept, _) = feed(&mut Limit, &bytes, size).unwrap();
            assert_eq!(kept.joined, [0]);
            assert_eq!(kept.texts, [(0, "one".into()), (0, "two".into())]);
        }
    }

    #[test]
    fn an_absurd_length_is_a_fault() {
        assert!(feed(&mut Limit, &[255, 0, 0, 0], 4).is_err());
    }
}
