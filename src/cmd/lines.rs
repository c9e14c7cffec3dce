//! Reads lines of limited length.

use std::io::{BufRead, Read as _};

use super::Failure;

/// Limit for the length of a line in bytes, which bounds memory use if the input has no line ends.
const MAX_LINE_BYTES: usize = 64 * 1024;

pub(super) struct Lines<R> {
    reader: R,
    number: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// 1 for the first line of the input.
    pub(super) number: u64,
    /// Without the trailing `\n`.
    pub(super) text: String,
}

impl<R: BufRead> Lines<R> {
    pub(super) const fn new(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    /// Returns the next line; `None` at the end of the input. Blocks.
    ///
    /// # Errors
    /// `Io` if the input cannot be read, `Data` if the line is too long or not UTF-8.
    pub(super) fn next(&mut self) -> Result<Option<Line>, Failure> {
        self.number += 1;
        let number = self.number;
        let mut line = Vec::new();
        // One byte more than the limit, to tell a line that is too long from one that just fits.
        let limit = MAX_LINE_BYTES as u64 + 1;
        (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut line)
            .map_err(|error| Failure::Io(format!("cannot read line {number} of the input: {error}")))?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(Failure::Data(format!(
                "line {number} of the input is longer than {MAX_LINE_BYTES} bytes"
            )));
        }
        match String::from_utf8(line) {
            Ok(text) => Ok(Some(Line { number, text })),
            Err(_) => Err(Failure::Data(format!("line {number} of the input is not UTF-8"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Result<Vec<(u64, String)>, Failure> {
        let mut lines = Lines::new(input);
        let mut read = Vec::new();
        while let Some(line) = lines.next()? {
            read.push((line.number, line.text));
        }
        Ok(read)
    }

    #[test]
    fn lines_are_numbered() {
        assert_eq!(
            read(b"one\n\nthree"),
            Ok(vec![
                (1, "one".to_owned()),
                (2, String::new()),
                (3, "three".to_owned())
            ])
        );
    }

    #[test]
    fn a_line_that_is_not_utf8_is_reported_by_number() {
        assert_eq!(
            read(b"one\n\xff\n"),
            Err(Failure::Data("line 2 of the input is not UTF-8".into()))
        );
    }

    #[test]
    fn the_length_of_a_line_is_limited() {
        let mut longest = vec![b'a'; MAX_LINE_BYTES];
        longest.push(b'\n');
        assert_eq!(read(&longest).unwrap().len(), 1);
        assert_eq!(read(&longest[..MAX_LINE_BYTES]).unwrap().len(), 1);
        longest.insert(0, b'a');
        assert!(matches!(read(&longest), Err(Failure::Data(_))));
    }
}
