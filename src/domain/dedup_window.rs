//! Deduplication of messages by message id.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use super::limits::DEDUP_WINDOW_LEN;
use super::{MessageId, Sequence, Text};
use crate::spare_capacity::reduced_capacity;

/// Roughly the memory of an entry, in bytes: 24, and at most 12 of the table, both with what they have to grow.
pub(crate) const DEDUP_ENTRY_BYTES: usize = 48;

/// The message ids of a room's newest [`DEDUP_WINDOW_LEN`] events, and the events that have them.
///
/// It depends on the log alone, unless it is [reduced](DedupWindow::keep_newest): a room that is recovered has the same ids as one that
/// has gone on. Keeps hashes of the ids. Two ids of a full window have the same 64 bits by chance once in 3 * 10^14 messages; then the second
/// message is rejected.
///
/// Anybody can compute ids whose hashes have most bits in common, so the table hashes them again with a random key. Nothing depends on that
/// key but the time that a search takes: the table is only searched for hashes of ids, never iterated, and is not part of the state.
///
/// Invariants: the sequences of the entries increase; the table contains the number of the newest entry of each id.
#[derive(Debug, Clone, Default)]
pub(super) struct DedupWindow {
    oldest_first: VecDeque<Entry>,
    /// The number of the oldest entry. Numbers are consecutive and wrap.
    first: u32,
    /// The numbers of the entries, by the [hashes](table_hash) of the hashes of their ids.
    numbers: HashTable<u32>,
    key: RandomState,
}

/// A message with an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id_hash: u64,
    /// Tells a repeat from another message with the same id. If the hashes of two texts collide, the second message, whose
    /// sender has used the id twice, is taken for a repeat.
    pub(super) text_hash: u64,
    pub(super) sequence: Sequence,
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
        self.find(hash(id.as_str())).map(|entry| {
            if entry.text_hash == hash(text.as_str()) {
                Seen::SameText(entry.sequence)
            } else {
                Seen::OtherText(entry.sequence)
            }
        })
    }

    /// Adds the id of a message that is newer than all others. It takes the place of an older one with the same id, which was
    /// forgotten when the newer one was accepted.
    pub(super) fn insert(&mut self, id: &MessageId, text: &Text, sequence: Sequence) {
        self.insert_entry(Entry {
            id_hash: hash(id.as_str()),
            text_hash: hash(text.as_str()),
            sequence,
        });
    }

    fn insert_entry(&mut self, new: Entry) {
        // The window has less than 2^32 entries.
        #[allow(clippy::cast_possible_truncation)]
        let number = self.first.wrapping_add(self.oldest_first.len() as u32);
        self.oldest_first.push_back(new);
        let id_hash_of = id_hash_of(&self.oldest_first, self.first);
        let is_same = |number: &u32| id_hash_of(number) == new.id_hash;
        let hash = table_hash(&self.key, new.id_hash);
        let rehash = |number: &u32| table_hash(&self.key, id_hash_of(number));
        match self.numbers.find_mut(hash, is_same) {
            Some(older) => *older = number,
            None => drop(self.numbers.insert_unique(hash, number, rehash)),
        }
    }

    /// The window with these entries, when `last` is the newest event; `None` if they cannot be those of a window.
    pub(super) fn from_entries(entries: Vec<Entry>, last: Sequence) -> Option<Self> {
        let mut window = Self::default();
        let mut previous = Sequence::ZERO;
        for entry in entries {
            let is_in_order = previous < entry.sequence && entry.sequence <= last;
            if !is_in_order || !is_in_window(entry.sequence, last) {
                return None;
            }
            window.insert_entry(entry);
            previous = entry.sequence;
        }
        Some(window)
    }

    /// The ids, from the oldest to the newest.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.oldest_first.iter()
    }

    /// Drops the ids of events that are too old, now that `last` is the newest event.
    pub(super) fn advance(&mut self, last: Sequence) {
        while self
            .oldest_first
            .front()
            .is_some_and(|oldest| !is_in_window(oldest.sequence, last))
        {
            self.pop_oldest();
        }
        if let Some(capacity) = reduced_capacity(self.len(), self.numbers.capacity()) {
            self.shrink_to(capacity);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.oldest_first.len()
    }

    /// Drops all but the newest `len` ids, and frees their memory.
    pub(super) fn keep_newest(&mut self, len: usize) {
        while self.len() > len {
            self.pop_oldest();
        }
        self.shrink_to(len);
    }

    fn shrink_to(&mut self, capacity: usize) {
        self.oldest_first.shrink_to(capacity);
        let id_hash_of = id_hash_of(&self.oldest_first, self.first);
        self.numbers
            .shrink_to(capacity, |number| table_hash(&self.key, id_hash_of(number)));
    }

    fn pop_oldest(&mut self) {
        if let Some(oldest) = self.oldest_first.pop_front() {
            let number = self.first;
            self.first = number.wrapping_add(1);
            let hash = table_hash(&self.key, oldest.id_hash);
            if let Ok(found) = self.numbers.find_entry(hash, |other| *other == number) {
                found.remove();
            }
        }
    }

    fn find(&self, id_hash: u64) -> Option<&Entry> {
        let id_hash_of = id_hash_of(&self.oldest_first, self.first);
        let hash = table_hash(&self.key, id_hash);
        let number = self.numbers.find(hash, |number| id_hash_of(number) == id_hash)?;
        entry(&self.oldest_first, self.first, *number)
    }
}

