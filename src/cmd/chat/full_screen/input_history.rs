//! What the user has entered before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::cmd::user_dir::user_dir;

/// The number of inputs that are kept.
const MAX_INPUTS: usize = 1_000;

/// How much of the file is read. Longer files are shortened.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The earlier inputs, and which of them is shown.
#[derive(Debug, Default)]
pub(super) struct InputHistory {
    inputs: Vec<String>,
    /// The shown input.
    shown: Option<usize>,
    /// The unfinished input that was there before.
    draft: String,
}

impl InputHistory {
    pub(super) const fn new(inputs: Vec<String>) -> Self {
        Self {
            inputs,
            shown: None,
            draft: String::new(),
        }
    }

    /// Adds an input. Returns whether it differs from the last one.
    pub(super) fn push(&mut self, input: &str) -> bool {
        self.shown = None;
        let is_new = self.inputs.last().is_none_or(|last| last != input);
        if is_new {
            self.inputs.push(input.to_owned());
            if self.inputs.len() > MAX_INPUTS {
                self.inputs.remove(0);
            }
        }
        is_new
    }

    /// The input before the shown one. `current` is what the input line contains.
    pub(super) fn older(&mut self, current: &str) -> Option<&str> {
        let index = self.shown.unwrap_or(self.inputs.len()).checked_sub(1)?;
        if self.shown.is_none() {
            current.clone_into(&mut self.draft);
        }
        self.shown = Some(index);
        self.inputs.get(index).map(String::as_str)
    }

    /// The input after the shown one, or the unfinished one.
    pub(super) fn newer(&mut self) -> Option<&str> {
        let index = self.shown? + 1;
        self.shown = (index < self.inputs.len()).then_some(index);
        Some(self.inputs.get(index).unwrap_or(&self.draft))
    }
}

/// The file with the earlier inputs, one per line. Several clients can append to it.
#[derive(Debug)]
pub(super) struct HistoryFile(PathBuf);

impl HistoryFile {
    /// `$XDG_STATE_HOME/chitchat/history`; `None` if there is no home directory.
    pub(super) fn from_env() -> Option<Self> {
        Some(Self(
            user_dir("XDG_STATE_HOME", ".local/state")?.join("chitchat/history"),
        ))
    }

    /// Reads the newest inputs. A file that is much longer than needed is shortened.
    pub(super) fn load(&self) -> io::Result<Vec<String>> {
        let mut file = match File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(MAX_FILE_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let kept = &lines[lines.len().saturating_sub(MAX_INPUTS)..];
        if lines.len() > 2 * MAX_INPUTS || len > MAX_FILE_BYTES {
            self.replace(kept)?;
        }
        Ok(kept.iter().map(|line| unescape(line)).collect())
    }

    pub(super) fn append(&self, input: &str) -> io::Result<()> {
        if let Some(directory) = self.0.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
        }
        // One write, so that the lines of several clients do not mix.
        private(OpenOptions::new().append(true), &self.0)?
            .write_all(format!("{}\n", escape(input)).as_bytes())
    }

    fn replace(&self, lines: &[&str]) -> io::Result<()> {
        let new = self.0.with_extension(format!("{}", std::process::id()));
        let mut file = private(OpenOptions::new().write(true).truncate(true), &new)?;
        for line in lines {
            writeln!(file, "{line}")?;
        }
        fs::rename(new, &self.0)
    }
}

/// Opens a file that only its owner can read.
fn private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.create(true).mode(0o600).open(path)
}

fn escape(input: &str) -> String {
    input.replace('\\', r"\\").replace('\n', r"\n")
}

fn unescape(line: &str) -> String {
    let mut input = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some('n') => input.push('\n'),
                Some(c) => input.push(c),
                None => {}
            },
            c => input.push(c),
        }
    }
    input
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn earlier_inputs_are_shown_and_the_draft_is_kept() {
        let mut history = InputHistory::new(vec!["one".into()]);
        assert!(history.push("two"));
        assert!(!history.push("two"));
        assert_eq!(history.newer(), None);
        assert_eq!(history.older("draft"), Some("two"));
        assert_eq!(history.older("two"), Some("one"));
        assert_eq!(history.older("one"), None);
        assert_eq!(history.newer(), Some("two"));
        assert_eq!(history.newer(), Some("draft"));
        assert_eq!(history.newer(), None);
        for input in 0..2 * MAX_INPUTS {
            history.push(&input.to_string());
        }
        assert_eq!(history.inputs.len(), MAX_INPUTS);
    }

    #[test]
    fn inputs_are_stored_for_their_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = HistoryFile(directory.path().join("chitchat/history"));
        assert_eq!(file.load().unwrap(), [""; 0]);
        let inputs = ["one", r"C:\new", "two\nlines"];
        for input in inputs {
            file.append(input).unwrap();
        }
        assert_eq!(file.load().unwrap(), inputs);
        let mode = fs::metadata(&file.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_long_file_is_shortened() {
        let directory = tempfile::tempdir().unwrap();
        let file = HistoryFile(directory.path().join("history"));
        let lines: Vec<String> = (0..3 * MAX_INPUTS).map(|line| line.to_string()).collect();
        fs::write(&file.0, lines.join("\n")).unwrap();
        assert_eq!(file.load().unwrap(), lines[2 * MAX_INPUTS..]);
        let stored = fs::read_to_string(&file.0).unwrap();
        assert_eq!(stored.lines().count(), MAX_INPUTS);
        assert_eq!(file.load().unwrap().len(), MAX_INPUTS);
    }
}
