//! Reads the lines to send.

use std::io::{self, BufRead};

use tokio::sync::mpsc;

use crate::cmd::Failure;
use crate::cmd::lines::Lines;
use crate::cmd::thread::spawn_thread;

/// Capacity of the queue between the reader's thread and the chat loop, in lines.
pub(super) const INPUT_QUEUE_LEN: usize = 64;

/// The command to leave. Ctrl-C and the end of the input do the same.
const LEAVE_COMMAND: &str = "/leave";

/// An item of the user's input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Line `number` (from 1), which is not empty.
    Line { number: u64, text: String },
    /// Leave the room.
    Leave,
    /// The input cannot be read any further.
    Failed(Failure),
}

impl Input {
    /// Parses line `number`; `None` if it is empty.
    pub(super) fn parse(number: u64, line: &str) -> Option<Self> {
        match line.trim() {
            "" => None,
            LEAVE_COMMAND => Some(Self::Leave),
            text => Some(Self::Line {
                number,
                text: text.to_owned(),
            }),
        }
    }
}

/// Reads stdin on a thread of its own, which ends with the input or the process. Its last item is [`Input::Leave`] or
/// [`Input::Failed`].
pub(super) fn read_stdin() -> Result<mpsc::Receiver<Input>, Failure> {
    let (sender, inputs) = mpsc::channel(INPUT_QUEUE_LEN);
    let read = move || {
        let mut lines = Lines::new(io::stdin().lock());
        loop {
            let input = next_input(&mut lines);
            let last = !matches!(input, Input::Line { .. });
            // A failed send means that the chat loop has ended.
            if sender.blocking_send(input).is_err() || last {
                return;
            }
        }
    };
    spawn_thread("stdin", read)?;
    Ok(inputs)
}

/// Reads up to the next line that is not empty.
fn next_input<R: BufRead>(lines: &mut Lines<R>) -> Input {
    loop {
        match lines.next() {
            Ok(None) => return Input::Leave,
            Ok(Some(line)) => {
                if let Some(input) = Input::parse(line.number, &line.text) {
                    return input;
                }
            }
            Err(failure) => return Input::Failed(failure),
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
            read.push(next_input(&mut lines));
            if !matches!(read.last(), Some(Input::Line { .. })) {
                return read;
            }
        }
    }

    fn line(number: u64, text: &str) -> Input {
        Input::Line {
            number,
            text: text.into(),
        }
    }

    #[test]
    fn lines_are_trimmed_and_empty_ones_skipped() {
        assert_eq!(
            read(b"one\r\n\n  \t \n two \nthree"),
            [line(1, "one"), line(4, "two"), line(5, "three"), Input::Leave]
        );
    }

    #[test]
    fn the_leave_command_ends_the_input() {
        assert_eq!(read(b"one\n /leave \ntwo\n"), [line(1, "one"), Input::Leave]);
        assert_eq!(read(b""), [Input::Leave]);
        assert_eq!(read(b"/leaves"), [line(1, "/leaves"), Input::Leave]);
    }

    #[test]
    fn a_line_that_is_not_utf8_ends_the_input() {
        assert!(matches!(
            read(b"one\n\xff\n").as_slice(),
            [Input::Line { .. }, Input::Failed(Failure::Data(_))]
        ));
    }
}
