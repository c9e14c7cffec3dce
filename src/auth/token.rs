//! Verifies a token.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::MAX_TOKEN_BYTES;
use super::caller::{Identity, Right, RoomPatterns};
use super::key_set::KeySet;
use super::verification_key::SignatureError;
use crate::domain::Name;

/// How much the clock of the issuer may differ from the server's, in seconds.
const LEEWAY: u64 = 10;

/// Maximum length of a subject, in bytes.
pub(crate) const MAX_SUBJECT: usize = 256;

/// Why a token is not accepted. The texts contain nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none.
    #[error("this server needs a token; send it as \"authorization: Bearer ...\"")]
    Missing,
    /// It is not a token, or not one for this server.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// The algorithm of the signature is not one that the key is for.
    #[error("the token is signed with an algorithm that its key is not for")]
    Algorithm,
    /// The server does not have the key.
    #[error("the token is signed with a key that this server does not have")]
    UnknownKey,
    /// The signature is not by the key, or the token was changed.
    #[error("the signature of the token is not valid")]
    Signature,
    /// It is too old.
    #[error("the token has expired; get a new one")]
    Expired,
    /// It is not valid yet.
    #[error("the token is not valid yet; do the clocks agree?")]
    NotYetValid,
    /// It is for another service.
    #[error("the token is for another audience than this server")]
    Audience,
    /// It is from another issuer.
    #[error("the token is from another issuer than this server trusts")]
    Issuer,
    /// It was not verified, because too many before it were not valid. Wait for this time before the next one.
    #[error("too many tokens from your address were not valid; wait before the next one")]
    TooManyInvalid(Duration),
}

/// What a server requires of tokens beside the signature.
#[derive(Clone, Copy)]
pub(super) struct Requirements<'a> {
    pub(super) issuer: &'a str,
    pub(super) audience: &'a str,
    /// In seconds since 1970.
    pub(super) now: u64,
}

/// Verifies a token and returns what it says.
pub(super) fn verify(
    token: &[u8],
    keys: &KeySet,
    requirements: Requirements<'_>,
) -> Result<Identity, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed("it is longer than 8 KiB"));
    }
    let token = std::str::from_utf8(token).map_err(|_| TokenError::Malformed("it is not text"))?;
    let not_three = TokenError::Malformed("it does not consist of three parts");
    let (message, signature) = token.rsplit_once('.').ok_or(not_three)?;
    let (header, claims) = message.split_once('.').ok_or(not_three)?;
    let header = object(header).ok_or(TokenError::Malformed("its header is not a JSON object"))?;
    let algorithm = header
        .get("alg")
        .and_then(Value::as_str)
        .ok_or(TokenError::Malformed("its header has no \"alg\""))?;
    if header.get("crit").is_some() {
        return Err(TokenError::Malformed(
            "its header has extensions that must be understood",
        ));
    }
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.as_str()),
        Some(_) => return Err(TokenError::Malformed("its \"kid\" is not a text")),
    };
    if algorithm.eq_ignore_ascii_case("none") {
        return Err(TokenError::Algorithm);
    }
    let key = keys.find(key_id).ok_or(TokenError::UnknownKey)?;
    let signature = URL_SAFE_NO_PAD.decode(signature);
    let signature = signature.map_err(|_| TokenError::Malformed("its signature is not base64url"))?;
    key.verify(algorithm, message.as_bytes(), &signature)
        .map_err(|error| match error {
            SignatureError::Algorithm => TokenError::Algorithm,
            SignatureError::Invalid => TokenError::Signature,
        })?;
    let claims = object(claims).ok_or(TokenError::Malformed("its claims are not a JSON object"))?;
    identity(&claims, requirements)
}

fn identity(claims: &Value, requirements: Requirements<'_>) -> Result<Identity, TokenError> {
    let time = |claim: &'static str, error| match claims.get(claim) {
        None => Ok(None),
        Some(time) => seconds(time).map(Some).ok_or(TokenError::Malformed(error)),
    };
    if claims.get("iss").and_then(Value::as_str) != Some(requirements.issuer) {
        return Err(TokenError::Issuer);
    }
    let is_audience = |audience: &Value| audience.as_str() == Some(requirements.audience);
    let is_for_us = match claims.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(is_audience),
        Some(audience) => is_audience(audience),
        None => false,
    };
    if !is_for_us {
        return Err(TokenError::Audience);
    }
    let expires_at = time("exp", "its \"exp\" is not a number of seconds")?
        .ok_or(TokenError::Malformed("it has no \"exp\""))?
        .saturating_add(LEEWAY);
    if expires_at <= requirements.now {
        return Err(TokenError::Expired);
    }
    let not_before = time("nbf", "its \"nbf\" is not a number of seconds")?;
    if not_before.is_some_and(|time| time > requirements.now.saturating_add(LEEWAY)) {
        return Err(TokenError::NotYetValid);
    }
    let subject = claims.get("sub").and_then(Value::as_str);
    let subject = subject
        .filter(|subject| !subject.is_empty() && subject.len() <= MAX_SUBJECT)
        .filter(|subject| !subject.contains(char::is_control))
        .ok_or(TokenError::Malformed(
            "its \"sub\" is not a text of 1 to 256 bytes",
        ))?;
    let name = match claims.get("name") {
        None => None,
        Some(Value::String(name)) => {
            let name = Name::try_from(name.as_str());
            Some(name.map_err(|_| TokenError::Malformed("its \"name\" is not a name that rooms accept"))?)
        }
        Some(_) => return Err(TokenError::Malformed("its \"name\" is not a text")),
    };
    let rooms = texts(claims.get("rooms")).and_then(RoomPatterns::new);
    let rooms = rooms.ok_or(TokenError::Malformed(
        "its \"rooms\" are not up to 32 texts of 1 to 64 characters",
    ))?;
    let rights = texts(claims.get("rights")).ok_or(TokenError::Malformed("its \"rights\" are not texts"))?;
    Ok(Identity {
        subject: Arc::from(subject),
        name,
        rooms,
        // Rights that this server does not know grant nothing.
        rights: rights.into_iter().filter_map(Right::from_name).collect(),
        expires_at,
    })
}

/// Decodes a part of a token that is a JSON object.
fn object(part: &str) -> Option<Value> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&bytes).ok().filter(Value::is_object)
}

/// A time that is not before 1970.
fn seconds(time: &Value) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the conversion saturates"
    )]
    time.as_u64().or_else(|| {
        time.as_f64()
            .filter(|seconds| *seconds >= 0.0)
            .map(|seconds| seconds as u64)
    })
}

/// The texts of an array, which is empty if the claim is missing.
fn texts(claim: Option<&Value>) -> Option<Vec<&str>> {
    match claim {
        None => Some(Vec::new()),
        Some(claim) => claim.as_array()?.iter().map(Value::as_str).collect(),
    }
}
