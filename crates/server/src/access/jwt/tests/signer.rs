//! Issuers of tokens for tests.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::KeyPairComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::{Value as Json, json};

use crate::access::jwt::{JwtAlgorithm, JwtKeySet};

/// A key of an issuer, which signs tokens.
pub(in crate::access) struct TestSigner {
    pub(in crate::access) id: Option<String>,
    pair: TestKeyPair,
}

enum TestKeyPair {
    Rsa(Box<RsaKeyPair>),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// The RSA key of RFC 7515, A.2: n, e, d, p, q, dP, dQ and qInv. ring cannot generate one.
const RSA_KEY: [&str; 8] = [
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMs\
     D1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdV\
     MTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    "AQAB",
    "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0\
     BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYT\
     CBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
    "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPG\
     BY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
    "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA\
     -njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
    "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb3\
     4MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
    "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyN\
     lxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
    "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW\
     0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U",
];

pub(in crate::access) fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: &str) -> Vec<u8> {
    BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
}

fn elliptic(algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap()
}

impl TestSigner {
    fn new(id: &str, pair: TestKeyPair) -> TestSigner {
        TestSigner { id: Some(id.to_owned()), pair }
    }

    /// Returns the signer with the key of RFC 7515.
    pub(in crate::access) fn rsa(id: &str) -> TestSigner {
        let [n, e, d, p, q, d_p, d_q, q_inv] = RSA_KEY.map(decode);
        let public_key = RsaPublicKeyComponents { n, e };
        let components = KeyPairComponents { public_key, d, p, q, dP: d_p, dQ: d_q, qInv: q_inv };
        TestSigner::new(id, TestKeyPair::Rsa(Box::new(RsaKeyPair::from_components(&components).unwrap())))
    }

    pub(in crate::access) fn p256(id: &str) -> TestSigner {
        TestSigner::new(id, TestKeyPair::P256(elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING)))
    }

    pub(in crate::access) fn p384(id: &str) -> TestSigner {
        TestSigner::new(id, TestKeyPair::P384(elliptic(&ECDSA_P384_SHA384_FIXED_SIGNING)))
    }

    pub(in crate::access) fn ed25519(id: &str) -> TestSigner {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        TestSigner::new(id, TestKeyPair::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap()))
    }

    /// Returns the algorithm that the signer uses unless another one is named.
    pub(in crate::access) fn algorithm(&self) -> JwtAlgorithm {
        match &self.pair {
            TestKeyPair::Rsa(_) => JwtAlgorithm::Rs256,
            TestKeyPair::P256(_) => JwtAlgorithm::Es256,
            TestKeyPair::P384(_) => JwtAlgorithm::Es384,
            TestKeyPair::Ed25519(_) => JwtAlgorithm::EdDsa,
        }
    }

    /// Returns the public key in JSON.
    pub(in crate::access) fn public_key(&self) -> Json {
        let point = |pair: &EcdsaKeyPair, curve: &str| {
            let (x, y) = pair.public_key().as_ref()[1..].split_at((pair.public_key().as_ref().len() - 1) / 2);
            json!({ "kty": "EC", "crv": curve, "x": encode(x), "y": encode(y), "use": "sig" })
        };
        let mut key = match &self.pair {
            TestKeyPair::Rsa(_) => json!({ "kty": "RSA", "n": RSA_KEY[0], "e": RSA_KEY[1] }),
            TestKeyPair::P256(pair) => point(pair, "P-256"),
            TestKeyPair::P384(pair) => point(pair, "P-384"),
            TestKeyPair::Ed25519(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key()), "key_ops": ["verify"] })
            }
        };
        if let Some(id) = &self.id {
            key["kid"] = json!(id);
        }
        key
    }

    pub(in crate::access) fn key_set(&self) -> JwtKeySet {
        JwtKeySet::parse(json!({ "keys": [self.public_key()] }).to_string().as_bytes()).unwrap()
    }

    /// Returns a token with these claims.
    pub(in crate::access) fn sign(&self, claims: &Json) -> String {
        self.sign_with(self.algorithm(), claims)
    }

    pub(in crate::access) fn sign_with(&self, algorithm: JwtAlgorithm, claims: &Json) -> String {
        let mut header = json!({ "alg": algorithm.name(), "typ": "JWT" });
        if let Some(id) = &self.id {
            header["kid"] = json!(id);
        }
        self.sign_parts(algorithm, &header.to_string(), &claims.to_string())
    }

    /// Returns a token with this header and these claims, as they are.
    pub(in crate::access) fn sign_parts(&self, algorithm: JwtAlgorithm, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = encode(self.signature(algorithm, signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    fn signature(&self, algorithm: JwtAlgorithm, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            TestKeyPair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let padding: &dyn ring::signature::RsaEncoding = match algorithm {
                    JwtAlgorithm::Rs256 => &RSA_PKCS1_SHA256,
                    JwtAlgorithm::Rs384 => &RSA_PKCS1_SHA384,
                    JwtAlgorithm::Rs512 => &RSA_PKCS1_SHA512,
                    JwtAlgorithm::Ps256 => &RSA_PSS_SHA256,
                    JwtAlgorithm::Ps384 => &RSA_PSS_SHA384,
                    JwtAlgorithm::Ps512 => &RSA_PSS_SHA512,
                    JwtAlgorithm::Es256 | JwtAlgorithm::Es384 | JwtAlgorithm::EdDsa => {
                        panic!("not an algorithm of RSA")
                    }
                };
                pair.sign(padding, &random, message, &mut signature).unwrap();
                signature
            }
            TestKeyPair::P256(pair) | TestKeyPair::P384(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            TestKeyPair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }
}
