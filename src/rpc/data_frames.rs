//! The DATA frames that a connection has received and nobody has read.

use std::ops::AddAssign;

/// What a DATA frame is charged at least, in bytes: h2 keeps each in a slot of its own.
pub(super) const MIN_FRAME_BYTES: u32 = 256;

/// A class for each number of bits that the length of a frame can have. Lengths of more than 15 bits are in the last one.
const CLASSES: usize = 16;

/// Numbers and lengths of frames, by the number of bits of their lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct DataFrames {
    counts: [u32; CLASSES],
    /// A connection's window is far smaller than what fits.
    bytes: [u32; CLASSES],
}

impl DataFrames {
    /// A frame of this length, in bytes.
    pub(super) fn add(&mut self, len: usize) {
        let class = class(len);
        self.counts[class] += 1;
        self.bytes[class] = self.bytes[class].saturating_add(bytes(len));
    }

    /// Removes a frame of this length, if there is one.
    pub(super) fn remove(&mut self, len: usize) {
        let class = class(len);
        self.counts[class] = self.counts[class].saturating_sub(1);
        self.bytes[class] = match self.counts[class] {
            0 => 0,
            _ => self.bytes[class].saturating_sub(bytes(len)),
        };
    }

    /// Removes frames until their lengths add up to at most `most` bytes. The longest come first, because which ones h2 has discarded is not
    /// known: a client must not be able to make the server forget many short frames with few long ones.
    pub(super) fn discard_beyond(&mut self, most: usize) {
        let all: u32 = self.bytes.iter().sum();
        let mut excess = all.saturating_sub(bytes(most));
        // Those of the first class have no bytes.
        for class in (1..CLASSES).rev() {
            if excess == 0 {
                break;
            }
            let discarded = excess.min(self.bytes[class]);
            excess -= discarded;
            self.bytes[class] -= discarded;
            // No fewer than must be gone for these bytes, and no more than fit into the bytes that are left.
            let (shortest, longest) = (1 << (class - 1), (1 << class) - 1);
            let left = self.counts[class].saturating_sub(discarded.div_ceil(longest));
            self.counts[class] = left.min(self.bytes[class].div_ceil(shortest));
        }
    }

    pub(super) fn count(&self) -> usize {
        self.counts.iter().sum::<u32>() as usize
    }

    /// Roughly the memory that they take, in bytes: their lengths, but at least [`MIN_FRAME_BYTES`] for each.
    pub(super) fn charge(&self) -> usize {
        let classes = self.counts.iter().zip(&self.bytes);
        let charge = |(count, bytes): (&u32, &u32)| (*bytes).max(count * MIN_FRAME_BYTES);
        classes.map(charge).sum::<u32>() as usize
    }
}

impl AddAssign<&Self> for DataFrames {
    fn add_assign(&mut self, other: &Self) {
        for class in 0..CLASSES {
            self.counts[class] += other.counts[class];
            self.bytes[class] += other.bytes[class];
        }
    }
}

fn bytes(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn class(len: usize) -> usize {
    let bits = usize::BITS - len.leading_zeros();
    (bits as usize).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(lengths: &[(usize, usize)]) -> DataFrames {
        let mut frames = DataFrames::default();
        for (count, len) in lengths {
            for _ in 0..*count {
                frames.add(*len);
            }
        }
        frames
    }

    #[test]
    fn frames_that_are_read_are_not_charged() {
        let mut frames = frames(&[(10, 5), (1, 0), (2, 300), (1, 16_384)]);
        assert_eq!(frames.charge(), 11 * 256 + 600 + 16_384);
        for len in [5, 0, 300, 16_384, 16_384] {
            frames.remove(len);
        }
        assert_eq!((frames.count(), frames.charge()), (10, 9 * 256 + 300));
    }

    #[test]
    fn few_long_frames_do_not_hide_many_short_ones() {
        let mut unread = frames(&[(10_000, 5)]);
        let charge = unread.charge();
        for _ in 0..100 {
            unread += &frames(&[(16, 16_384)]);
            unread.discard_beyond(65_535);
        }
        assert!((charge..charge + 2 * 16_384).contains(&unread.charge()));
        // Short ones were discarded, too, as there is nothing else.
        unread.discard_beyond(500);
        assert!((100..200).contains(&unread.count()), "{}", unread.count());
        unread.discard_beyond(0);
        assert_eq!((unread.count(), unread.charge()), (0, 0));
    }
}
