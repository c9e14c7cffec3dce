//! Small files that operators name, such as keys.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

/// Maximum size of such a file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a file. Something that is not a file, such as a pipe, is refused, because reading it could wait for ever.
///
/// # Errors
///
/// What is wrong with the file, as the end of a sentence that begins with its path.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is not a file".into());
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    // It may grow in the meantime.
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(unreadable)?;
    if content.len() as u64 > MAX_BYTES {
        return Err(format!("has more than {MAX_BYTES} bytes"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_files_of_a_limited_size_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let length = usize::try_from(MAX_BYTES).unwrap();
        fs::write(path("largest"), vec![b'x'; length]).unwrap();
        fs::write(path("larger"), vec![b'x'; length + 1]).unwrap();
        // Nobody writes to it.
        mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
        assert_eq!(read(&path("largest")).map(|content| content.len()), Ok(length));
        for (name, expected) in [
            ("larger", "has more than"),
            ("pipe", "is not a file"),
            ("", "is not a file"),
            ("none", "cannot be read"),
        ] {
            let error = read(&path(name)).unwrap_err();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}
