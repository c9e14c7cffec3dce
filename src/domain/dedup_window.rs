//! Deduplication of messages by message id.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use hashbrown::HashTable;

use super::limits::DEDUP_WINDOW_LEN;
use super::{MessageId, Sequence, Text};

/// Roughly the memory of an entry, in bytes: 24, and at most 12 of the table, both with what they have to grow.
pub(crate) const DEDUP_ENTRY_BYTES: usize = 48;

/// The newest [`DEDUP_WINDOW_LEN`] message ids of a room and the events that have them.
///
/// Keeps hashes of the ids. Two ids of a full window have the same 64 bits by chance once in 3 * 10^14 messages; then the second
/// message is rejected.
///
/// Invariant: the table contains the number of each entry exactly once.
#[derive(Debug, Clone, Default)]
pub(super) struct DedupWindow {
    oldest_first: VecDeque<Entry>,
    /// The number of the oldest entry. Numbers are consecutive and wrap.
    first: u32,
    /// The numbers of the entries, by the hashes of their ids.
    numbers: HashTable<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id_hash: u64,
    /// Tells a repeat from another message with the same id. If the hashes of two texts collide, the second message, whose
    /// sender has used the id twice, is taken for a repeat.
    text_hash: u64,
    sequence: Sequence,
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
        self.find(hash(id)).map(|entry| {
            if entry.text_hash == hash(text) {
                Seen::SameText(entry.sequence)
            } else {
                Seen::OtherText(entry.sequence)
            }
        })
    }

    /// Adds an id, unless it is in the window, and drops the oldest one if the window is full.
    pub(super) fn insert(&mut self, id: &MessageId, text: &Text, sequence: Sequence) {
        let id_hash = hash(id);
        if self.find(id_hash).is_some() {
            return;
        }
        self.drop_oldest(DEDUP_WINDOW_LEN - 1);
        // The window has less than 2^32 entries.
        #[allow(clippy::cast_possible_truncation)]
        let number = self.first.wrapping_add(self.oldest_first.len() as u32);
        self.oldest_first.push_back(Entry {
            id_hash,
            text_hash: hash(text),
            sequence,
        });
        let (entries, first) = (&self.oldest_first, self.first);
        let hash_of = |number: &u32| entry(entries, first, *number).map_or(0, |entry| entry.id_hash);
        self.numbers.insert_unique(id_hash, number, hash_of);
    }

    pub(super) fn len(&self) -> usize {
        self.oldest_first.len()
    }

    /// Drops all but the newest `len` ids, and frees their memory.
    pub(super) fn truncate(&mut self, len: usize) {
        self.drop_oldest(len);
        self.oldest_first.shrink_to_fit();
        let (entries, first) = (&self.oldest_first, self.first);
        let hash_of = |number: &u32| entry(entries, first, *number).map_or(0, |entry| entry.id_hash);
        self.numbers.shrink_to_fit(hash_of);
    }

    fn drop_oldest(&mut self, len: usize) {
        while self.oldest_first.len() > len
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            let number = self.first;
            self.first = number.wrapping_add(1);
            if let Ok(found) = self.numbers.find_entry(oldest.id_hash, |other| *other == number) {
                found.remove();
            }
        }
    }

    fn find(&self, id_hash: u64) -> Option<&Entry> {
        let of = |number: &u32| entry(&self.oldest_first, self.first, *number);
        let number = self.numbers.find(id_hash, |number| {
            of(number).is_some_and(|entry| entry.id_hash == id_hash)
        })?;
        of(number)
    }
}

/// The entry with this number.
fn entry(oldest_first: &VecDeque<Entry>, first: u32, number: u32) -> Option<&Entry> {
    oldest_first.get(number.wrapping_sub(first) as usize)
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
        assert_eq!(window.numbers.len(), DEDUP_WINDOW_LEN);
        let other = Text::parse("ho", 9).unwrap();
        assert_eq!(
            window.get(&id(1), &other),
            Some(Seen::OtherText(Sequence::new(2)))
        );
    }

    #[test]
    fn a_truncated_window_keeps_the_newest_ids() {
        let text = Text::parse("hi", 9).unwrap();
        let seen = |window: &DedupWindow, n| window.get(&id(n), &text).is_some();
        let mut window = DedupWindow {
            first: u32::MAX - 3,
            ..DedupWindow::default()
        };
        for n in 0..10 {
            window.insert(&id(n), &text, Sequence::new(n as u64 + 1));
        }
        window.truncate(3);
        window.insert(&id(10), &text, Sequence::new(11));
        let kept: Vec<usize> = (0..11).filter(|n| seen(&window, *n)).collect();
        assert_eq!((kept, window.len()), (vec![7, 8, 9, 10], 4));
        // As when an event is replayed whose id was dropped and used again.
        window.insert(&id(8), &text, Sequence::new(12));
        assert_eq!(window.get(&id(8), &text), Some(Seen::SameText(Sequence::new(9))));
        assert_eq!((window.len(), window.numbers.len()), (4, 4));
    }
}
