//! Which buffers the HPACK table of a connection keeps (RFC 7541), and how many header fields there are.
//!
//! h2 keeps pseudo-headers, such as `:path`, as slices of the buffers that they were read into. A client that adds one to the table with each
//! request, and lets much else follow it, makes the table of 4 KiB keep megabytes, as long as the connection lasts.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// How many entries the table can have: each takes 32 bytes and its name and value, of 4 KiB in all.
const MAX_ENTRIES: usize = 4_096 / 32;

/// How many fields a client may send in a block before they count as excessive: more than any client sends.
const MAX_FIELDS: usize = 64;

/// The size of the buffers that h2 reads into, in bytes. Longer frames have buffers of their own.
pub(super) const READ_BUFFER: usize = 8 * 1024;

/// Flags of a HEADERS frame, of which the first is one of a CONTINUATION frame, too.
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The length of the priority in a HEADERS frame.
const PRIORITY_LEN: usize = 5;

/// The first index of the dynamic table.
const FIRST_DYNAMIC: usize = 62;

/// The pseudo-headers of requests in the static table.
const PSEUDO_HEADERS: RangeInclusive<usize> = 1..=7;

/// Follows the header blocks of a connection.
#[derive(Debug, Default)]
pub(super) struct HeaderTable {
    /// What each entry keeps, in bytes, from the newest to the oldest: 0 if it is not a pseudo-header. Entries are removed later than from
    /// the table, because their sizes are not known.
    entries: VecDeque<usize>,
    kept: usize,
    /// How many bytes the connection had sent with the frame of the newest pseudo-header.
    newest_at: u64,
    /// The fields that were read so far, and those of them that were too many for one block.
    fields: usize,
    excess: usize,
    /// How many there were before the current block.
    fields_before: usize,
    /// Whether a block has begun and not ended.
    is_open: bool,
    frame: Frame,
    state: State,
    field: Field,
}

/// The frame that is being read.
#[derive(Debug, Default)]
struct Frame {
    /// Where its payload begins, in bytes from the beginning of the connection.
    offset: u64,
    len: usize,
    /// Whether the next byte is the length of the padding.
    is_padded: bool,
    /// How much of the priority is missing.
    priority: usize,
    /// How much is missing of the frame, without padding.
    missing: usize,
}

/// A header field with a literal value.
#[derive(Debug, Default)]
struct Field {
    is_added: bool,
    is_pseudo: bool,
    /// How many strings follow: the value, and the name before it if that is a literal, too.
    strings: usize,
}

/// What the next byte of a header block is.
#[derive(Debug, Clone, Copy, Default)]
enum State {
    /// The first of a field.
    #[default]
    Field,
    /// A further one of an integer.
    Integer { of: IntegerOf, value: usize, shift: u32 },
    /// The first of a string.
    String,
    /// One of so many that are left of a string.
    Characters { left: usize, is_first_of_name: bool },
}

#[derive(Debug, Clone, Copy)]
enum IntegerOf {
    /// An index of a whole field, or the size of the table, which counts as a field.
    Other,
    /// The index of a name.
    Name,
    /// The length of a string.
    Length,
}

impl HeaderTable {
    /// What the table keeps, in bytes.
    pub(super) const fn kept(&self) -> usize {
        self.kept
    }

    /// How many fields were read so far.
    pub(super) const fn fields(&self) -> usize {
        self.fields
    }

    /// How many of them came after the first [`MAX_FIELDS`] of a block.
    pub(super) const fn excess(&self) -> usize {
        self.excess
    }

    /// Whether a block has begun and not ended.
    pub(super) const fn is_open(&self) -> bool {
        self.is_open
    }

    /// Begins a HEADERS frame with a payload of `len` bytes from `offset` on, in bytes from the beginning of the connection.
    pub(super) fn begin_headers(&mut self, flags: u8, len: usize, offset: u64) {
        (self.state, self.field) = (State::Field, Field::default());
        self.fields_before = self.fields;
        self.begin_continuation(flags, len, offset);
        self.frame.is_padded = flags & PADDED != 0;
        self.frame.priority = if flags & PRIORITY != 0 { PRIORITY_LEN } else { 0 };
    }

