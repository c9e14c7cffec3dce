//! The input line.

use unicode_segmentation::UnicodeSegmentation as _;

use super::text::width;
use crate::client::escape;

/// The longest input in bytes.
pub(super) const MAX_INPUT_BYTES: usize = 64 * 1024;

/// An input of one line or more, with a cursor. The keys are those of readline.
#[derive(Debug, Default)]
pub(super) struct LineEditor {
    text: String,
    /// A byte offset between two graphemes.
    cursor: usize,
    /// What was deleted last, for [`yank`](Self::yank).
    killed: String,
}

impl LineEditor {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn before_cursor(&self) -> &str {
        &self.text[..self.cursor]
    }

    pub(super) fn set(&mut self, text: &str) {
        text.clone_into(&mut self.text);
        self.cursor = self.text.len();
    }

    /// Empties the input and returns it.
    pub(super) fn take(&mut self) -> String {
        self.cursor = 0;
        std::mem::take(&mut self.text)
    }

    /// Inserts `text`. Returns false and changes nothing if the input would be too long.
    #[must_use]
    pub(super) fn insert(&mut self, text: &str) -> bool {
        let fits = self.text.len() + text.len() <= MAX_INPUT_BYTES;
        if fits {
            self.text.insert_str(self.cursor, text);
            self.cursor += text.len();
        }
        fits
    }

    /// Replaces what is between `start` and the cursor.
    pub(super) fn replace_from(&mut self, start: usize, text: &str) {
        self.text.replace_range(start..self.cursor, text);
        self.cursor = start + text.len();
    }

    fn previous(&self) -> usize {
        let before = self.before_cursor().grapheme_indices(true).next_back();
        before.map_or(0, |(at, _)| at)
    }

    fn next(&self) -> usize {
        let after = self.text[self.cursor..].graphemes(true).next();
        self.cursor + after.map_or(0, str::len)
    }

    fn word_start(&self) -> usize {
        let before = self.before_cursor();
        let mut words = before.split_word_bound_indices();
        let word = words.rfind(|(_, word)| !word.trim().is_empty());
        word.map_or(0, |(at, _)| at)
    }

    fn word_end(&self) -> usize {
        let mut words = self.text[self.cursor..].split_word_bound_indices();
        let word = words.find(|(_, word)| !word.trim().is_empty());
        word.map_or(self.text.len(), |(at, word)| self.cursor + at + word.len())
    }

    fn line_start(&self) -> usize {
        self.before_cursor().rfind('\n').map_or(0, |at| at + 1)
    }

    fn line_end(&self) -> usize {
        let after = self.text[self.cursor..].find('\n');
        after.map_or(self.text.len(), |at| self.cursor + at)
    }

    pub(super) fn left(&mut self) {
        self.cursor = self.previous();
    }

    pub(super) fn right(&mut self) {
        self.cursor = self.next();
    }

    pub(super) fn word_left(&mut self) {
        self.cursor = self.word_start();
    }

    pub(super) fn word_right(&mut self) {
        self.cursor = self.word_end();
    }

    pub(super) fn home(&mut self) {
        self.cursor = self.line_start();
    }

    pub(super) fn end(&mut self) {
        self.cursor = self.line_end();
    }

    /// Moves to the line above; false if there is none.
    pub(super) fn up(&mut self) -> bool {
        let start = self.line_start();
        if start == 0 {
            return false;
        }
        let column = self.text[start..self.cursor].graphemes(true).count();
        self.cursor = start - 1;
        self.move_to_column(column);
        true
    }

    /// Moves to the line below; false if there is none.
    pub(super) fn down(&mut self) -> bool {
        let end = self.line_end();
        if end == self.text.len() {
            return false;
        }
        let column = self.text[self.line_start()..self.cursor].graphemes(true).count();
        self.cursor = end + 1;
        self.move_to_column(column);
        true
    }

    fn move_to_column(&mut self, column: usize) {
        let (start, end) = (self.line_start(), self.line_end());
        let mut graphemes = self.text[start..end].grapheme_indices(true);
        self.cursor = graphemes.nth(column).map_or(end, |(at, _)| start + at);
    }

    pub(super) fn backspace(&mut self) {
        let start = self.previous();
        self.replace_from(start, "");
    }

    pub(super) fn delete(&mut self) {
        let end = self.next();
        self.text.replace_range(self.cursor..end, "");
    }

    fn kill(&mut self, start: usize, end: usize) {
        if start < end {
            self.killed = self.text.drain(start..end).collect();
            self.cursor = start;
        }
    }

    pub(super) fn kill_word(&mut self) {
        self.kill(self.word_start(), self.cursor);
    }

    pub(super) fn kill_to_start(&mut self) {
        self.kill(self.line_start(), self.cursor);
    }

    pub(super) fn kill_to_end(&mut self) {
        self.kill(self.cursor, self.line_end());
    }

    pub(super) fn kill_all(&mut self) {
        self.kill(0, self.text.len());
    }

