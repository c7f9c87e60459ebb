//! The public keys of an issuer, as a JSON Web Key Set (RFC 7517) has them, and the signatures that
//! they verify.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;

/// The minimum size of an RSA key, in bits. ring verifies with no larger key than the maximum.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;
/// The maximum number of keys in a set. A token without a key's name may be compared with each.
const KEYS_MAX: usize = 100;

/// An algorithm of signatures. Each has a public key, so that a server cannot sign, and neither can
/// a caller that knows the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA over P-256 with SHA-256.
    Es256,
    /// ECDSA over P-384 with SHA-384.
    Es384,
    /// `EdDSA` over Ed25519.
    EdDsa,
}

impl JwtAlgorithm {
    /// All algorithms.
    pub const ALL: [JwtAlgorithm; 9] = [
        JwtAlgorithm::Rs256,
        JwtAlgorithm::Rs384,
        JwtAlgorithm::Rs512,
        JwtAlgorithm::Ps256,
        JwtAlgorithm::Ps384,
        JwtAlgorithm::Ps512,
        JwtAlgorithm::Es256,
        JwtAlgorithm::Es384,
        JwtAlgorithm::EdDsa,
    ];
    /// The algorithms that are accepted unless others are named.
    pub const DEFAULT: [JwtAlgorithm; 3] = [JwtAlgorithm::Rs256, JwtAlgorithm::Es256, JwtAlgorithm::EdDsa];

    /// Returns the name in the header of a JWT.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            JwtAlgorithm::Rs256 => "RS256",
            JwtAlgorithm::Rs384 => "RS384",
            JwtAlgorithm::Rs512 => "RS512",
            JwtAlgorithm::Ps256 => "PS256",
            JwtAlgorithm::Ps384 => "PS384",
            JwtAlgorithm::Ps512 => "PS512",
            JwtAlgorithm::Es256 => "ES256",
            JwtAlgorithm::Es384 => "ES384",
            JwtAlgorithm::EdDsa => "EdDSA",
        }
    }

    /// Returns the algorithm of a name. Returns `None` for `none`, and for those with a secret key.
    #[must_use]
    pub fn from_name(name: &str) -> Option<JwtAlgorithm> {
        JwtAlgorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// The public keys of an issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtKeySet {
    keys: Vec<JwtKey>,
    refused: Vec<String>,
}

/// A public key of an issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct JwtKey {
    id: Option<String>,
    /// The only algorithm that the key is for; `None` for all that its kind can verify.
    algorithm: Option<JwtAlgorithm>,
    public: PublicKey,
}

/// The numbers of a public key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PublicKey {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// The uncompressed point.
    P256(Vec<u8>),
    /// The uncompressed point.
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// An error for a text that is not a set with a usable key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtKeySetError {
    /// The text is not a JSON Web Key Set.
    #[error("it is not a JSON Web Key Set ({{\"keys\": […]}}): {0}")]
    Malformed(String),
    /// There are too many keys.
    #[error("it has {0} keys; the maximum is {max}", max = KEYS_MAX)]
    Size(usize),
    /// No key can verify a signature. The text has the refused keys with their reasons.
    #[error("it has no key for signatures that laredo verifies (RSA, P-256, P-384, Ed25519){0}")]
    Unusable(String),
}

/// The keys in JSON. Each is read alone, so that an unknown one does not hide the others.
#[derive(Deserialize)]
struct KeySetJson {
    keys: Vec<serde_json::Value>,
}

/// A key in JSON.
#[derive(Deserialize)]
struct KeyJson {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl JwtKeySet {
    /// Reads a JSON Web Key Set. Keys for other purposes are left out.
    ///
    /// # Errors
    /// Returns an error if the text is not a set, or if no key in it can be used.
    pub fn parse(json: &[u8]) -> Result<JwtKeySet, JwtKeySetError> {
        let set: KeySetJson =
            serde_json::from_slice(json).map_err(|error| JwtKeySetError::Malformed(error.to_string()))?;
        if set.keys.len() > KEYS_MAX {
            return Err(JwtKeySetError::Size(set.keys.len()));
        }
        let (mut keys, mut refused) = (Vec::new(), Vec::new());
        for (i, key) in set.keys.into_iter().enumerate() {
            let Ok(json) = KeyJson::deserialize(key) else {
                refused.push(format!("key {i} is malformed"));
                continue;
            };
            match json.public_key() {
                Ok(Some((algorithm, public))) => keys.push(JwtKey { id: json.kid, algorithm, public }),
                Ok(None) => {}
                Err(reason) => refused.push(format!("key `{}` {reason}", json.kid.as_deref().unwrap_or("without kid"))),
            }
        }
        if keys.is_empty() {
            return Err(JwtKeySetError::Unusable(refused.iter().map(|reason| format!("; {reason}")).collect()));
        }
        Ok(JwtKeySet { keys, refused })
    }

    /// Returns the number of usable keys.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// Returns a sentence for each key that is unsafe or damaged, and is therefore not used.
    #[must_use]
    pub fn refused_keys(&self) -> &[String] {
        &self.refused
    }

    /// Returns true if the set has a key with this name, or for a token without a name, a key that
    /// fits the algorithm.
    pub(super) fn has_key(&self, id: Option<&str>, algorithm: JwtAlgorithm) -> bool {
        self.candidates(id, algorithm).next().is_some()
    }

