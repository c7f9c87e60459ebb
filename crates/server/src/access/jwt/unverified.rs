//! The parts of a JWT before its signature is verified.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use laredo_core::CommitTime;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value as Json;

use super::JwtRefusal;
use super::key_set::JwtAlgorithm;
use crate::access::identity::Claims;

/// The maximum length of a token in bytes. The headers of a request over HTTP/2 have no more.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// A JWT whose signature was not verified. Nothing in it is to be believed.
pub(super) struct UnverifiedJwt<'t> {
    /// The algorithm; `None` for one that is never accepted.
    pub(super) algorithm: Option<JwtAlgorithm>,
    /// The name of the key.
    pub(super) key_id: Option<String>,
    pub(super) claims: Claims,
    /// The header and the claims, as they are signed.
    pub(super) signed: &'t str,
    pub(super) signature: Vec<u8>,
}

/// The header of a JWT. A key in it, or an address of one, is ignored.
#[derive(Deserialize)]
struct JwtHeader {
    alg: String,
    kid: Option<String>,
    /// Extensions that a verifier must understand. laredo has none.
    crit: Option<IgnoredAny>,
}

impl<'t> UnverifiedJwt<'t> {
    /// Reads a token: the header, the claims and the signature, separated by dots.
    pub(super) fn parse(token: &'t str) -> Result<UnverifiedJwt<'t>, JwtRefusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(JwtRefusal::Length);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtRefusal::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(JwtRefusal::Malformed)?;
        let header: JwtHeader = json(header)?;
        if header.crit.is_some() {
            return Err(JwtRefusal::Malformed);
        }
        Ok(UnverifiedJwt {
            algorithm: JwtAlgorithm::from_name(&header.alg),
            key_id: header.kid,
            claims: json(claims)?,
            signed,
            signature: BASE64_URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtRefusal::Malformed)?,
        })
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Json::as_str)
    }

    pub(super) fn subject(&self) -> Option<&str> {
        self.claims.get("sub").and_then(Json::as_str)
    }

    /// Returns true if the token is for the audience, alone or with others.
    pub(super) fn is_for(&self, audience: &str) -> bool {
        match self.claims.get("aud") {
            Some(Json::Array(audiences)) => audiences.iter().any(|one| one == audience),
            Some(one) => one == audience,
            None => false,
        }
    }

    /// Returns a claim that is a time: the seconds since 1970, whole or not. A claim of another
    /// type is an error, and never as good as none.
    pub(super) fn time(&self, claim: &str) -> Result<Option<CommitTime>, JwtRefusal> {
        let Some(value) = self.claims.get(claim) else { return Ok(None) };
        let number = value.as_number().ok_or(JwtRefusal::Malformed)?;
        let whole_us = number.as_i64().map(|seconds| seconds.saturating_mul(1_000_000));
        #[expect(clippy::cast_possible_truncation, reason = "the conversion saturates")]
        let us = whole_us.or_else(|| number.as_f64().map(|seconds| (seconds * 1e6) as i64));
        us.map(|us| Some(CommitTime::from_unix_us(us))).ok_or(JwtRefusal::Malformed)
    }
}

fn json<T: DeserializeOwned>(part: &str) -> Result<T, JwtRefusal> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtRefusal::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwtRefusal::Malformed)
}
