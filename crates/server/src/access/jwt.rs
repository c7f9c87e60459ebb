//! JSON Web Tokens: statements about a caller that an identity provider, the issuer, has signed.
//!
//! Only signatures with a public key are accepted. The key is one of the issuer's, and never comes
//! from the token. `unverified` reads a token, `key_set` verifies its signature, and `keys` has the
//! current keys. The decision about the claims is here.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use laredo_core::CommitTime;
use tonic::Status;

mod key_set;
mod keys;
mod unverified;

pub use key_set::{JwtAlgorithm, JwtKeySet, JwtKeySetError};
pub use keys::{JwtKeyFeed, JwtKeys};

use unverified::UnverifiedJwt;

use super::identity::{Claims, claims_have};
use super::pattern::NamePattern;

/// The maximum length of a subject in bytes, as in OpenID Connect.
const SUBJECT_BYTES_MAX: usize = 255;

/// The JWTs that prove an identity.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtOptions {
    /// The issuer, as the claim `iss` has it.
    pub issuer: String,
    /// The audiences; the claim `aud` must have one of them.
    pub audiences: Vec<String>,
    /// The issuer's keys.
    pub keys: JwtKeys,
    /// The algorithms that are accepted.
    pub algorithms: Vec<JwtAlgorithm>,
    /// The patterns of subjects, in which a star matches a part between colons. One of them must
    /// match the claim `sub`. If there are none, each subject is accepted.
    pub subjects: Vec<NamePattern>,
    /// The claims that a token must have, all of them.
    pub required_claims: BTreeMap<String, String>,
    /// The tolerated difference between the clocks of the issuer and the server.
    pub leeway: Duration,
}

/// A JWT that proves an identity.
#[derive(Debug)]
pub(super) struct VerifiedJwt {
    pub(super) subject: String,
    pub(super) claims: Claims,
    pub(super) expires_at: CommitTime,
}

/// The reason why a JWT proves no identity. Of the reasons of several entries, the last one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum JwtRefusal {
    Length,
    Issuer,
    Algorithm,
    Signature,
    UnknownKey,
    NoKeys,
    Malformed,
    NoExpiry,
    Expired,
    NotYetValid,
    NoSubject,
    Audience,
    Claims,
}

/// Returns true if a bearer token is a JWT: three parts, separated by dots.
pub(super) fn is_jwt(token: &str) -> bool {
    token.split('.').count() == 3
}

/// Verifies a JWT for the first entry that accepts it.
///
/// # Errors
/// The reason of the entry that came closest to accepting it.
pub(super) fn verify<'e, E>(
    token: &str,
    entries: impl Iterator<Item = (E, &'e JwtOptions)>,
    now: CommitTime,
) -> Result<(E, VerifiedJwt), JwtRefusal> {
    let token = UnverifiedJwt::parse(token)?;
    let mut refusal = JwtRefusal::Issuer;
    // Entries of one issuer share its keys, and a signature is verified once.
    let mut signatures: Vec<(&JwtKeys, Result<(), JwtRefusal>)> = Vec::new();
    for (entry, options) in entries.filter(|(_, options)| token.issuer() == Some(options.issuer.as_str())) {
        let checked = options.check_algorithm(&token).and_then(|algorithm| {
            let known = signatures.iter().find(|(keys, _)| **keys == options.keys).map(|(_, result)| *result);
            known.unwrap_or_else(|| {
                let result = check_signature(&options.keys, &token, algorithm);
                signatures.push((&options.keys, result));
                result
            })?;
            options.check_claims(&token, now)
        });
        match checked {
            Ok((subject, expires_at)) => {
                return Ok((entry, VerifiedJwt { subject, expires_at, claims: token.claims }));
            }
            Err(reason) => refusal = refusal.max(reason),
        }
    }
    Err(refusal)
}

/// Waits for the key of a JWT, within a bound, if no entry of its issuer knows the key.
pub(super) async fn await_key(token: &str, entries: impl Iterator<Item = &JwtOptions>) {
    let Ok(token) = UnverifiedJwt::parse(token) else { return };
    let Some(algorithm) = token.algorithm else { return };
    let mut sources: Vec<JwtKeys> = Vec::new();
    for options in entries.filter(|options| token.issuer() == Some(options.issuer.as_str())) {
        if options.keys.has_key(token.key_id.as_deref(), algorithm) {
            return;
        }
        if options.algorithms.contains(&algorithm) && !sources.contains(&options.keys) {
            sources.push(options.keys.clone());
        }
    }
    join_all(sources.iter().map(JwtKeys::request_reading)).await;
}

