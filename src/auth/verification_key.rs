//! A key that verifies signatures of tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{hmac, signature};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use serde_json::Value;

use crate::der::element;

/// A key of the kind that its variant says, which accepts signatures of this kind only.
///
/// Has no `Debug`, because one kind is secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum KeyMaterial {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    /// An uncompressed point.
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
    /// A secret that the issuer shares with the server.
    Hmac(Vec<u8>),
}

/// A key, and the one algorithm that it is for if its file says so.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct VerificationKey {
    material: KeyMaterial,
    algorithm: Option<String>,
}

/// Why a signature is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignatureError {
    /// The key is not for this algorithm.
    Algorithm,
    /// The signature is not by this key.
    Invalid,
}

/// The least length of a shared secret, in bytes, as RFC 7518 requires.
const MIN_SECRET: usize = 32;

/// The lengths of an RSA modulus, in bytes, for which the cryptography has an implementation.
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

impl VerificationKey {
    /// Reads a public key from X.509's form of it.
    pub(super) fn from_spki(spki: &SubjectPublicKeyInfoDer<'_>) -> Result<Self, String> {
        let material = parse_spki(spki.as_ref()).ok_or(
            "contains a public key that is neither RSA of 2048 to 8192 bits, EC P-256, EC P-384 nor Ed25519",
        )?;
        Ok(Self {
            material,
            algorithm: None,
        })
    }

    /// Reads a JSON Web Key. `None` if it is of a kind that no token can be signed with here, or is for something else.
    pub(super) fn from_jwk(jwk: &Value) -> Result<Option<Self>, String> {
        let text = |member: &str| jwk.get(member).and_then(Value::as_str);
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return Ok(None);
        }
        let kind = text("kty").ok_or("contains a key without \"kty\"")?;
        if kind != "oct" && jwk.get("d").is_some() {
            return Err("contains a private key; the server needs only the public one".into());
        }
        let bytes = |member: &str| {
            text(member)
                .and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded).ok())
                .ok_or_else(|| format!("contains a key without a valid {member:?}"))
        };
        let point = |length: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() == length && y.len() == length {
                Ok([&[4][..], &x, &y].concat())
            } else {
                Err(format!("contains a point that does not have {length} bytes"))
            }
        };
        let material = match (kind, text("crv")) {
            ("RSA", _) => KeyMaterial::rsa(&bytes("n")?, &bytes("e")?)
                .ok_or("contains an RSA key that does not have 2048 to 8192 bits")?,
            ("EC", Some("P-256")) => KeyMaterial::P256(point(32)?),
            ("EC", Some("P-384")) => KeyMaterial::P384(point(48)?),
            ("OKP", Some("Ed25519")) => KeyMaterial::Ed25519(bytes("x")?),
            ("oct", _) => KeyMaterial::Hmac(bytes("k")?),
            _ => return Ok(None),
        };
        match &material {
            KeyMaterial::Hmac(secret) if secret.len() < MIN_SECRET => {
                return Err(format!("contains a secret of less than {MIN_SECRET} bytes"));
            }
            KeyMaterial::Ed25519(key) if key.len() != 32 => {
                return Err("contains an Ed25519 key that does not have 32 bytes".into());
            }
            _ => {}
        }
        let algorithm = text("alg").map(str::to_owned);
        if algorithm.as_ref().is_some_and(|name| !material.accepts(name)) {
            return Ok(None);
        }
        Ok(Some(Self { material, algorithm }))
    }

    /// Verifies a signature of `message` by the algorithm that the token names.
    pub(super) fn verify(
        &self,
        algorithm: &str,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        if self.algorithm.as_ref().is_some_and(|own| own != algorithm) || !self.material.accepts(algorithm) {
            return Err(SignatureError::Algorithm);
        }
        let unparsed = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            signature::UnparsedPublicKey::new(algorithm, key).verify(message, signature)
        };
        let verified = match &self.material {
            KeyMaterial::Rsa { modulus, exponent } => {
                let parameters = rsa_parameters(algorithm).ok_or(SignatureError::Algorithm)?;
                let key = signature::RsaPublicKeyComponents {
                    n: modulus,
                    e: exponent,
                };
                key.verify(parameters, message, signature)
            }
            KeyMaterial::P256(point) => unparsed(&signature::ECDSA_P256_SHA256_FIXED, point),
            KeyMaterial::P384(point) => unparsed(&signature::ECDSA_P384_SHA384_FIXED, point),
            KeyMaterial::Ed25519(key) => unparsed(&signature::ED25519, key),
            KeyMaterial::Hmac(secret) => {
                // Compares in constant time.
                hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), message, signature)
            }
        };
        verified.map_err(|_| SignatureError::Invalid)
    }
}

impl KeyMaterial {
    fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let without_zeros = |number: &[u8]| {
            let start = number.iter().position(|byte| *byte != 0)?;
            Some(number[start..].to_vec())
        };
        let (modulus, exponent) = (without_zeros(modulus)?, without_zeros(exponent)?);
        RSA_MODULUS
            .contains(&modulus.len())
            .then_some(Self::Rsa { modulus, exponent })
    }

    /// Whether a key of this kind may verify signatures by this algorithm.
    fn accepts(&self, algorithm: &str) -> bool {
        match self {
            Self::Rsa { .. } => rsa_parameters(algorithm).is_some(),
            Self::P256(_) => algorithm == "ES256",
            Self::P384(_) => algorithm == "ES384",
            Self::Ed25519(_) => matches!(algorithm, "EdDSA" | "Ed25519"),
            Self::Hmac(_) => algorithm == "HS256",
        }
    }
}

fn rsa_parameters(algorithm: &str) -> Option<&'static signature::RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// The object identifiers of the kinds of keys (RFC 8410, RFC 5480, RFC 8017).
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// RFC 5280, section 4.1.2.7: the algorithm with its parameters, and the key as a bit string.
fn parse_spki(spki: &[u8]) -> Option<KeyMaterial> {
    let (_, spki, _) = element(spki)?;
    let (_, algorithm, rest) = element(spki)?;
    let (_, bits, _) = element(rest)?;
    // The first byte is the number of unused bits, of which keys have none.
    let (&0, key) = bits.split_first()? else {
        return None;
    };
    let (_, kind, parameters) = element(algorithm)?;
    let curve = || element(parameters).map(|(_, curve, _)| curve);
    match kind {
        OID_ED25519 if key.len() == 32 => Some(KeyMaterial::Ed25519(key.to_vec())),
        OID_EC if curve()? == OID_P256 && key.len() == 65 => Some(KeyMaterial::P256(key.to_vec())),
        OID_EC if curve()? == OID_P384 && key.len() == 97 => Some(KeyMaterial::P384(key.to_vec())),
        OID_RSA => {
            let (_, key, _) = element(key)?;
            let (_, modulus, rest) = element(key)?;
            let (_, exponent, _) = element(rest)?;
            KeyMaterial::rsa(modulus, exponent)
        }
        _ => None,
    }
}