    /// As [`Self::begin_headers`], with a CONTINUATION frame.
    pub(super) fn begin_continuation(&mut self, flags: u8, len: usize, offset: u64) {
        self.is_open = flags & END_HEADERS == 0;
        self.frame = Frame {
            offset,
            len,
            missing: len,
            ..Frame::default()
        };
    }

    /// Reads the next bytes of the payload of the frame that has begun.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while let Some(&byte) = bytes.first().filter(|_| self.frame.missing > 0) {
            let len = match self.state {
                _ if self.frame.is_padded => {
                    self.frame.is_padded = false;
                    self.frame.missing = self.frame.missing.saturating_sub(byte.into()).max(1);
                    1
                }
                _ if self.frame.priority > 0 => {
                    self.frame.priority -= 1;
                    1
                }
                State::Characters {
                    left,
                    is_first_of_name: false,
                } => {
                    let len = left.min(bytes.len()).min(self.frame.missing);
                    self.read_characters(left - len);
                    len
                }
                _ => {
                    self.read_byte(byte);
                    1
                }
            };
            self.frame.missing -= len;
            bytes = &bytes[len..];
        }
    }

    fn read_byte(&mut self, byte: u8) {
        match self.state {
            State::Field => {
                self.field.is_added = byte & 0xc0 == 0x40;
                let (prefix, of) = match byte {
                    0x80.. => (7, IntegerOf::Other),
                    0x40.. => (6, IntegerOf::Name),
                    0x20.. => (5, IntegerOf::Other),
                    _ => (4, IntegerOf::Name),
                };
                self.begin_integer(byte, prefix, of);
            }
            State::Integer { of, value, shift } => {
                // Longer ones are invalid, and h2 closes the connection.
                let part = usize::from(byte & 0x7f).checked_shl(shift).unwrap_or_default();
                let value = value.saturating_add(part);
                if byte & 0x80 == 0 {
                    self.end_integer(of, value);
                } else {
                    self.state = State::Integer {
                        of,
                        value,
                        shift: (shift + 7).min(35),
                    };
                }
            }
            State::String => self.begin_integer(byte, 7, IntegerOf::Length),
            State::Characters { left, .. } => {
                // A colon as it is, or in Huffman code.
                self.field.is_pseudo = byte == b':' || byte & 0xfe == 0xb8;
                self.read_characters(left - 1);
            }
        }
    }

    fn begin_integer(&mut self, byte: u8, prefix: u32, of: IntegerOf) {
        let mask = u8::MAX >> (8 - prefix);
        let value = usize::from(byte & mask);
        if byte & mask < mask {
            self.end_integer(of, value);
        } else {
            self.state = State::Integer { of, value, shift: 0 };
        }
    }

    fn end_integer(&mut self, of: IntegerOf, value: usize) {
        match of {
            IntegerOf::Other => self.end_field(),
            IntegerOf::Name => {
                let dynamic = value.checked_sub(FIRST_DYNAMIC);
                let dynamic = dynamic.and_then(|index| self.entries.get(index));
                self.field.is_pseudo =
                    PSEUDO_HEADERS.contains(&value) || dynamic.is_some_and(|kept| *kept > 0);
                self.field.strings = if value == 0 { 2 } else { 1 };
                self.state = State::String;
            }
            IntegerOf::Length if value == 0 => self.read_characters(0),
            IntegerOf::Length => {
                self.state = State::Characters {
                    left: value,
                    is_first_of_name: self.field.strings == 2,
                };
            }
        }
    }

    /// Continues after characters of a string, of which so many are left.
    fn read_characters(&mut self, left: usize) {
        if left > 0 {
            self.state = State::Characters {
                left,
                is_first_of_name: false,
            };
            return;
        }
        self.field.strings = self.field.strings.saturating_sub(1);
        if self.field.strings > 0 {
            self.state = State::String;
            return;
        }
        self.end_field();
        if self.field.is_added {
            self.add();
        }
    }

    fn end_field(&mut self) {
        self.fields += 1;
        self.excess += usize::from(self.fields - self.fields_before > MAX_FIELDS);
        self.state = State::Field;
    }

    fn add(&mut self) {
        let mut kept = 0;
        if self.field.is_pseudo {
            let Frame { offset, len, .. } = self.frame;
            let since = usize::try_from(offset.saturating_sub(self.newest_at)).unwrap_or(usize::MAX);
            kept = since.min(READ_BUFFER) + len;
            self.newest_at = offset + len as u64;
        }
        self.entries.push_front(kept);
        self.kept += kept;
        if self.entries.len() > MAX_ENTRIES {
            self.kept -= self.entries.pop_back().unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The literal field `:path: /x` with this representation and index of the name.
    fn path(representation: u8) -> Vec<u8> {
        vec![representation, 2, b'/', b'x']
    }

    /// Reads a block in one frame, byte by byte, after `before` bytes of other frames.
    fn read(table: &mut HeaderTable, offset: &mut u64, before: u64, flags: u8, payload: &[u8]) {
        *offset += before;
        table.begin_headers(flags, payload.len(), *offset);
        for byte in payload {
            table.read(&[*byte]);
        }
        *offset += payload.len() as u64;
    }

    #[test]
    fn pseudo_headers_that_are_added_keep_what_was_received_since_the_last_one() {
        let (mut table, mut offset) = (HeaderTable::default(), 0);
        read(&mut table, &mut offset, 100, 0, &path(0x44));
        assert_eq!(table.kept(), 104);
        // Not added; indexed; an ordinary one; the size of the table.
        let others = [
            &path(0x04)[..],
            &path(0x14),
            &[0x84, 0xff, 0],
            &path(0x6f),
            &[0x3f, 0xe1, 31],
        ];
        read(&mut table, &mut offset, 0, 0, &others.concat());
        assert_eq!(table.kept(), 104);
        // With the name of the second newest entry, which is one.
        read(&mut table, &mut offset, 1_000_000, 0, &[0x7f, 0, 1, b'/']);
        assert_eq!(table.kept(), 104 + READ_BUFFER + 4);
        // With a literal name, and one in Huffman code; with an ordinary one.
        for (name, is_pseudo) in [(&b":path"[..], true), (&[0xb9, 0x80], true), (b"path", false)] {
            let before = table.kept();
            let field = [&[0x40, u8::try_from(name.len()).unwrap()], name, &[1, b'/']].concat();
            read(&mut table, &mut offset, 100, 0, &field);
            assert_eq!(table.kept() > before, is_pseudo, "{name:?}");
        }
    }

    #[test]
    fn padding_and_priority_are_not_part_of_a_block() {
        let (mut table, mut offset) = (HeaderTable::default(), 0);
        let padding = path(0x44).repeat(2);
        let payload = [&[8][..], &[0x44; 5], &path(0x44), &padding].concat();
        read(&mut table, &mut offset, 0, PADDED | PRIORITY, &payload);
        assert_eq!(table.entries.len(), 1);
        // A block in two frames.
        let block = path(0x44);
        read(&mut table, &mut offset, 0, 0, &block[..3]);
        assert_eq!(table.entries.len(), 1);
        table.begin_continuation(0, 1, offset);
        table.read(&block[3..]);
        assert_eq!((table.entries.len(), table.fields()), (2, 2));
    }

    #[test]
    fn fields_are_counted_by_block() {
        let (mut table, mut offset) = (HeaderTable::default(), 0);
        for fields in [MAX_FIELDS, MAX_FIELDS + 3, 1] {
            read(&mut table, &mut offset, 0, 0, &vec![0x82; fields]);
        }
        assert_eq!((table.fields(), table.excess()), (2 * MAX_FIELDS + 4, 3));
    }

    #[test]
    fn old_entries_are_forgotten() {
        let (mut table, mut offset) = (HeaderTable::default(), 0);
        for _ in 0..1_000 {
            read(&mut table, &mut offset, 1_000_000, 0, &path(0x44));
        }
        assert_eq!(table.kept(), MAX_ENTRIES * (READ_BUFFER + 4));
        for _ in 0..MAX_ENTRIES {
            read(&mut table, &mut offset, 0, 0, &path(0x6f));
        }
        assert_eq!(table.kept(), 0);
    }
}
