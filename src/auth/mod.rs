//! Who is calling: verifies the tokens that clients send, and says what they grant.
//!
//! A token is a JSON Web Token (RFC 7519) with a signature (RFC 7515) by one of the server's keys. A key has its kind, and
//! accepts only signatures of that kind, whatever the token says of itself. What a token does not grant is refused.

mod authenticator;
mod caller;
#[cfg(any(feature = "fuzzing", test))]
mod fuzzing;
mod key_set;
mod signing_key;
mod token;
mod verification_key;

pub use authenticator::{AuthOptions, Authenticator, CachedToken, KeysError, Observer};
pub use caller::{Anonymous, Caller, Denied, Identity, Right, Rights, RoomPatterns};
#[cfg(any(feature = "fuzzing", test))]
pub(crate) use fuzzing::fuzz_tokens;
pub use signing_key::{Grant, SigningKey};
pub(crate) use token::MAX_SUBJECT;
pub use token::TokenError;

/// Maximum length of a token, in bytes. Beyond it the headers of a request come close to their own limit.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
