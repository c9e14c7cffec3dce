//! What a benchmark's text carries: whose it is, which one it is, and when it should have been sent.
//!
//! Thirty-two characters `a` to `p`, a nibble each: run (4), publisher (4), number (8), intended time (16). An alphabet
//! without gaps parses eight characters at a time without a table and without a branch for each character, because the
//! generator reads a stamp once a delivery and has to stay cheaper than the server it measures.

/// How many bytes a stamp takes; a text cannot be shorter.
pub const STAMP_LEN: usize = 32;

/// The stamp at the front of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Tells this run's texts from anybody else's.
    pub(super) run: u16,
    /// Which publisher sent it.
    pub(super) publisher: u16,
    /// Which of the publisher's messages it is: 0, 1, 2, ….
    pub(super) number: u32,
    /// When it should have been sent, in nanoseconds since the run's origin.
    pub(super) intended: u64,
}

impl Stamp {
    /// Writes the stamp over the first [`STAMP_LEN`] bytes of `text`; a shorter text stays as it is.
    pub(super) fn write(self, text: &mut [u8]) {
        let who = (u32::from(self.run) << 16) | u32::from(self.publisher);
        let [a, b, c, d, e, f, g, h] = self.intended.to_be_bytes();
        let words = [
            who,
            self.number,
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([e, f, g, h]),
        ];
        if text.len() < STAMP_LEN {
            return;
        }
        for (letters, word) in text.chunks_exact_mut(8).zip(words) {
            letters.copy_from_slice(&spell(word));
        }
    }

    /// Reads the stamp at the front of a text; `None` when there is none.
    #[inline]
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        let (stamp, _) = text.split_first_chunk::<STAMP_LEN>()?;
        let (words, _) = stamp.as_chunks::<8>();
        let &[who, number, high, low] = words else {
            return None;
        };
        let (who, number) = (unspell(who)?, unspell(number)?);
        let (high, low) = (unspell(high)?, unspell(low)?);
        let [a, b, c, d] = who.to_be_bytes();
        Some(Self {
            run: u16::from_be_bytes([a, b]),
            publisher: u16::from_be_bytes([c, d]),
            number,
            intended: (u64::from(high) << 32) | u64::from(low),
        })
    }
}

/// Eight letters for the eight nibbles of a word, the highest first.
fn spell(word: u32) -> [u8; 8] {
    let mut spread = u64::from(word);
    spread = (spread | (spread << 16)) & 0x0000_FFFF_0000_FFFF;
    spread = (spread | (spread << 8)) & 0x00FF_00FF_00FF_00FF;
    spread = (spread | (spread << 4)) & 0x0F0F_0F0F_0F0F_0F0F;
    (spread + LETTER_A).to_be_bytes()
}

/// The letter `a` in every byte.
const LETTER_A: u64 = 0x6161_6161_6161_6161;

#[inline]
fn unspell(letters: [u8; 8]) -> Option<u32> {
    // A byte below `a` borrows from its neighbour, but the lowest such byte itself ends above 0x0F, so none slips through.
    let mut nibbles = u64::from_be_bytes(letters).wrapping_sub(LETTER_A);
    if nibbles & 0xF0F0_F0F0_F0F0_F0F0 != 0 {
        return None;
    }
    nibbles = (nibbles | (nibbles >> 4)) & 0x00FF_00FF_00FF_00FF;
    nibbles = (nibbles | (nibbles >> 8)) & 0x0000_FFFF_0000_FFFF;
    let [_, _, _, _, a, b, c, d] = (nibbles | (nibbles >> 16)).to_be_bytes();
    Some(u32::from_be_bytes([a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(run: u16, publisher: u16, number: u32, intended: u64) {
            let stamp = Stamp { run, publisher, number, intended };
            let mut text = vec![b'.'; 40];
            stamp.write(&mut text);
            prop_assert_eq!(Stamp::read(&text), Some(stamp));
            prop_assert!(text.iter().all(u8::is_ascii_graphic));
        }

        #[test]
        fn a_spoiled_byte_is_noticed(at in 0_usize..STAMP_LEN, byte: u8) {
            prop_assume!(!(b'a'..=b'p').contains(&byte));
            let mut text = vec![b'a'; STAMP_LEN];
            text[at] = byte;
            prop_assert_eq!(Stamp::read(&text), None);
        }
    }

    #[test]
    fn short_texts_carry_none() {
        assert_eq!(Stamp::read(b"aaaa"), None);
        let mut short = *b"short";
        Stamp {
            run: 1,
            publisher: 2,
            number: 3,
            intended: 4,
        }
        .write(&mut short);
        assert_eq!(&short, b"short");
    }
}
