//! Whether one participant's stream is the room's order: dense, later and later, and the same as everybody's.

/// What is wrong with the order of one or of many streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OrderFaults {
    /// Events whose sequence did not follow the one before.
    pub not_dense: u64,
    /// Messages whose Lamport time was not later than the one before.
    pub not_later: u64,
}

impl OrderFaults {
    /// Whether nothing is wrong.
    pub fn none(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for OrderFaults {
    fn add_assign(&mut self, other: Self) {
        self.not_dense += other.not_dense;
        self.not_later += other.not_later;
    }
}

/// Follows the order of one participant's stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Order {
    sequence: u64,
    timestamp: i64,
    faults: OrderFaults,
    digest: Digest,
}

impl Order {
    /// Notes what every message of the stream has: a sequence (0 = none) and a Lamport time.
    #[inline]
    pub(super) fn see(&mut self, sequence: u64, timestamp: i64) {
        if sequence != 0 {
            // The first event may have any sequence: a participant's stream begins with its own JOIN.
            if self.sequence != 0 && sequence != self.sequence.wrapping_add(1) {
                self.faults.not_dense += 1;
            }
            self.sequence = sequence;
        }
        if timestamp <= self.timestamp {
            self.faults.not_later += 1;
        }
        self.timestamp = self.timestamp.max(timestamp);
    }

    /// Adds the [`fingerprint`] of one of this run's messages to the digest that is compared between the participants of a room.
    #[inline]
    pub(super) fn digest(&mut self, print: u64) {
        self.digest.state = fold(self.digest.state ^ print ^ MIX_A, MIX_B);
        self.digest.messages += 1;
    }

    /// The latest Lamport time seen.
    pub(super) fn timestamp(&self) -> i64 {
        self.timestamp
    }

    /// What was wrong.
    pub(super) fn faults(&self) -> OrderFaults {
        self.faults
    }

    /// What was seen of this run, in its order.
    pub(super) fn seen(&self) -> Digest {
        self.digest
    }
}

/// A rolling hash over a stream and how long the stream is. Not cryptographic: it guards against faults, not malice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Digest {
    state: u64,
    messages: u64,
}

const MIX_A: u64 = 0x9E37_79B9_7F4A_7C15;
const MIX_B: u64 = 0xD6E8_FEB8_6659_FD93;

/// A hash over everything of a message that all clients of a room have to receive alike.
pub(super) fn fingerprint(sequence: u64, timestamp: i64, sender: i32, text: &[u8]) -> u64 {
    // Two chains that do not wait for each other: the processor works on them at once.
    let mut left = fold(sequence ^ MIX_A, timestamp.cast_unsigned() ^ MIX_B);
    let mut right = fold(
        u64::from(sender.cast_unsigned()) ^ MIX_A,
        text.len() as u64 ^ MIX_B,
    );
    let (blocks, rest) = text.as_chunks::<32>();
    for block in blocks {
        let (halves, _) = block.as_chunks::<16>();
        if let &[first, second] = halves {
            left = mixed(left, u128::from_le_bytes(first));
            right = mixed(right, u128::from_le_bytes(second));
        }
    }
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        left = mixed(left, u128::from(u64::from_le_bytes(*word)));
    }
    for &byte in rest {
        right = (right ^ u64::from(byte)).wrapping_mul(MIX_A);
    }
    fold(left ^ MIX_A, right ^ MIX_B)
}

#[inline]
fn mixed(state: u64, block: u128) -> u64 {
    fold(state ^ low(block) ^ MIX_A, low(block >> 64) ^ MIX_B)
}

/// Multiplies to twice the width and folds the halves together.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    low(product) ^ low(product >> 64)
}

#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is asked for"
)]
fn low(wide: u128) -> u64 {
    wide as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(events: &[(u64, i64)]) -> OrderFaults {
        let mut order = Order::default();
        for &(sequence, timestamp) in events {
            order.see(sequence, timestamp);
        }
        order.faults()
    }

    #[test]
    fn a_dense_rising_stream_has_no_faults() {
        assert!(stream(&[(7, 3), (8, 4), (0, 6), (9, 9)]).none());
    }

    #[test]
    fn planted_holes_repeats_and_swaps_are_caught() {
        assert_eq!(stream(&[(1, 1), (3, 2)]).not_dense, 1);
        assert_eq!(stream(&[(1, 1), (1, 2)]).not_dense, 1);
        assert_eq!(stream(&[(1, 1), (3, 2), (2, 3), (4, 4)]).not_dense, 3);
    }

    #[test]
    fn a_lamport_time_that_stands_still_or_goes_back_is_caught() {
        assert_eq!(stream(&[(1, 5), (2, 5)]).not_later, 1);
        assert_eq!(stream(&[(1, 5), (2, 4), (3, 6)]).not_later, 1);
        assert_eq!(stream(&[(1, 5), (0, 4)]).not_later, 1);
    }

    #[test]
    fn the_digest_depends_on_every_part_and_on_the_order() {
        let digest = |events: &[(u64, i64, i32, &str)]| {
            let mut order = Order::default();
            for (sequence, timestamp, sender, text) in events {
                order.digest(fingerprint(*sequence, *timestamp, *sender, text.as_bytes()));
            }
            order.seen()
        };
        let long = "0123456789abcdef0123456789abcdef01234567X";
        let base = digest(&[(1, 2, 3, long), (2, 3, 4, "b")]);
        assert_eq!(base, digest(&[(1, 2, 3, long), (2, 3, 4, "b")]));
        assert_ne!(base, digest(&[(2, 3, 4, "b"), (1, 2, 3, long)]));
        assert_ne!(base, digest(&[(9, 2, 3, long), (2, 3, 4, "b")]));
        assert_ne!(base, digest(&[(1, 9, 3, long), (2, 3, 4, "b")]));
        assert_ne!(base, digest(&[(1, 2, 9, long), (2, 3, 4, "b")]));
        assert_ne!(
            base,
            digest(&[
                (1, 2, 3, "0123456789abcdef0123456789abcdee01234567X"),
                (2, 3, 4, "b")
            ])
        );
        assert_ne!(
            base,
            digest(&[
                (1, 2, 3, "0123456789abcdef0123456789abcdef01234567Y"),
                (2, 3, 4, "b")
            ])
        );
        assert_ne!(base, digest(&[(1, 2, 3, long)]));
    }
}
