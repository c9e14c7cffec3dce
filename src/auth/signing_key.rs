//! Makes tokens to try out a server with, and for tests.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

/// An Ed25519 key that signs tokens.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    id: String,
}

/// What a token is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The issuer.
    pub issuer: String,
    /// The server that the token is for.
    pub audience: String,
    /// Who the token is for.
    pub subject: String,
    /// The only name that they may have; `None` = any.
    pub name: Option<String>,
    /// Patterns of rooms.
    pub rooms: Vec<String>,
    /// Rights, by name.
    pub rights: Vec<String>,
    /// When the token expires, in seconds since 1970.
    pub expires_at: u64,
}

impl SigningKey {
    /// Reads a private key in PEM.
    ///
    /// # Errors
    ///
    /// What is wrong, as the end of a sentence that begins with the file.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem)
            .map_err(|_| "contains no private key; expected \"-----BEGIN PRIVATE KEY-----\"")?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_pkcs8_der())
            .map_err(|_| "contains a key that is not an Ed25519 key")?;
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        // RFC 7638.
        let thumbprint = digest(
            &SHA256,
            format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#).as_bytes(),
        );
        let id = URL_SAFE_NO_PAD.encode(thumbprint);
        Ok(Self { pair, id })
    }

    /// The public key as a JSON Web Key.
    #[must_use]
    pub fn public_jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.id, "x": x})
    }

    /// A token.
    #[must_use]
    pub fn issue(&self, grant: &Grant) -> String {
        let mut claims = json!({
            "iss": grant.issuer,
            "aud": grant.audience,
            "sub": grant.subject,
            "exp": grant.expires_at,
            "rooms": grant.rooms,
            "rights": grant.rights,
        });
        if let Some(name) = &grant.name {
            claims["name"] = name.as_str().into();
        }
        self.sign(&json!({"alg": "EdDSA", "typ": "JWT", "kid": self.id}), &claims)
    }

    /// A token with this header and these claims.
    #[must_use]
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let message = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}