/// The entry with this number.
fn entry(oldest_first: &VecDeque<Entry>, first: u32, number: u32) -> Option<&Entry> {
    oldest_first.get(number.wrapping_sub(first) as usize)
}

/// Gives the hash of the id of the entry with a number.
fn id_hash_of(oldest_first: &VecDeque<Entry>, first: u32) -> impl Fn(&u32) -> u64 {
    move |number| entry(oldest_first, first, *number).map_or(0, |entry| entry.id_hash)
}

/// Where the table of a window with this key has the entry of an id with this hash.
fn table_hash(key: &RandomState, id_hash: u64) -> u64 {
    key.hash_one(id_hash)
}

/// Whether the window has the id of an event when `last` is the newest.
pub(super) const fn is_in_window(sequence: Sequence, last: Sequence) -> bool {
    sequence.get().saturating_add(DEDUP_WINDOW_LEN as u64) > last.get()
}

/// The same on every machine and in every version: replicas must agree on what is a repeat.
fn hash(value: &str) -> u64 {
    xxh3_64(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> MessageId {
        MessageId::try_from(format!("m{n}").as_str()).unwrap()
    }

    #[test]
    fn the_window_has_the_ids_of_the_newest_events() {
        let text = Text::parse("hi", 9).unwrap();
        let mut window = DedupWindow::default();
        for n in 0..10 {
            window.insert(&id(n), &text, Sequence::new(2 * n as u64 + 1));
        }
        let last = Sequence::new(DEDUP_WINDOW_LEN as u64 + 2);
        window.advance(last);
        assert_eq!(window.get(&id(0), &text), None);
        assert_eq!(window.get(&id(1), &text), Some(Seen::SameText(Sequence::new(3))));
        window.advance(last.next());
        assert_eq!(window.get(&id(1), &text), None);
        assert_eq!((window.len(), window.numbers.len()), (8, 8));
        let other = Text::parse("ho", 9).unwrap();
        assert_eq!(
            window.get(&id(2), &other),
            Some(Seen::OtherText(Sequence::new(5)))
        );
    }

    #[test]
    fn forgotten_ids_take_no_memory() {
        let text = Text::parse("hi", 9).unwrap();
        let mut window = DedupWindow::default();
        for n in 0..10_000 {
            window.insert(&id(n), &text, Sequence::new(n as u64 + 1));
        }
        window.advance(Sequence::new(DEDUP_WINDOW_LEN as u64 + 9_990));
        assert_eq!(window.len(), 10);
        assert!(window.get(&id(9_990), &text).is_some());
        let capacities = (window.oldest_first.capacity(), window.numbers.capacity());
        assert!(capacities.0 < 200 && capacities.1 < 200, "{capacities:?}");
    }

    #[test]
    fn the_hashes_are_the_same_in_every_version() {
        assert_eq!(
            (hash(""), hash("m1")),
            (0x2d06_8005_38d3_94c2, 0xf4ed_aab5_e5c1_529d)
        );
    }

    #[test]
    fn ids_whose_hashes_have_most_bits_in_common_are_found_as_fast_as_others() {
        let mut window = DedupWindow::default();
        // The table uses the lowest bits and the highest seven.
        for n in 0..10_000 {
            window.insert_entry(Entry {
                id_hash: n << 32,
                text_hash: 0,
                sequence: Sequence::new(n + 1),
            });
        }
        let compared = |id_hash| {
            let hash = table_hash(&window.key, id_hash);
            window.numbers.iter_hash(hash).count()
        };
        let most = (0..10_000).map(|n| compared(n << 32)).max();
        assert!(most < Some(30), "{most:?}");
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
        window.keep_newest(3);
        window.insert(&id(10), &text, Sequence::new(11));
        let kept: Vec<usize> = (0..11).filter(|n| seen(&window, *n)).collect();
        assert_eq!((kept, window.len()), (vec![7, 8, 9, 10], 4));
        // As when an event is replayed whose id was dropped and used again.
        window.insert(&id(8), &text, Sequence::new(12));
        assert_eq!(window.get(&id(8), &text), Some(Seen::SameText(Sequence::new(12))));
        assert_eq!((window.len(), window.numbers.len()), (5, 4));
        window.keep_newest(2);
        assert!(seen(&window, 8) && seen(&window, 10) && !seen(&window, 9));
        assert_eq!((window.len(), window.numbers.len()), (2, 2));
    }
}
