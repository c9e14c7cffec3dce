//! Fuzz target: tokens, and files with keys.

use std::sync::LazyLock;

use serde_json::json;

use super::key_set::KeySet;
use super::signing_key::SigningKey;
use super::token::{Requirements, verify};

/// A key whose secret everybody may know.
const KEY: &[u8] = b"-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";

static SIGNING_KEY: LazyLock<SigningKey> =
    LazyLock::new(|| SigningKey::from_pem(KEY).expect("an Ed25519 key"));

static KEYS: LazyLock<KeySet> = LazyLock::new(|| {
    let keys = json!({"keys": [SIGNING_KEY.public_jwk()]}).to_string();
    KeySet::parse(keys.as_bytes()).expect("a key set")
});

/// The first byte selects what the others are: a token, a header and claims that are signed, or a file with keys.
pub(crate) fn fuzz_tokens(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let requirements = Requirements {
        issuer: "i",
        audience: "a",
        now: 1_000,
    };
    match kind {
        b't' => {
            let accepted = verify(bytes, &KEYS, requirements);
            assert!(accepted.is_err(), "nobody can guess a signature");
        }
        b'c' => {
            let text = String::from_utf8_lossy(bytes);
            let (header, claims) = text.split_once('\n').unwrap_or(("{}", &text));
            let (Ok(header), Ok(claims)) = (serde_json::from_str(header), serde_json::from_str(claims))
            else {
                return;
            };
            let token = SIGNING_KEY.sign(&header, &claims);
            if let Ok(identity) = verify(token.as_bytes(), &KEYS, requirements) {
                assert!(identity.expires_at > requirements.now && !identity.subject.is_empty());
                assert_eq!(claims["iss"], "i");
            }
        }
        _ => {
            if let Ok(keys) = KeySet::parse(bytes) {
                let token = SIGNING_KEY.sign(&json!({"alg": "EdDSA"}), &json!({}));
                assert!(keys.len() > 0 && verify(token.as_bytes(), &keys, requirements).is_err());
            }
        }
    }
}
