//! Deduplication of messages by message id.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::limits::DEDUP_WINDOW_LEN;
use super::{MessageId, Sequence, Text};

/// The newest [`DEDUP_WINDOW_LEN`] message ids of a room and the events that have them.
///
/// Keeps hashes of the ids, which take half the memory: two ids never have the same 128 bits in practice.
///
/// Invariant: an id is in `oldest_first` exactly if it is in `originals`.
#[derive(Debug, Clone, Default)]
pub(super) struct DedupWindow {
    originals: HashMap<u128, Original>,
    oldest_first: VecDeque<u128>,
}

#[derive(Debug, Clone, Copy)]
struct Original {
    sequence: Sequence,
    /// Tells a repeat from another message with the same id. If the hashes of two texts collide, the second message, whose
    /// sender has used the id twice, is taken for a repeat.
    text_hash: u64,
}

/// An earlier message with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// It has the same text.
    SameText(Sequence),
    /// It has another text.
    OtherText(Sequence),
}

impl DedupWindow {
    pub(super) fn get(&self, id: &MessageId, text: &Text) -> Option<Seen> {
        self.originals.get(&id_hash(id)).map(|original| {
            if original.text_hash == hash(text) {
                Seen::SameText(original.sequence)
            } else {
                Seen::OtherText(original.sequence)
            }
        })
    }

    /// Adds an id, which must not be in the window, and drops the oldest one if the window is full.
    pub(super) fn insert(&mut self, id: &MessageId, text: &Text, sequence: Sequence) {
        let id = id_hash(id);
        if self.oldest_first.len() >= DEDUP_WINDOW_LEN
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.originals.remove(&oldest);
        }
        self.oldest_first.push_back(id);
        let text_hash = hash(text);
        self.originals.insert(id, Original { sequence, text_hash });
    }
}

fn id_hash(id: &MessageId) -> u128 {
    u128::from(hash(id)) << 64 | u128::from(hash(&(id, id)))
}

/// The same in all calls of one process, because the keys of a new `DefaultHasher` are fixed. Never stored.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> MessageId {
        MessageId::try_from(format!("m{n}").as_str()).unwrap()
    }

    #[test]
    fn a_full_window_drops_the_oldest_id() {
        let text = Text::parse("hi", 9).unwrap();
        let mut window = DedupWindow::default();
        for n in 0..=DEDUP_WINDOW_LEN {
            window.insert(&id(n), &text, Sequence::new(n as u64 + 1));
        }
        assert_eq!(window.get(&id(0), &text), None);
        assert_eq!(window.get(&id(1), &text), Some(Seen::SameText(Sequence::new(2))));
        assert_eq!(window.originals.len(), DEDUP_WINDOW_LEN);
        let other = Text::parse("ho", 9).unwrap();
        assert_eq!(
            window.get(&id(1), &other),
            Some(Seen::OtherText(Sequence::new(2)))
        );
    }
}