fn check_signature(keys: &JwtKeys, token: &UnverifiedJwt<'_>, algorithm: JwtAlgorithm) -> Result<(), JwtRefusal> {
    let set = keys.set().ok_or(JwtRefusal::NoKeys)?;
    let key_id = token.key_id.as_deref();
    if !set.has_key(key_id, algorithm) {
        return Err(JwtRefusal::UnknownKey);
    }
    let is_signed = set.verifies((key_id, algorithm), token.signed.as_bytes(), &token.signature);
    is_signed.then_some(()).ok_or(JwtRefusal::Signature)
}

impl JwtOptions {
    fn check_algorithm(&self, token: &UnverifiedJwt<'_>) -> Result<JwtAlgorithm, JwtRefusal> {
        token.algorithm.filter(|algorithm| self.algorithms.contains(algorithm)).ok_or(JwtRefusal::Algorithm)
    }

    /// Checks the claims of a token whose signature is right. Returns its subject, and the time
    /// from which on it is no longer valid.
    fn check_claims(&self, token: &UnverifiedJwt<'_>, now: CommitTime) -> Result<(String, CommitTime), JwtRefusal> {
        let leeway_us = i64::try_from(self.leeway.as_micros()).unwrap_or(i64::MAX);
        let expires_at = token.time("exp")?.ok_or(JwtRefusal::NoExpiry)?;
        let expires_at = CommitTime(expires_at.0.saturating_add(leeway_us));
        if expires_at <= now {
            return Err(JwtRefusal::Expired);
        }
        if token.time("nbf")?.is_some_and(|begins_at| begins_at.0 > now.0.saturating_add(leeway_us)) {
            return Err(JwtRefusal::NotYetValid);
        }
        let subject = token.subject().ok_or(JwtRefusal::NoSubject)?;
        // The subject is in names of clients and in logs.
        if subject.is_empty() || subject.len() > SUBJECT_BYTES_MAX || subject.chars().any(char::is_control) {
            return Err(JwtRefusal::NoSubject);
        }
        if !self.audiences.iter().any(|audience| token.is_for(audience)) {
            return Err(JwtRefusal::Audience);
        }
        let is_subject =
            self.subjects.is_empty() || self.subjects.iter().any(|pattern| pattern.matches_parts(subject, ':'));
        let has_claims = self.required_claims.iter().all(|(path, text)| claims_have(&token.claims, path, text));
        match is_subject && has_claims {
            true => Ok((subject.to_owned(), expires_at)),
            false => Err(JwtRefusal::Claims),
        }
    }
}

impl From<JwtRefusal> for Status {
    fn from(refusal: JwtRefusal) -> Status {
        Status::unauthenticated(match refusal {
            JwtRefusal::Length => "the JWT is longer than 16 KiB; have its issuer leave out claims",
            JwtRefusal::Malformed => {
                "the JWT is malformed: it needs a header with `alg`, claims, numbers as times, and a signature"
            }
            JwtRefusal::Issuer => "no identity takes JWTs of this issuer (`iss`); ask the operator",
            JwtRefusal::Algorithm => "no identity takes JWTs that are signed with this algorithm (`alg`)",
            JwtRefusal::NoKeys => {
                return Status::unavailable(
                    "the server has no keys of the JWT's issuer yet, and tries to read them; retry later",
                );
            }
            JwtRefusal::UnknownKey => {
                "the JWT is signed with a key that its issuer does not publish (`kid`); get a new one"
            }
            JwtRefusal::Signature => "the JWT's signature is wrong; get a new one from its issuer",
            JwtRefusal::NoExpiry => "the JWT has no time at which it expires (`exp`), which this server requires",
            JwtRefusal::Expired => "the JWT has expired (`exp`); get a new one from its issuer",
            JwtRefusal::NotYetValid => "the JWT is not valid yet (`nbf`); compare the clocks of issuer and server",
            JwtRefusal::NoSubject => "the JWT has no subject (`sub`) of 1 to 255 characters",
            JwtRefusal::Audience => "the JWT is for another audience (`aud`); request one for this server",
            JwtRefusal::Claims => "no identity takes JWTs with this subject and these claims; ask the operator",
        })
    }
}

#[cfg(test)]
pub(in crate::access) mod tests;
