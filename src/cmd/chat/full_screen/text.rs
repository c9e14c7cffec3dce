//! Texts as they are shown in the columns of a terminal.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation as _;
use unicode_width::UnicodeWidthStr as _;

use crate::client::escape;

/// What a tab is shown as: terminals do not agree on the columns of a tab that is not at the start of a line.
const TAB: &str = "    ";

/// Escapes what could control the terminal or hide on it. Line ends are kept, and tabs become spaces.
///
/// Joiners and variation selectors of emoji are removed, because terminals do not agree on the width of what they join: a
/// wrong width would shift the rest of the row.
pub(super) fn sanitize(raw: &str) -> String {
    let mut shown = String::with_capacity(raw.len());
    for (index, line) in raw.lines().enumerate() {
        if index > 0 {
            shown.push('\n');
        }
        let line = line.replace('\t', TAB);
        shown.extend(
            escape::text(&line)
                .chars()
                .filter(|c| !escape::is_unsafe_to_display(*c)),
        );
    }
    shown
}

/// Escapes a name, so that it is one line.
pub(super) fn sanitize_name(raw: &str) -> String {
    escape::name(raw).into_owned()
}

/// The number of columns that `text` takes.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// The longest start of `text` that takes at most `columns`.
pub(super) fn truncate(text: &str, columns: usize) -> &str {
    let mut used = 0;
    let end = text.grapheme_indices(true).find_map(|(at, grapheme)| {
        used += width(grapheme);
        (used > columns).then_some(at)
    });
    &text[..end.unwrap_or(text.len())]
}

/// Breaks a line into rows: the first of at most `first` columns, the others of at most `rest`, after a space where possible.
/// A row always has room for one character.
pub(super) fn wrap(line: &str, first: usize, rest: usize) -> Vec<Range<usize>> {
    let mut rows = Vec::new();
    let (mut start, mut used, mut limit) = (0, 0, first.max(2));
    // The end of the last space of the row.
    let mut space = None;
    let mut at = 0;
    while let Some(grapheme) = line[at..].graphemes(true).next() {
        let (end, columns) = (at + grapheme.len(), width(grapheme));
        if used > 0 && used + columns > limit {
            // A space that does not fit is not shown.
            at = if grapheme == " " { end } else { space.unwrap_or(at) };
            rows.push(start..at);
            (start, used, limit, space) = (at, 0, rest.max(2), None);
            continue;
        }
        used += columns;
        at = end;
        if grapheme == " " {
            space = Some(end);
        }
    }
    rows.push(start..line.len());
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(line: &str, first: usize, rest: usize) -> Vec<&str> {
        wrap(line, first, rest)
            .into_iter()
            .map(|row| &line[row])
            .collect()
    }

    #[test]
    fn lines_break_after_spaces() {
        assert_eq!(rows("", 5, 5), [""]);
        assert_eq!(rows("hello", 5, 5), ["hello"]);
        assert_eq!(rows("hello you", 5, 5), ["hello ", "you"]);
        assert_eq!(rows("a bc def", 5, 4), ["a bc ", "def"]);
        assert_eq!(rows("abcdefgh", 3, 4), ["abc", "defg", "h"]);
        assert_eq!(rows("山田山", 5, 5), ["山田", "山"]);
    }

    #[test]
    fn what_could_control_the_terminal_is_escaped() {
        assert_eq!(
            sanitize("a\u{1b}[2J\tb\nc\u{202e}"),
            "a\\u{1b}[2J    b\nc\\u{202e}"
        );
        assert_eq!(
            sanitize("👩\u{200d}💻 ❤\u{fe0f} a\u{200d}b"),
            "👩💻 ❤ a\\u{200d}b"
        );
        assert_eq!(sanitize_name("E\nve\u{200d}"), "E\\nve\\u{200d}");
    }

    #[test]
    fn a_text_is_cut_at_a_column() {
        assert_eq!(truncate("山田", 3), "山");
        assert_eq!(truncate("Ada", 3), "Ada");
        assert_eq!(truncate("Ada", 0), "");
    }

    proptest! {
        #[test]
        fn rows_fit_and_lose_nothing(line in "[a-c 山é👩]{0,60}", first in 2_usize..20, rest in 2_usize..20) {
            let rows = rows(&line, first, rest);
            prop_assert_eq!(rows.concat(), line.as_str());
            for (index, row) in rows.iter().enumerate() {
                let limit = if index == 0 { first } else { rest };
                prop_assert!(width(row.trim_end()) <= limit, "{:?}", rows);
            }
        }
    }
}
