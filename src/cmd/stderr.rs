//! Notes for the user, on stderr so that stdout contains only the command's output.

use std::fmt::Display;
use std::io::{self, Write as _};

/// Printed once per interruption, before the first attempt to reconnect.
pub(super) const RECONNECTING: &str = "reconnecting…";
pub(super) const RECONNECTED: &str = "reconnected";

/// Prints one line to stderr.
pub(super) fn note(text: impl Display) {
    // A closed stderr is not an error.
    drop(writeln!(io::stderr(), "chitchat: {text}"));
}
