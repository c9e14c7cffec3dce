//! The header at the front of each generated text: run id, publisher, message number and intended sending time.
//!
//! It has 32 characters `a` to `p`, one per nibble: run id (4), publisher (4), number (8), intended time (16). The
//! generator parses a header per delivery. The alphabet is contiguous, so that eight characters are parsed
//! at a time, without a table and without a branch per character.

/// The size of a header in bytes, and the minimum size of a text.
pub const PAYLOAD_HEADER_LEN: usize = 32;

/// Identifies a generated message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PayloadHeader {
    /// Distinguishes the messages of this run from others.
    pub(super) run_id: u16,
    /// Which publisher sent it.
    pub(super) publisher: u16,
    /// The index of the message among those of its publisher.
    pub(super) number: u32,
    /// When the message should have been sent, in nanoseconds since the run's origin.
    pub(super) intended: u64,
}

impl PayloadHeader {
    /// Writes the header over the first [`PAYLOAD_HEADER_LEN`] bytes of `text`. Leaves a shorter text unchanged.
    pub(super) fn write(self, text: &mut [u8]) {
        let source = (u32::from(self.run_id) << 16) | u32::from(self.publisher);
        let [a, b, c, d, e, f, g, h] = self.intended.to_be_bytes();
        let words = [
            source,
            self.number,
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([e, f, g, h]),
        ];
        if text.len() < PAYLOAD_HEADER_LEN {
            return;
        }
        for (letters, word) in text.chunks_exact_mut(8).zip(words) {
            letters.copy_from_slice(&encode_word(word));
        }
    }

    /// Reads the header at the front of `text`; `None` if there is none.
    #[inline]
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        let (header, _) = text.split_first_chunk::<PAYLOAD_HEADER_LEN>()?;
        let (words, _) = header.as_chunks::<8>();
        let &[source, number, high, low] = words else {
            return None;
        };
        let (source, number) = (decode_word(source)?, decode_word(number)?);
        let (high, low) = (decode_word(high)?, decode_word(low)?);
        let [a, b, c, d] = source.to_be_bytes();
        Some(Self {
            run_id: u16::from_be_bytes([a, b]),
            publisher: u16::from_be_bytes([c, d]),
            number,
            intended: (u64::from(high) << 32) | u64::from(low),
        })
    }
}

/// Encodes the eight nibbles of `word` as letters, the highest first.
fn encode_word(word: u32) -> [u8; 8] {
    let mut spread = u64::from(word);
    spread = (spread | (spread << 16)) & 0x0000_FFFF_0000_FFFF;
    spread = (spread | (spread << 8)) & 0x00FF_00FF_00FF_00FF;
    spread = (spread | (spread << 4)) & 0x0F0F_0F0F_0F0F_0F0F;
    (spread + LETTER_A).to_be_bytes()
}

/// The letter `a` in every byte.
const LETTER_A: u64 = 0x6161_6161_6161_6161;

#[inline]
fn decode_word(letters: [u8; 8]) -> Option<u32> {
    // A byte below `a` borrows from its neighbour, but the lowest such byte itself becomes greater than 0x0F.
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
        fn a_header_is_read_as_it_was_written(run_id: u16, publisher: u16, number: u32, intended: u64) {
            let header = PayloadHeader { run_id, publisher, number, intended };
            let mut text = vec![b'.'; 40];
            header.write(&mut text);
            prop_assert_eq!(PayloadHeader::read(&text), Some(header));
            prop_assert!(text.iter().all(u8::is_ascii_graphic));
        }

        #[test]
        fn a_byte_outside_the_alphabet_is_rejected(at in 0_usize..PAYLOAD_HEADER_LEN, byte: u8) {
            prop_assume!(!(b'a'..=b'p').contains(&byte));
            let mut text = vec![b'a'; PAYLOAD_HEADER_LEN];
            text[at] = byte;
            prop_assert_eq!(PayloadHeader::read(&text), None);
        }
    }

    #[test]
    fn a_short_text_has_no_header() {
        assert_eq!(PayloadHeader::read(b"aaaa"), None);
        let mut short = *b"short";
        PayloadHeader {
            run_id: 1,
            publisher: 2,
            number: 3,
            intended: 4,
        }
        .write(&mut short);
        assert_eq!(&short, b"short");
    }
}
