//! Credentials: what a caller presents to prove its identity.

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls::pki_types::CertificateDer;
use tonic::Status;

use super::jwt::{self, JwtRefusal};
use super::token::TokenHash;
use crate::peer::PeerInfo;

/// The proof that a caller has presented. An open stream keeps it, so that its caller can be judged
/// again when the rules are replaced.
#[derive(Clone)]
pub(super) enum CallerCredential {
    /// A static token.
    Token(TokenHash),
    /// A JWT.
    Jwt(Arc<str>),
    /// The client's certificate, followed by its chain. The handshake has verified it.
    Certificate(Arc<[CertificateDer<'static>]>),
}

/// The reason why a caller's identity is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnknownIdentity {
    Missing,
    Repeated,
    Scheme,
    Token,
    Expired,
    Jwt(JwtRefusal),
}

impl CallerCredential {
    /// Returns the credential of a request: the token, or without a token the certificate. A wrong
    /// token is never ignored in favor of a certificate.
    pub(super) fn read(headers: &HeaderMap, peer: Option<&PeerInfo>) -> Result<CallerCredential, UnknownIdentity> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (None, _) => {
                let certificates = peer.map(|peer| &peer.certificates).filter(|chain| !chain.is_empty());
                certificates.cloned().map(CallerCredential::Certificate).ok_or(UnknownIdentity::Missing)
            }
            (Some(value), None) => {
                let token = bearer(value.as_bytes()).ok_or(UnknownIdentity::Scheme)?;
                Ok(match jwt::is_jwt(token) {
                    true => CallerCredential::Jwt(token.into()),
                    false => CallerCredential::Token(TokenHash::of(token)),
                })
            }
            (Some(_), Some(_)) => Err(UnknownIdentity::Repeated),
        }
    }
}

/// Returns the token of an `authorization` header. The scheme may have any case.
fn bearer(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

impl From<UnknownIdentity> for Status {
    fn from(unknown: UnknownIdentity) -> Status {
        Status::unauthenticated(match unknown {
            UnknownIdentity::Jwt(refusal) => return refusal.into(),
            UnknownIdentity::Missing => {
                "this server needs to know its callers; send `authorization: Bearer TOKEN`, or a certificate that it knows"
            }
            UnknownIdentity::Repeated => "there is more than one `authorization` header; send one",
            UnknownIdentity::Scheme => "the `authorization` header is not `Bearer TOKEN`; send a token in this form",
            UnknownIdentity::Token => "the token is wrong or was revoked; ask the operator for a new one",
            UnknownIdentity::Expired => "the token or the certificate has expired; ask the operator for a new one",
        })
    }
}
