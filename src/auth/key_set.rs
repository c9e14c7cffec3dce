//! The keys of a server.

use std::collections::HashMap;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use super::verification_key::VerificationKey;

/// Maximum number of keys in a set.
const MAX_KEYS: usize = 64;

/// Maximum length of the id of a key, in bytes.
const MAX_KEY_ID: usize = 256;

/// The keys that tokens may be signed with.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct KeySet {
    by_id: HashMap<String, VerificationKey>,
    /// The key that has no id, as in a PEM file.
    without_id: Option<VerificationKey>,
}

impl KeySet {
    /// Reads the content of a file: a JSON Web Key Set (RFC 7517), or one public key in PEM. The error continues a sentence that
    /// begins with the file.
    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        if content.trim_ascii_start().starts_with(b"{") {
            Self::from_jwks(content)
        } else {
            Self::from_pem(content)
        }
    }

    fn from_pem(content: &[u8]) -> Result<Self, String> {
        let expected = "expected a JSON Web Key Set, or one \"-----BEGIN PUBLIC KEY-----\"";
        let mut keys = SubjectPublicKeyInfoDer::pem_slice_iter(content);
        let key = match keys.next() {
            Some(Ok(key)) => key,
            Some(Err(error)) => return Err(format!("is not a valid PEM file: {error}; {expected}")),
            None => return Err(format!("contains no key; {expected}")),
        };
        if keys.next().is_some() {
            return Err(
                "contains more than one public key; several need a JSON Web Key Set, with ids".into(),
            );
        }
        Ok(Self {
            by_id: HashMap::new(),
            without_id: Some(VerificationKey::from_spki(&key)?),
        })
    }

    fn from_jwks(content: &[u8]) -> Result<Self, String> {
        let set: Value =
            serde_json::from_slice(content).map_err(|error| format!("is not valid JSON: {error}"))?;
        let keys = set.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or("is not a JSON Web Key Set: it has no array \"keys\"")?;
        if keys.len() > MAX_KEYS {
            return Err(format!(
                "contains {} keys; at most {MAX_KEYS} are allowed",
                keys.len()
            ));
        }
        let mut parsed = Self {
            by_id: HashMap::new(),
            without_id: None,
        };
        for jwk in keys {
            let Some(key) = VerificationKey::from_jwk(jwk)? else {
                continue;
            };
            let previous = match jwk.get("kid").map(Value::as_str) {
                None => parsed.without_id.replace(key),
                Some(Some(id)) if id.len() <= MAX_KEY_ID => parsed.by_id.insert(id.to_owned(), key),
                Some(_) => {
                    return Err(format!(
                        "contains a \"kid\" that is not a text of up to {MAX_KEY_ID} bytes"
                    ));
                }
            };
            if previous.is_some() {
                return Err("contains two keys with the same \"kid\", or two without one".into());
            }
        }
        if parsed.len() == 0 {
            return Err("contains no key for signatures of a kind that is supported (RSA, EC P-256 and P-384, Ed25519, oct)".into());
        }
        Ok(parsed)
    }

    /// The number of keys.
    pub(super) fn len(&self) -> usize {
        self.by_id.len() + usize::from(self.without_id.is_some())
    }

    /// The key for a token that names `id`. A token that names none needs a set of one key.
    pub(super) fn find(&self, id: Option<&str>) -> Option<&VerificationKey> {
        match id {
            Some(id) => self.by_id.get(id).or(self.without_id.as_ref()),
            None if self.len() == 1 => self.by_id.values().next().or(self.without_id.as_ref()),
            None => self.without_id.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(content: &str) -> String {
        KeySet::parse(content.as_bytes()).err().expect("an error")
    }

    #[test]
    fn a_file_without_a_usable_key_is_rejected_with_the_reason() {
        assert!(error("").starts_with("contains no key; expected a JSON Web Key Set"));
        assert!(error("{").starts_with("is not valid JSON"));
        assert!(error("{}").contains("no array \"keys\""));
        assert!(error(r#"{"keys":[]}"#).starts_with("contains no key for signatures"));
        assert!(error(r#"{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}"#).contains("less than 32 bytes"));
        assert!(
            error(r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}]}"#).contains("private key")
        );
        assert!(error(r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#).contains("2048 to 8192 bits"));
        let many = vec!["{}"; MAX_KEYS + 1].join(",");
        assert!(error(&format!("{{\"keys\":[{many}]}}")).contains("at most 64"));
    }

    #[test]
    fn keys_of_other_kinds_are_left_out() {
        let secret = r#"{"kty":"oct","kid":"a","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#;
        let others = r#"{"kty":"EC","crv":"P-521"},{"kty":"RSA","use":"enc"},{"kty":"new"}"#;
        let set = KeySet::parse(format!("{{\"keys\":[{others},{secret}]}}").as_bytes());
        let set = set.expect("a set");
        assert_eq!(set.len(), 1);
        assert!(set.find(Some("a")).is_some() && set.find(None).is_some());
        assert!(set.find(Some("../../etc/passwd")).is_none());
        let twice = format!("{{\"keys\":[{secret},{secret}]}}");
        assert!(error(&twice).contains("same \"kid\""));
    }
}