    /// Returns true if one of the keys that [`JwtKeySet::has_key`] finds has made the signature.
    pub(super) fn verifies(
        &self,
        (id, algorithm): (Option<&str>, JwtAlgorithm),
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        self.candidates(id, algorithm).any(|key| key.public.verifies(algorithm, message, signature))
    }

    fn candidates<'a>(&'a self, id: Option<&'a str>, algorithm: JwtAlgorithm) -> impl Iterator<Item = &'a JwtKey> {
        self.keys.iter().filter(move |key| {
            let has_id = id.is_none_or(|id| key.id.as_deref() == Some(id));
            has_id && key.algorithm.is_none_or(|only| only == algorithm) && key.public.fits(algorithm)
        })
    }
}

impl PublicKey {
    /// Returns true if the key is of the algorithm's kind.
    fn fits(&self, algorithm: JwtAlgorithm) -> bool {
        match algorithm {
            JwtAlgorithm::Rs256
            | JwtAlgorithm::Rs384
            | JwtAlgorithm::Rs512
            | JwtAlgorithm::Ps256
            | JwtAlgorithm::Ps384
            | JwtAlgorithm::Ps512 => matches!(self, PublicKey::Rsa { .. }),
            JwtAlgorithm::Es256 => matches!(self, PublicKey::P256(_)),
            JwtAlgorithm::Es384 => matches!(self, PublicKey::P384(_)),
            JwtAlgorithm::EdDsa => matches!(self, PublicKey::Ed25519(_)),
        }
    }

    fn verifies(&self, algorithm: JwtAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        let rsa = |parameters: &'static RsaParameters| match self {
            PublicKey::Rsa { modulus, exponent } => {
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(parameters, message, signature).is_ok()
            }
            PublicKey::P256(_) | PublicKey::P384(_) | PublicKey::Ed25519(_) => false,
        };
        let curve = |algorithm: &'static dyn VerificationAlgorithm, point: &[u8]| {
            UnparsedPublicKey::new(algorithm, point).verify(message, signature).is_ok()
        };
        match (algorithm, self) {
            (JwtAlgorithm::Rs256, _) => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            (JwtAlgorithm::Rs384, _) => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            (JwtAlgorithm::Rs512, _) => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            (JwtAlgorithm::Ps256, _) => rsa(&signature::RSA_PSS_2048_8192_SHA256),
            (JwtAlgorithm::Ps384, _) => rsa(&signature::RSA_PSS_2048_8192_SHA384),
            (JwtAlgorithm::Ps512, _) => rsa(&signature::RSA_PSS_2048_8192_SHA512),
            (JwtAlgorithm::Es256, PublicKey::P256(point)) => curve(&signature::ECDSA_P256_SHA256_FIXED, point),
            (JwtAlgorithm::Es384, PublicKey::P384(point)) => curve(&signature::ECDSA_P384_SHA384_FIXED, point),
            (JwtAlgorithm::EdDsa, PublicKey::Ed25519(key)) => curve(&signature::ED25519, key),
            (JwtAlgorithm::Es256 | JwtAlgorithm::Es384 | JwtAlgorithm::EdDsa, _) => false,
        }
    }
}

impl KeyJson {
    /// Returns the key, with the only algorithm that it is for. Returns `None` for a key that is
    /// not for signatures, or of a kind that laredo does not verify.
    ///
    /// # Errors
    /// The reason why the key must not be used.
    fn public_key(&self) -> Result<Option<(Option<JwtAlgorithm>, PublicKey)>, String> {
        let is_for_signatures = self.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
            && self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
        let algorithm = self.alg.as_deref().map(JwtAlgorithm::from_name);
        if !is_for_signatures || algorithm == Some(None) {
            return Ok(None);
        }
        let public = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => self.rsa_key()?,
            ("EC", Some("P-256")) => PublicKey::P256(self.point(32)?),
            ("EC", Some("P-384")) => PublicKey::P384(self.point(48)?),
            ("OKP", Some("Ed25519")) => PublicKey::Ed25519(number("x", self.x.as_deref(), Some(32))?),
            _ => return Ok(None),
        };
        Ok(Some((algorithm.flatten(), public)))
    }

    fn rsa_key(&self) -> Result<PublicKey, String> {
        let modulus = without_zeros(number("n", self.n.as_deref(), None)?);
        let exponent = without_zeros(number("e", self.e.as_deref(), None)?);
        let bits = 8 * modulus.len() - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
        if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            return Err(format!(
                "is an RSA key of {bits} bits, and keys have {RSA_BITS_MIN} to {RSA_BITS_MAX}; the issuer must replace it"
            ));
        }
        Ok(PublicKey::Rsa { modulus, exponent })
    }

    /// Returns the uncompressed point of coordinates with `length` bytes each.
    fn point(&self, length: usize) -> Result<Vec<u8>, String> {
        let x = number("x", self.x.as_deref(), Some(length))?;
        let y = number("y", self.y.as_deref(), Some(length))?;
        Ok([&[4], x.as_slice(), y.as_slice()].concat())
    }
}

/// Reads a number of a key, which may have to have a length in bytes.
fn number(name: &str, text: Option<&str>, length: Option<usize>) -> Result<Vec<u8>, String> {
    let bytes = text.and_then(|text| BASE64_URL_SAFE_NO_PAD.decode(text).ok());
    let bytes = bytes.filter(|bytes| length.is_none_or(|length| bytes.len() == length));
    bytes.ok_or_else(|| format!("has no valid `{name}`"))
}

fn without_zeros(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().skip_while(|byte| *byte == 0).collect()
}
