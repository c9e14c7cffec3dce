//! What a command says beside its output.

use std::io::{self, Write as _};

/// Said once an interruption, however many attempts it takes.
pub(super) const RECONNECTING: &str = "reconnecting…";
/// Said when it is over.
pub(super) const RECONNECTED: &str = "reconnected";

/// A line on stderr.
pub(super) fn aside(text: impl std::fmt::Display) {
    // A closed stderr leaves nobody to tell.
    drop(writeln!(io::stderr(), "chitchat: {text}"));
}
