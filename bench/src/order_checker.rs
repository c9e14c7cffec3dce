//! Checks the order of a client's stream: dense sequences, increasing Lamport times, and the same messages as everybody
//! else in the room.

/// Ordering faults, summed over streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OrderFaults {
    /// Events whose sequence was not the previous one plus 1.
    pub not_dense: u64,
    /// Messages whose Lamport time was not later than the previous one.
    pub not_later: u64,
}

impl OrderFaults {
    /// Whether there are no faults.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for OrderFaults {
    fn add_assign(&mut self, other: Self) {
        self.not_dense += other.not_dense;
        self.not_later += other.not_later;
    }
}

/// Checks the order of one client's stream.
#[derive(Debug, Clone, Default)]
pub(super) struct OrderChecker {
    sequence: u64,
    timestamp: i64,
    faults: OrderFaults,
    digest: Digest,
}

impl OrderChecker {
    /// Checks the sequence (0 if there is none) and the Lamport time of the next event.
    #[inline]
    pub(super) fn observe(&mut self, sequence: u64, timestamp: i64) {
        if sequence != 0 {
            // A stream begins with the client's own JOIN, at any sequence.
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

    /// Adds the [`fingerprint`] of a message of this run to the digest, which is compared between the clients of a
    /// room.
    #[inline]
    pub(super) fn update_digest(&mut self, fingerprint: u64) {
        self.digest.state = fold(self.digest.state ^ fingerprint ^ MIX_A, MIX_B);
        self.digest.messages += 1;
    }

    /// The latest Lamport time received.
    pub(super) fn timestamp(&self) -> i64 {
        self.timestamp
    }

    pub(super) fn faults(&self) -> OrderFaults {
        self.faults
    }

    pub(super) fn digest(&self) -> Digest {
        self.digest
    }
}

/// A rolling hash over a stream and the number of its messages. Not cryptographic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Digest {
    state: u64,
    messages: u64,
}

const MIX_A: u64 = 0x9E37_79B9_7F4A_7C15;
const MIX_B: u64 = 0xD6E8_FEB8_6659_FD93;

/// A hash of the fields of a message that must be the same for all clients of a room.
pub(super) fn fingerprint(sequence: u64, timestamp: i64, sender: i32, text: &[u8]) -> u64 {
    // Two independent chains, which the processor can execute in parallel.
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

/// Multiplies to 128 bits and combines the halves with XOR.
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
        let mut order = OrderChecker::default();
        for &(sequence, timestamp) in events {
            order.observe(sequence, timestamp);
        }
        order.faults()
    }

    #[test]
    fn a_dense_increasing_stream_has_no_faults() {
        assert!(stream(&[(7, 3), (8, 4), (0, 6), (9, 9)]).is_empty());
    }

    #[test]
    fn gaps_repeats_and_swaps_are_detected() {
        assert_eq!(stream(&[(1, 1), (3, 2)]).not_dense, 1);
        assert_eq!(stream(&[(1, 1), (1, 2)]).not_dense, 1);
        assert_eq!(stream(&[(1, 1), (3, 2), (2, 3), (4, 4)]).not_dense, 3);
    }

    #[test]
    fn a_lamport_time_that_does_not_increase_is_detected() {
        assert_eq!(stream(&[(1, 5), (2, 5)]).not_later, 1);
        assert_eq!(stream(&[(1, 5), (2, 4), (3, 6)]).not_later, 1);
        assert_eq!(stream(&[(1, 5), (0, 4)]).not_later, 1);
    }

    #[test]
    fn the_digest_depends_on_every_field_and_on_the_order() {
        let digest = |events: &[(u64, i64, i32, &str)]| {
            let mut order = OrderChecker::default();
            for (sequence, timestamp, sender, text) in events {
                order.update_digest(fingerprint(*sequence, *timestamp, *sender, text.as_bytes()));
            }
            order.digest()
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
