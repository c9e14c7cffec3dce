//! The keys of a server, which are replaced while it runs, and the verification of tokens with them.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use ring::digest::{Digest, SHA256, digest};

use super::caller::{Anonymous, Caller, Identity};
use super::key_set::KeySet;
use super::token::{Requirements, TokenError, verify};
use crate::file_poller::FilePoller;
use crate::regular_file;
use crate::wall_clock::unix_time;

/// Which tokens a server accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthOptions {
    /// The keys: a JSON Web Key Set, or one public key in PEM.
    pub keys: PathBuf,
    /// The issuer that tokens must have (`iss`).
    pub issuer: String,
    /// The audience that tokens must be for (`aud`).
    pub audience: String,
    /// What callers without a token may do.
    pub anonymous: Anonymous,
}

/// Why the keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--auth-keys {} {reason}", .path.display())]
pub struct KeysError {
    /// The path of the file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Receives what happens to the keys.
pub trait Observer: Send + Sync + 'static {
    /// The file was read again, and its keys are in use.
    fn keys_reloaded(&self, count: usize);
    /// The file was read again and is not valid. The keys that were in use before still are.
    fn keys_reload_failed(&self, error: &dyn Error);
}

/// Verifies tokens with the keys of a server.
pub struct Authenticator {
    options: AuthOptions,
    keys: RwLock<Arc<KeySet>>,
    file: FilePoller<Result<Vec<u8>, KeysError>>,
}

/// The token that was verified last on a connection. Verifying takes up to a tenth of a millisecond, and most connections use one
/// token for all their calls.
#[derive(Default)]
pub struct CachedToken(Mutex<Option<Entry>>);

struct Entry {
    /// The digest of the token, so that memory does not hold the token itself.
    digest: Digest,
    /// The keys that it was verified with.
    keys: Arc<KeySet>,
    identity: Arc<Identity>,
}

impl Authenticator {
    /// Reads the keys.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is not valid.
    pub fn load(options: AuthOptions) -> Result<Self, KeysError> {
        let content = read(&options.keys)?;
        let keys = parse(&options.keys, &content)?;
        Ok(Self {
            options,
            keys: RwLock::new(Arc::new(keys)),
            file: FilePoller::new(Ok(content)),
        })
    }

    /// The caller that sends the value of an `authorization` header, or none. A token that is not `cached` is verified unless
    /// `check_rate` forbids that.
    ///
    /// # Errors
    ///
    /// There is no token, though the server requires one, or it is not valid.
    pub fn authenticate(
        &self,
        authorization: Option<&[u8]>,
        cached: &CachedToken,
        check_rate: impl FnOnce() -> Result<(), Duration>,
    ) -> Result<Caller, TokenError> {
        let Some(authorization) = authorization else {
            return match self.options.anonymous {
                Anonymous::None => Err(TokenError::Missing),
                anonymous => Ok(Caller::Anonymous(anonymous)),
            };
        };
        let token = bearer(authorization).ok_or(TokenError::Malformed(
            "the header does not begin with \"Bearer \"",
        ))?;
        self.verify(token, cached, check_rate).map(Caller::Identified)
    }

    fn verify(
        &self,
        token: &[u8],
        cached: &CachedToken,
        check_rate: impl FnOnce() -> Result<(), Duration>,
    ) -> Result<Arc<Identity>, TokenError> {
        let keys = Arc::clone(&self.keys.read());
        let digest = digest(&SHA256, token);
        let now = unix_time();
        let mut entry = cached.0.lock();
        if let Some(entry) = &*entry
            && entry.digest.as_ref() == digest.as_ref()
            && Arc::ptr_eq(&entry.keys, &keys)
        {
            return if entry.identity.expires_at > now {
                Ok(Arc::clone(&entry.identity))
            } else {
                Err(TokenError::Expired)
            };
        }
        check_rate().map_err(TokenError::TooManyInvalid)?;
        let requirements = Requirements {
            issuer: &self.options.issuer,
            audience: &self.options.audience,
            now,
        };
        let identity = Arc::new(verify(token, &keys, requirements)?);
        *entry = Some(Entry {
            digest,
            keys,
            identity: Arc::clone(&identity),
        });
        Ok(identity)
    }

    /// Makes [`Authenticator::watch`] read the file at once.
    pub fn request_reload(&self) {
        self.file.request();
    }

    /// Reads the file every two seconds and when a reload is requested. New calls need what it contains; if that is not valid they need
    /// what they needed before, and `observer` learns of it.
    pub async fn watch(self: Arc<Self>, observer: Arc<dyn Observer>) {
        let this = Arc::clone(&self);
        let reload = move |is_requested| this.reload(is_requested, &*observer);
        self.file.watch(reload).await;
    }

