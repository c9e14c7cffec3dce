//! Remembers what messages meant. Every client of a room receives the same bytes: comparing them with those that another
//! client received is much cheaper than reading them again. Whether something is found never changes what is reported,
//! only what it costs, because equal bytes mean the same.

use super::Kind;

/// How many messages are remembered: enough for all clients of a room to find what the first one read.
const SLOTS: usize = 2_048;
/// Longer messages are read each time.
const LONGEST: usize = 256;

/// What a message says, its text as a place in its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) kind: Kind,
    pub(super) text: (usize, usize),
    pub(super) sender: i32,
    pub(super) sequence: u64,
    pub(super) timestamp: i64,
    pub(super) print: u64,
}

#[derive(Debug, Clone)]
struct Slot {
    meaning: Meaning,
    length: usize,
    bytes: [u8; LONGEST],
}

/// The newest messages that any client of a thread has read.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    /// Grows to its full size with the first messages.
    slots: Vec<Slot>,
}

impl Memo {
    /// What these bytes mean, if they are the ones that were kept in that place.
    #[inline]
    pub(super) fn recall(&self, place: u64, bytes: &[u8]) -> Option<Meaning> {
        let slot = self.slots.get(index(place))?;
        (slot.bytes.get(..slot.length) == Some(bytes)).then_some(slot.meaning)
    }

    /// Keeps what these bytes mean in that place, over what was there.
    pub(super) fn keep(&mut self, place: u64, bytes: &[u8], meaning: Meaning) {
        if self.slots.is_empty() {
            // No message is empty, so an empty slot is never recalled.
            self.slots = vec![
                Slot {
                    meaning,
                    length: 0,
                    bytes: [0; LONGEST]
                };
                SLOTS
            ];
        }
        let Some(slot) = self.slots.get_mut(index(place)) else {
            return;
        };
        if let Some(kept) = slot.bytes.get_mut(..bytes.len()) {
            kept.copy_from_slice(bytes);
            slot.length = bytes.len();
            slot.meaning = meaning;
        }
    }
}

fn index(place: u64) -> usize {
    usize::try_from(place % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_bytes_are_recalled() {
        let meaning = Meaning {
            kind: Kind::Message,
            text: (1, 2),
            sender: 3,
            sequence: 4,
            timestamp: 5,
            print: 6,
        };
        let mut memo = Memo::default();
        assert_eq!(memo.recall(4, b"message"), None);
        memo.keep(4, b"message", meaning);
        assert_eq!(memo.recall(4, b"message"), Some(meaning));
        for other in [&b"massage"[..], b"messag", b"message ", b""] {
            assert_eq!(memo.recall(4, other), None);
        }
        assert_eq!(memo.recall(5, b"message"), None);
    }

    #[test]
    fn long_messages_are_not_kept() {
        let meaning = Meaning {
            kind: Kind::Message,
            text: (1, 2),
            sender: 3,
            sequence: 4,
            timestamp: 5,
            print: 6,
        };
        let mut memo = Memo::default();
        memo.keep(4, &[b'x'; LONGEST + 1], meaning);
        assert_eq!(memo.recall(4, &[b'x'; LONGEST + 1]), None);
    }
}
