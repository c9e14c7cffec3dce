//! What is to be said.

use std::io::{self, BufRead};
use std::thread;

use tokio::sync::mpsc;

use crate::cmd::Failure;
use crate::cmd::lines::Lines;

/// How many lines are read ahead.
pub(super) const READ_AHEAD: usize = 64;

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
            let input = next(&mut lines);
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

/// What the next line that asks for something asks for.
fn next<R: BufRead>(lines: &mut Lines<R>) -> Input {
    loop {
        match lines.next() {
            Ok(None) => return Input::Leave,
            Ok(Some(line)) => {
                if let Some(input) = Input::of_line(line.number, &line.text) {
                    return input;
                }
            }
            Err(failure) => return Input::Broken(failure),
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
            read.push(next(&mut lines));
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
    fn what_is_not_text_ends_the_input() {
        assert!(matches!(
            read(b"one\n\xff\n").as_slice(),
            [Input::Say { .. }, Input::Broken(Failure::Data(_))]
        ));
    }
}