    fn reload(&self, is_requested: bool, observer: &dyn Observer) {
        let path = &self.options.keys;
        self.file.update(read(path), is_requested, |content| {
            let keys = match content {
                Ok(content) => parse(path, content),
                Err(error) => Err(error.clone()),
            };
            match keys {
                Ok(keys) => {
                    let count = keys.len();
                    *self.keys.write() = Arc::new(keys);
                    observer.keys_reloaded(count);
                }
                Err(error) => observer.keys_reload_failed(&error),
            }
        });
    }
}

/// The token of an `authorization` header (RFC 6750), whose scheme may be in upper or lower case.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

fn read(path: &Path) -> Result<Vec<u8>, KeysError> {
    regular_file::read(path).map_err(|reason| KeysError {
        path: path.to_owned(),
        reason,
    })
}

fn parse(path: &Path, content: &[u8]) -> Result<KeySet, KeysError> {
    KeySet::parse(content).map_err(|reason| KeysError {
        path: path.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
    use ring::hmac;
    use serde_json::{Value, json};

    use super::super::{Grant, Right, SigningKey};
    use super::*;
    use crate::domain::RoomName;

    const ISSUER: &str = "https://issuer.example";

    fn grant() -> Grant {
        Grant {
            issuer: ISSUER.into(),
            audience: "chat.example".into(),
            subject: "ada".into(),
            name: Some("Ada".into()),
            rooms: vec!["tea".into()],
            rights: vec!["read".into(), "write".into(), "fly".into()],
            expires_at: unix_time() + 60,
        }
    }

    fn claims() -> Value {
        json!({
            "iss": ISSUER, "aud": ["chat.example", "other.example"], "sub": "ada", "exp": unix_time() + 60,
            "rooms": ["tea"], "rights": ["read"],
        })
    }

    fn new_key() -> SigningKey {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap()
    }

    struct Fixture {
        directory: tempfile::TempDir,
        key: SigningKey,
        authenticator: Arc<Authenticator>,
        cached: CachedToken,
    }

    impl Fixture {
        fn new() -> Self {
            let key = new_key();
            let keys = json!({"keys": [key.public_jwk()]}).to_string();
            Self::with(key, &keys, Anonymous::None)
        }

        fn with(key: SigningKey, keys: &str, anonymous: Anonymous) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("keys");
            fs::write(&path, keys).unwrap();
            let options = AuthOptions {
                keys: path,
                issuer: ISSUER.into(),
                audience: "chat.example".into(),
                anonymous,
            };
            Self {
                directory,
                key,
                authenticator: Arc::new(Authenticator::load(options).unwrap()),
                cached: CachedToken::default(),
            }
        }

        fn write_keys(&self, keys: &str) {
            fs::write(self.directory.path().join("keys"), keys).unwrap();
        }

        fn check(&self, token: &str) -> Result<Caller, TokenError> {
            let authorization = format!("Bearer {token}");
            self.authenticator
                .authenticate(Some(authorization.as_bytes()), &self.cached, || Ok(()))
        }

        fn check_claims(&self, change: impl FnOnce(&mut Value)) -> Result<Caller, TokenError> {
            let mut claims = claims();
            change(&mut claims);
            let kid = &self.key.public_jwk()["kid"];
            self.check(&self.key.sign(&json!({"alg": "EdDSA", "kid": kid}), &claims))
        }
    }

    fn encode(part: &Value) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(part.to_string())
    }

    #[derive(Default)]
    struct Counts {
        reloaded: AtomicUsize,
        failed: AtomicUsize,
    }

    impl Observer for Counts {
        fn keys_reloaded(&self, _: usize) {
            self.reloaded.fetch_add(1, Ordering::Relaxed);
        }

        fn keys_reload_failed(&self, _: &dyn Error) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Counts {
        fn get(&self) -> [usize; 2] {
            [&self.reloaded, &self.failed].map(|count| count.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn a_valid_token_says_who_is_calling_and_what_it_grants() {
        let fixture = Fixture::new();
        let token = fixture.key.issue(&grant());
        for _ in 0..2 {
            let caller = fixture.check(&token).unwrap();
            let identity = caller.identity().unwrap();
            assert_eq!(&*identity.subject, "ada");
            assert_eq!(identity.name.as_ref().unwrap().as_str(), "Ada");
            let tea = RoomName::try_from("tea").unwrap();
            assert_eq!(caller.check(Right::Write, &tea), Ok(()));
            assert!(caller.check(Right::Create, &tea).is_err());
        }
        let authorization = format!("bearer  {token} ");
        let caller =
            fixture
                .authenticator
                .authenticate(Some(authorization.as_bytes()), &fixture.cached, || Ok(()));
        assert!(caller.is_ok());
    }

    #[test]
    fn a_token_that_grants_nothing_grants_nothing() {
        let fixture = Fixture::new();
        let caller = fixture
            .check_claims(|claims| {
                claims.as_object_mut().unwrap().remove("rooms");
                claims.as_object_mut().unwrap().remove("rights");
            })
            .unwrap();
        assert!(
            caller
                .check(Right::Read, &RoomName::try_from("tea").unwrap())
                .is_err()
        );
        assert!(caller.check_right(Right::Read).is_err());
    }

    #[test]
    fn each_bad_token_is_refused_for_its_own_reason() {
        let fixture = Fixture::new();
        let refused = |change: &dyn Fn(&mut Value)| fixture.check_claims(change).unwrap_err();
        let remove = |claim: &'static str| {
            move |claims: &mut Value| {
                claims.as_object_mut().unwrap().remove(claim);
            }
        };
        let is_malformed = |error| matches!(error, TokenError::Malformed(_));
        assert_eq!(
            refused(&|claims| claims["exp"] = json!(unix_time() - 60)),
            TokenError::Expired
        );
        assert_eq!(refused(&|claims| claims["exp"] = json!(1.5)), TokenError::Expired);
        assert!(is_malformed(refused(&|claims| claims["exp"] = json!("2100"))));
        assert!(is_malformed(refused(&|claims| claims["exp"] = json!(-1))));
        assert!(is_malformed(refused(&remove("exp"))));
        assert_eq!(
            refused(&|claims| claims["nbf"] = json!(unix_time() + 600)),
            TokenError::NotYetValid
        );
        assert_eq!(
            refused(&|claims| claims["aud"] = json!("other")),
            TokenError::Audience
        );
        assert_eq!(refused(&remove("aud")), TokenError::Audience);
        assert_eq!(
            refused(&|claims| claims["iss"] = json!("other")),
            TokenError::Issuer
        );
        assert_eq!(refused(&remove("iss")), TokenError::Issuer);
        assert!(is_malformed(refused(&remove("sub"))));
        assert!(is_malformed(refused(&|claims| claims["sub"] = json!("a\nb"))));
        assert!(is_malformed(refused(&|claims| claims["name"] = json!("a: b"))));
        assert!(is_malformed(refused(&|claims| claims["rooms"] = json!("tea"))));
        assert!(is_malformed(refused(
            &|claims| claims["rooms"] = json!(vec!["a"; 33])
        )));
        assert!(is_malformed(refused(&|claims| claims["rights"] = json!([1]))));
        let none = fixture
            .authenticator
            .authenticate(None, &fixture.cached, || Ok(()));
        assert_eq!(none, Err(TokenError::Missing));
        let basic = fixture
            .authenticator
            .authenticate(Some(b"Basic YTpi"), &fixture.cached, || Ok(()));
        assert!(is_malformed(basic.unwrap_err()));
        for text in ["", "a.b", "a.b.c", &"a".repeat(9_000), "..", "e30.e30."] {
            assert!(is_malformed(fixture.check(text).unwrap_err()), "{text}");
        }
    }

    #[test]
    fn a_signature_is_accepted_only_by_the_algorithm_of_the_key() {
        let fixture = Fixture::new();
        let kid = fixture.key.public_jwk()["kid"].clone();
        let sign = |header: Value| fixture.check(&fixture.key.sign(&header, &claims())).unwrap_err();
        for algorithm in ["none", "None", "HS256", "RS256", "ES256", ""] {
            assert_eq!(sign(json!({"alg": algorithm, "kid": kid})), TokenError::Algorithm);
        }
        assert_eq!(
            sign(json!({"alg": "EdDSA", "kid": "../../keys"})),
            TokenError::UnknownKey
        );
        assert!(matches!(
            sign(json!({"alg": "EdDSA", "kid": kid, "crit": ["exp"]})),
            TokenError::Malformed(_)
        ));
        let unsigned = format!("{}.{}.", encode(&json!({"alg": "none"})), encode(&claims()));
        assert_eq!(fixture.check(&unsigned).unwrap_err(), TokenError::Algorithm);
        // The public key, used as a shared secret.
        let secret = fixture.key.public_jwk()["x"].as_str().unwrap().to_owned();
        let message = format!(
            "{}.{}",
            encode(&json!({"alg": "HS256", "kid": kid})),
            encode(&claims())
        );
        let tag = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            message.as_bytes(),
        );
        let tag: Vec<u8> = tag.as_ref().to_vec();
        let forged = {
            use base64::Engine as _;
            format!(
                "{message}.{}",
                base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(tag)
            )
        };
        assert_eq!(fixture.check(&forged).unwrap_err(), TokenError::Algorithm);
    }

    #[test]
    fn a_token_of_another_key_or_with_changed_claims_is_refused() {
        let fixture = Fixture::new();
        let kid = fixture.key.public_jwk()["kid"].clone();
        let other = new_key();
        let forged = other.sign(&json!({"alg": "EdDSA", "kid": kid}), &claims());
        assert_eq!(fixture.check(&forged).unwrap_err(), TokenError::Signature);
        assert_eq!(
            fixture.check(&other.issue(&grant())).unwrap_err(),
            TokenError::UnknownKey
        );
        let token = fixture.key.issue(&grant());
        let parts: Vec<_> = token.split('.').collect();
        let mut raised = claims();
        raised["rights"] = json!(["moderate"]);
        let changed = [parts[0], &encode(&raised), parts[2]].join(".");
        assert_eq!(fixture.check(&changed).unwrap_err(), TokenError::Signature);
    }

    #[test]
    fn a_public_key_in_pem_and_a_shared_secret_verify_their_own_algorithm() {
        use base64::Engine as _;
        let encoder = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let spki = |pair: &KeyPair| {
            let der = base64::engine::general_purpose::STANDARD.encode(pair.subject_public_key_info());
            format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
        };
        let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = SigningKey::from_pem(ed25519.serialize_pem().as_bytes()).unwrap();
        let fixture = Fixture::with(key, &spki(&ed25519), Anonymous::None);
        assert!(fixture.check(&fixture.key.issue(&grant())).is_ok());

        let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let fixture = Fixture::with(new_key(), &spki(&p256), Anonymous::None);
        let message = format!("{}.{}", encode(&json!({"alg": "ES256"})), encode(&claims()));
        let der = p256.sign(message.as_bytes()).unwrap();
        // Tokens have the two numbers without their encoding in DER.
        let (_, numbers, _) = crate::der::element(&der).unwrap();
        let (_, r, rest) = crate::der::element(numbers).unwrap();
        let (_, s, _) = crate::der::element(rest).unwrap();
        let fixed = [r, s].map(|number| {
            let number = &number[number.len().saturating_sub(32)..];
            [&vec![0; 32 - number.len()], number].concat()
        });
        let token = format!("{message}.{}", encoder.encode(fixed.concat()));
        assert!(fixture.check(&token).is_ok());

        let secret = [7; 32];
        let keys = json!({"keys": [{"kty": "oct", "k": encoder.encode(secret)}]}).to_string();
        let fixture = Fixture::with(new_key(), &keys, Anonymous::None);
        let sign = |algorithm: &str| {
            let message = format!("{}.{}", encode(&json!({"alg": algorithm})), encode(&claims()));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), message.as_bytes());
            format!("{message}.{}", encoder.encode(tag))
        };
        assert!(fixture.check(&sign("HS256")).is_ok());
        assert_eq!(fixture.check(&sign("HS512")).unwrap_err(), TokenError::Algorithm);
    }

    #[test]
    fn without_a_token_a_caller_is_anonymous_but_a_bad_token_is_refused() {
        let key = new_key();
        let keys = json!({"keys": [key.public_jwk()]}).to_string();
        let fixture = Fixture::with(key, &keys, Anonymous::Read);
        let caller = fixture
            .authenticator
            .authenticate(None, &fixture.cached, || Ok(()));
        assert_eq!(caller, Ok(Caller::Anonymous(Anonymous::Read)));
        assert!(fixture.check("a.b.c").is_err());
    }

    #[test]
    fn changed_keys_replace_the_old_ones_and_invalid_ones_do_not() {
        let fixture = Fixture::new();
        let counts = Counts::default();
        let reload = |is_requested| fixture.authenticator.reload(is_requested, &counts);
        let token = fixture.key.issue(&grant());
        assert!(fixture.check(&token).is_ok());
        reload(false);
        assert_eq!(counts.get(), [0, 0]);
        fixture.write_keys("{");
        reload(false);
        reload(false);
        assert_eq!(counts.get(), [0, 1]);
        assert!(fixture.check(&token).is_ok());
        reload(true);
        assert_eq!(counts.get(), [0, 2]);
        let other = new_key();
        fixture.write_keys(&json!({"keys": [other.public_jwk()]}).to_string());
        reload(false);
        assert_eq!(counts.get(), [1, 2]);
        assert_eq!(fixture.check(&token).unwrap_err(), TokenError::UnknownKey);
        assert!(fixture.check(&other.issue(&grant())).is_ok());
    }
}
