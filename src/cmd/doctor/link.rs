//! The links of the chain from a message to its telemetry.

use serde_json::{Value, json};

use crate::client::escape;

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// The link works, with the evidence.
    Ok(String),
    /// The link does not work.
    Broken {
        /// The evidence that it is broken.
        seen: String,
        remedy: String,
    },
    /// The link was not checked, with the reason.
    Skipped(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: &'static str,
    pub(super) state: State,
}

impl Link {
    pub(super) fn ok(name: &'static str, seen: impl Into<String>) -> Self {
        let state = State::Ok(seen.into());
        Self { name, state }
    }

    pub(super) fn broken(name: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (seen, remedy) = (seen.into(), remedy.into());
        Self {
            name,
            state: State::Broken { seen, remedy },
        }
    }

    pub(super) fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        let state = State::Skipped(why.into());
        Self { name, state }
    }

    pub(super) const fn is_broken(&self) -> bool {
        matches!(self.state, State::Broken { .. })
    }

    /// The output as text; a broken link has its remedy on a second line. The evidence may contain text of a server.
    pub(super) fn line(&self) -> String {
        let name = self.name;
        match &self.state {
            State::Ok(seen) => format!("ok       {name:<10}  {}", escape::text(seen)),
            State::Broken { seen, remedy } => {
                format!("broken   {name:<10}  {}\n{:21}{remedy}", escape::text(seen), "")
            }
            State::Skipped(why) => format!("skipped  {name:<10}  {why}"),
        }
    }

    pub(super) fn object(&self) -> Value {
        let name = self.name;
        match &self.state {
            State::Ok(seen) => json!({ "link": name, "state": "ok", "detail": seen }),
            State::Broken { seen, remedy } => {
                json!({ "link": name, "state": "broken", "detail": seen, "remedy": remedy })
            }
            State::Skipped(why) => json!({ "link": name, "state": "skipped", "detail": why }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_server_is_escaped() {
        let hostile = "\u{1b}[2Jok\nok";
        let shown = r"\u{1b}[2Jok\nok";
        let broken = Link::broken("server", hostile, "ask").line();
        assert_eq!(broken, format!("broken   server      {shown}\n{:21}ask", ""));
        assert_eq!(
            Link::ok("tempo", hostile).line(),
            format!("ok       tempo       {shown}")
        );
    }
}
