//! A cache of decoded messages.
//!
//! All clients of a room receive the same bytes, and comparing them with cached ones is much cheaper than decoding them
//! again. A hit requires equal bytes, so the cache does not affect the results of a run.

use super::EventKind;

/// The capacity in messages, large enough that a message that one client has decoded is still cached when the last
/// client of the room receives it.
const CAPACITY: usize = 2_048;
/// Longer messages, in bytes, are not cached.
const MAX_LENGTH: usize = 256;

/// A decoded message. `text` is a byte range of the encoded message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) kind: EventKind,
    pub(super) text: (usize, usize),
    pub(super) sender: i32,
    pub(super) sequence: u64,
    pub(super) timestamp: i64,
    pub(super) fingerprint: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    decoded: Decoded,
    length: usize,
    bytes: [u8; MAX_LENGTH],
}

/// The messages that the clients of a thread have decoded most recently.
#[derive(Debug, Default)]
pub(crate) struct DecodeCache {
    /// Allocated with the first message.
    entries: Vec<Entry>,
}

impl DecodeCache {
    /// Returns the decoded message if `bytes` are those that were cached under `key`.
    #[inline]
    pub(super) fn get(&self, key: u64, bytes: &[u8]) -> Option<Decoded> {
        let entry = self.entries.get(index(key))?;
        (entry.bytes.get(..entry.length) == Some(bytes)).then_some(entry.decoded)
    }

    /// Caches a message under `key`, replacing the one that was there.
    pub(super) fn insert(&mut self, key: u64, bytes: &[u8], decoded: Decoded) {
        if self.entries.is_empty() {
            // No message is empty, so an empty entry is never hit.
            self.entries = vec![
                Entry {
                    decoded,
                    length: 0,
                    bytes: [0; MAX_LENGTH]
                };
                CAPACITY
            ];
        }
        let Some(entry) = self.entries.get_mut(index(key)) else {
            return;
        };
        if let Some(stored) = entry.bytes.get_mut(..bytes.len()) {
            stored.copy_from_slice(bytes);
            entry.length = bytes.len();
            entry.decoded = decoded;
        }
    }
}

fn index(key: u64) -> usize {
    usize::try_from(key % CAPACITY as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECODED: Decoded = Decoded {
        kind: EventKind::Message,
        text: (1, 2),
        sender: 3,
        sequence: 4,
        timestamp: 5,
        fingerprint: 6,
    };

    #[test]
    fn only_equal_bytes_are_a_hit() {
        let mut cache = DecodeCache::default();
        assert_eq!(cache.get(4, b"message"), None);
        cache.insert(4, b"message", DECODED);
        assert_eq!(cache.get(4, b"message"), Some(DECODED));
        for other in [&b"massage"[..], b"messag", b"message ", b""] {
            assert_eq!(cache.get(4, other), None);
        }
        assert_eq!(cache.get(5, b"message"), None);
    }

    #[test]
    fn long_messages_are_not_cached() {
        let mut cache = DecodeCache::default();
        cache.insert(4, &[b'x'; MAX_LENGTH + 1], DECODED);
        assert_eq!(cache.get(4, &[b'x'; MAX_LENGTH + 1]), None);
    }
}