    pub(super) fn yank(&mut self) {
        // It was deleted from an input that fitted; if it does not fit any more, nothing changes.
        let killed = std::mem::take(&mut self.killed);
        let _fits = self.insert(&killed);
        self.killed = killed;
    }

    /// The rows of the input, and the cursor's row and column.
    pub(super) fn rows(&self, columns: usize) -> (Vec<String>, (usize, usize)) {
        let columns = columns.max(8);
        let mut rows = vec![String::new()];
        let mut used = 0;
        let mut cursor = (0, 0);
        for (at, grapheme) in self.text.grapheme_indices(true) {
            let shown = match grapheme {
                "\n" | "\r\n" => {
                    if at == self.cursor {
                        cursor = (rows.len() - 1, used);
                    }
                    rows.push(String::new());
                    used = 0;
                    continue;
                }
                "\t" => " ".into(),
                _ if grapheme.chars().any(escape::is_unsafe_to_display) => escape::text(grapheme),
                _ => grapheme.into(),
            };
            for part in shown.graphemes(true) {
                if used + width(part) > columns {
                    rows.push(String::new());
                    used = 0;
                }
                if at == self.cursor && cursor == (0, 0) {
                    cursor = (rows.len() - 1, used);
                }
                if let Some(row) = rows.last_mut() {
                    row.push_str(part);
                }
                used += width(part);
            }
        }
        if self.cursor == self.text.len() {
            if used >= columns {
                rows.push(String::new());
                used = 0;
            }
            cursor = (rows.len() - 1, used);
        }
        (rows, cursor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn editor(text: &str) -> LineEditor {
        let mut editor = LineEditor::default();
        editor.set(text);
        editor
    }

    #[test]
    fn graphemes_are_edited_as_a_whole() {
        let mut editor = editor("a👩\u{200d}💻e\u{301}");
        editor.backspace();
        editor.backspace();
        assert_eq!(editor.text(), "a");
        assert!(editor.insert("山田"));
        editor.left();
        assert!(editor.insert("b"));
        assert_eq!(editor.text(), "a山b田");
        editor.home();
        editor.delete();
        assert_eq!(editor.text(), "山b田");
    }

    #[test]
    fn words_and_lines_are_killed_and_yanked() {
        let mut editor = editor("one two  three");
        editor.kill_word();
        assert_eq!(editor.text(), "one two  ");
        editor.kill_word();
        assert_eq!(editor.text(), "one ");
        editor.yank();
        assert_eq!(editor.text(), "one two  ");
        editor.word_left();
        editor.kill_to_end();
        editor.home();
        editor.yank();
        assert_eq!(editor.text(), "two  one ");
        editor.word_right();
        editor.kill_to_start();
        assert_eq!(editor.text(), " ");
    }

    #[test]
    fn the_cursor_moves_between_lines() {
        let mut editor = editor("long line\nab");
        assert!(!editor.down());
        assert!(editor.up());
        assert_eq!(editor.before_cursor(), "lo");
        assert!(!editor.up());
        editor.end();
        assert!(editor.down());
        assert_eq!(editor.before_cursor(), "long line\nab");
        assert_eq!(editor.rows(80), (vec!["long line".into(), "ab".into()], (1, 2)));
    }

    #[test]
    fn a_long_line_takes_several_rows() {
        let mut editor = editor("01234567");
        assert_eq!(editor.rows(8), (vec!["01234567".into(), String::new()], (1, 0)));
        editor.left();
        assert_eq!(editor.rows(8), (vec!["01234567".into()], (0, 7)));
        editor.set("\u{1b}x");
        assert_eq!(editor.rows(20), (vec![r"\u{1b}x".into()], (0, 7)));
    }

    #[test]
    fn the_input_is_bounded() {
        let mut editor = editor(&"a".repeat(MAX_INPUT_BYTES));
        assert!(!editor.insert("b"));
        assert_eq!(editor.text().len(), MAX_INPUT_BYTES);
    }

    proptest! {
        #[test]
        fn every_sequence_of_keys_keeps_the_cursor_in_the_text(keys in prop::collection::vec(0_u8..18, 0..80)) {
            let mut editor = LineEditor::default();
            for key in keys {
                match key {
                    0 => assert!(editor.insert("é👩\u{200d}💻")),
                    1 => assert!(editor.insert("a b\n")),
                    2 => editor.left(),
                    3 => editor.right(),
                    4 => editor.word_left(),
                    5 => editor.word_right(),
                    6 => editor.home(),
                    7 => editor.end(),
                    8 => { editor.up(); }
                    9 => { editor.down(); }
                    10 => editor.backspace(),
                    11 => editor.delete(),
                    12 => editor.kill_word(),
                    13 => editor.kill_to_start(),
                    14 => editor.kill_to_end(),
                    15 => editor.yank(),
                    16 => editor.replace_from(0, "x\u{301}"),
                    _ => editor.kill_all(),
                }
                prop_assert!(editor.text().is_char_boundary(editor.before_cursor().len()));
                let (rows, (row, column)) = editor.rows(10);
                prop_assert!(row < rows.len() && column <= 10);
            }
        }
    }
}
