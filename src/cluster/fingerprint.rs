//! What identifies a message of the stream.

use xxhash_rust::xxh3::xxh3_64;

use crate::domain::DecodeError;
use crate::domain::encoding::{Encoding, encode_struct};

/// What identifies the message that the stream has at a position. A stream that was removed and made anew, or restored to an earlier message, has another one
/// there; all copies and backups of a stream have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fingerprint {
    payload: u64,
    /// When the stream has stored it, in nanoseconds since 1970: replicas may write the same message twice. `None` if it was not stored yet
    /// when the fingerprint was taken.
    stored_at: Option<u64>,
}

impl Fingerprint {
    pub(crate) fn new(payload: &[u8], stored_at: Option<u64>) -> Self {
        Self {
            payload: xxh3_64(payload),
            stored_at,
        }
    }

    /// Whether both are of the same message.
    pub(crate) fn matches(self, other: Self) -> bool {
        let is_same_time = match (self.stored_at, other.stored_at) {
            (Some(time), Some(other)) => time == other,
            _ => true,
        };
        is_same_time && self.payload == other.payload
    }
}

encode_struct! {
    Fingerprint { payload, stored_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_message_at_another_time_is_another() {
        let stored = |payload: &[u8], at| Fingerprint::new(payload, at);
        assert!(stored(b"a", Some(1)).matches(stored(b"a", Some(1))));
        assert!(!stored(b"a", Some(1)).matches(stored(b"a", Some(2))));
        assert!(!stored(b"a", Some(1)).matches(stored(b"b", Some(1))));
        assert!(stored(b"a", None).matches(stored(b"a", Some(2))));
        assert!(!stored(b"a", None).matches(stored(b"b", Some(2))));
    }
}
