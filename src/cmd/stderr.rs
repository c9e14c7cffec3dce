//! Notes for the user, on stderr so that stdout contains only the command's output.

use std::fmt::Display;
use std::io::{self, Write as _};

/// Printed once per interruption, before the first attempt to reconnect.
pub(super) const RECONNECTING: &str = "reconnecting…";
pub(super) const RECONNECTED: &str = "reconnected";

/// Prints one line to stderr.
pub(super) fn note(text: impl Display) {
    // One write, so that a log line on the same terminal cannot interrupt it. A closed or full stderr is not an error.
    let line = format!("chitchat: {text}\n");
    drop(io::stderr().write_all(line.as_bytes()));
}
