//! What is to be said.

use std::io::{self, BufRead, Read as _};
use std::thread;

use tokio::sync::mpsc;

use crate::cmd::Failure;

/// How many lines are read ahead.
pub(super) const READ_AHEAD: usize = 64;

/// The longest line of the input, in bytes. Far longer than any text that a server takes; it bounds the memory for an
/// input without line ends.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// The command that leaves, as Ctrl-C and the end of the input do.
const LEAVE: &str = "/leave";

/// What the input asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// To say `text`, which was on line `number` (from 1) and is not empty.
    Say { number: u64, text: String },
    /// To leave.
    Leave,
    /// The input cannot be read on.
    Broken(Failure),
}

impl Input {
    /// What line `number` asks for, if anything.
    pub(super) fn of_line(number: u64, line: &str) -> Option<Self> {
        match line.trim() {
            "" => None,
            LEAVE => Some(Self::Leave),
            text => Some(Self::Say {
                number,
                text: text.to_owned(),
            }),
        }
    }
}

/// Reads stdin on a thread of its own, which ends with the input or with the process. The last thing it sends is
/// [`Input::Leave`] or [`Input::Broken`].
pub(super) fn from_stdin() -> Result<mpsc::Receiver<Input>, Failure> {
    let (sender, inputs) = mpsc::channel(READ_AHEAD);
    let read = move || {
        let mut lines = Lines::new(io::stdin().lock());
        loop {
            let input = lines.next();
            let last = !matches!(input, Input::Say { .. });
            // A failed send means that nobody wants lines any more.
            if sender.blocking_send(input).is_err() || last {
                return;
            }
        }
    };
    spawn("stdin", read)?;
    Ok(inputs)
}

/// Starts a thread. Its handle need not be kept.
pub(super) fn spawn(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, Failure> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Failure::Software(format!("cannot start a thread: {error}")))
}

struct Lines<R> {
    reader: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    const fn new(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    fn next(&mut self) -> Input {
        loop {
            match self.read_line() {
                Ok(None) => return Input::Leave,
                Ok(Some(line)) => {
                    if let Some(input) = Input::of_line(self.number, &line) {
                        return input;
                    }
                }
                Err(failure) => return Input::Broken(failure),
            }
        }
    }

    fn read_line(&mut self) -> Result<Option<String>, Failure> {
        self.number += 1;
        let number = self.number;
        let mut line = Vec::new();
        // One byte more than allowed tells a line that is too long from one that just fits.
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
            Ok(line) => Ok(Some(line)),
            Err(_) => Err(Failure::Data(format!("line {number} of the input is not UTF-8"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Vec<Input> {
        let mut lines = Lines::new(input);
        let mut read = Vec::new();
        loop {
            read.push(lines.next());
            if !matches!(read.last(), Some(Input::Say { .. })) {
                return read;
            }
        }
    }

    fn say(number: u64, text: &str) -> Input {
        Input::Say {
            number,
            text: text.into(),
        }
    }

    #[test]
    fn lines_are_said_without_what_surrounds_them_and_empty_ones_not_at_all() {
        assert_eq!(
            read(b"one\r\n\n  \t \n two \nthree"),
            [say(1, "one"), say(4, "two"), say(5, "three"), Input::Leave]
        );
    }

    #[test]
    fn leaving_ends_the_input() {
        assert_eq!(read(b"one\n /leave \ntwo\n"), [say(1, "one"), Input::Leave]);
        assert_eq!(read(b""), [Input::Leave]);
        assert_eq!(read(b"/leaves"), [say(1, "/leaves"), Input::Leave]);
    }

    #[test]
    fn what_is_not_text_is_named_by_its_line() {
        let Some(Input::Broken(failure)) = read(b"one\n\xff\n").pop() else {
            unreachable!("broken")
        };
        assert_eq!(failure, Failure::Data("line 2 of the input is not UTF-8".into()));
    }

    #[test]
    fn a_line_may_be_long_but_not_endless() {
        let mut longest = vec![b'a'; MAX_LINE_BYTES];
        longest.push(b'\n');
        assert_eq!(read(&longest).len(), 2);
        assert_eq!(read(&longest[..MAX_LINE_BYTES]).len(), 2);
        longest.insert(0, b'a');
        assert!(matches!(
            read(&longest).as_slice(),
            [Input::Broken(Failure::Data(_))]
        ));
    }
}
