//! The token with which a client authenticates itself.

use std::fmt;
use std::path::{Path, PathBuf};

use http::HeaderValue;

/// Maximum length of a token, in bytes: servers do not accept longer headers.
const MAX_LEN: usize = 16 * 1024;

/// Where the token comes from that the client sends with each call, as `authorization: Bearer`.
///
/// Whoever can read the connection can use the token: send it to other machines over TLS only.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// This file. It is read for each connection, so that a renewed token is used when the client reconnects.
    File(PathBuf),
    /// This text.
    Value(String),
}

impl fmt::Debug for Token {
    /// Without the token itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Value(_) => f.write_str("Value(..)"),
        }
    }
}

impl Token {
    /// The value of the `authorization` header. The error is a whole sentence, without the token.
    pub(super) async fn authorization(&self) -> Result<HeaderValue, String> {
        match self {
            Self::Value(token) => {
                header(token).ok_or_else(|| "the token is not a word of ASCII characters".into())
            }
            Self::File(path) => {
                let path = path.clone();
                let reading = tokio::task::spawn_blocking(move || read(&path));
                reading.await.unwrap_or_else(|error| Err(error.to_string()))
            }
        }
    }
}

fn read(path: &Path) -> Result<HeaderValue, String> {
    let content = std::fs::read_to_string(path)
        .map_err(|error| format!("the token file {} cannot be read: {error}", path.display()))?;
    header(&content).ok_or_else(|| {
        format!(
            "the file {} does not contain a token: one word of ASCII characters",
            path.display()
        )
    })
}

fn header(token: &str) -> Option<HeaderValue> {
    let token = token.trim();
    if token.is_empty() || token.len() > MAX_LEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    // Neither printed nor put into tables for compression.
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_read_from_its_file_without_the_newline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "a.b.c\n").unwrap();
        let value = Token::File(path.clone()).authorization().await.unwrap();
        assert_eq!(value, "Bearer a.b.c");
        assert!(value.is_sensitive());
        for content in ["", "two words", "é"] {
            std::fs::write(&path, content).unwrap();
            let error = Token::File(path.clone()).authorization().await.unwrap_err();
            assert!(error.contains("does not contain a token"), "{error}");
        }
        let missing = Token::File(directory.path().join("none")).authorization().await;
        assert!(missing.unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn a_token_is_not_printed() {
        assert_eq!(format!("{:?}", Token::Value("secret".into())), "Value(..)");
    }
}
