//! The algorithms of signatures: those of ring, and ECDSA over P-521, which ring lacks.

use std::sync::LazyLock;

use p521::ecdsa::signature::hazmat::PrehashVerifier as _;
use p521::ecdsa::{Signature, VerifyingKey};
use ring::digest::{self, SHA256, SHA384, SHA512, digest};
use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};

/// The algorithms for certificates (`all`) and for handshakes (`mapping`).
pub(super) static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(|| {
    let ring = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let all = ring.all.iter().copied().chain([P521_SHA256, P521_SHA384, P521_SHA512]);
    let mapping = ring.mapping.iter().copied().chain([(SignatureScheme::ECDSA_NISTP521_SHA512, P521_HANDSHAKE)]);
    // rustls wants slices that live as long as the program. They are made once.
    WebPkiSupportedAlgorithms { all: all.collect::<Vec<_>>().leak(), mapping: mapping.collect::<Vec<_>>().leak() }
});

const P521_SHA256: &dyn SignatureVerificationAlgorithm = &EcdsaP521 { hash: &SHA256, signature: alg_id::ECDSA_SHA256 };
const P521_SHA384: &dyn SignatureVerificationAlgorithm = &EcdsaP521 { hash: &SHA384, signature: alg_id::ECDSA_SHA384 };
const P521_SHA512: &dyn SignatureVerificationAlgorithm = &EcdsaP521 { hash: &SHA512, signature: alg_id::ECDSA_SHA512 };
const P521_HANDSHAKE: &[&dyn SignatureVerificationAlgorithm] = &[P521_SHA512];

/// ECDSA over P-521 with a hash.
#[derive(Debug)]
struct EcdsaP521 {
    hash: &'static digest::Algorithm,
    signature: AlgorithmIdentifier,
}

impl SignatureVerificationAlgorithm for EcdsaP521 {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let verify = || {
            let (key, signature) = (VerifyingKey::from_sec1_bytes(public_key)?, Signature::from_der(signature)?);
            key.verify_prehash(digest(self.hash, message).as_ref(), &signature)
        };
        verify().map_err(|_: p521::ecdsa::Error| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}
