//! The check of a caller, before anything of the request's body is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap};
use laredo_core::{CommitTime, TableName};
use laredo_engine::Clock;
use serde_json::Value as Json;
use tokio::time::Instant;
use tonic::Status;

use super::caller::{Caller, CallerRights};
use super::certificate;
use super::grant::{AccessGrants, RowScope, ScopeDenial};
use super::identity::Identity;
use super::jwt::{self, JwtKeys, JwtOptions, JwtRefusal};
use super::limits::{IdentityLimits, IdentityUsage, IdentityUsages};
use super::pattern::NamePattern;
use super::token::TokenHash;
use crate::peer::{PeerAddress, PeerInfo};
use crate::refusal;
use crate::rpc_rules::{self, RpcEffect};

/// The identities that a server knows, and what they may do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessOptions {
    /// The identities.
    pub identities: Vec<IdentityOptions>,
    /// The grants.
    pub grants: AccessGrants,
    /// True if anyone may ask for the server's health. The answer then has no details, except for
    /// observers.
    pub health_is_open: bool,
    /// True if anyone may read the metrics.
    pub metrics_are_open: bool,
}

/// An identity, and everything that proves it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IdentityOptions {
    /// The name, which grants refer to.
    pub name: String,
    /// The claims, whose values grants may use.
    pub claims: BTreeMap<String, String>,
    /// The tokens. Each of them proves the identity.
    pub tokens: Vec<TokenOptions>,
    /// The names in clients' certificates. Each of them proves the identity.
    pub certificates: Vec<NamePattern>,
    /// The JWTs. Each of them proves the identity, and its claims are claims of the identity.
    pub jwt: Option<JwtOptions>,
    /// The limits of each caller with this identity. All callers with one token share them, and
    /// so do all with one subject.
    pub limits: IdentityLimits,
}

/// A static token of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOptions {
    /// The hash of the token.
    pub hash: TokenHash,
    /// The time from which on the token is no longer valid; `None` for no limit.
    pub expires_at: Option<CommitTime>,
}

/// The access rules of a running server.
pub(crate) struct AccessControl {
    options: AccessOptions,
    usages: IdentityUsages,
    clock: Clock,
}

/// The rights that a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequiredRight<'a> {
    /// A grant of rows. The service checks which ones.
    Rows,
    /// A grant of rows, or that of observers.
    RowsOrState,
    /// A grant of this order.
    Order(&'a str),
    State,
    Health,
    /// Any identity.
    Identity,
}

/// The reason why a caller's identity is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnknownIdentity {
    Missing,
    Repeated,
    Scheme,
    Token,
    Expired,
    Jwt(JwtRefusal),
}

const REPLICATION: &str = "/laredo.replication.v1.LaredoReplicationService/";
const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/";

/// Returns the right that the rpc at a path needs. Returns `None` if there is no such rpc.
fn required_right(path: &str) -> Option<RequiredRight<'_>> {
    let effect = rpc_rules::find_effect(path)?;
    Some(match effect {
        _ if path.starts_with(HEALTH) => RequiredRight::Health,
        _ if path.starts_with(REFLECTION) => RequiredRight::Identity,
        RpcEffect::Reads => RequiredRight::Rows,
        // These report to a reader what it may read.
        RpcEffect::Observes if path.starts_with(REPLICATION) => RequiredRight::RowsOrState,
        RpcEffect::Observes => RequiredRight::State,
        RpcEffect::Orders => RequiredRight::Order(path.rsplit('/').next().unwrap_or_default()),
    })
}

impl AccessControl {
    pub(crate) fn new(options: AccessOptions, clock: Clock) -> AccessControl {
        AccessControl { options, usages: IdentityUsages::default(), clock }
    }

    pub(super) fn grants(&self) -> &AccessGrants {
        &self.options.grants
    }

    /// Returns the usage of an identity; `None` if it has no limits.
    pub(super) fn usage(&self, identity: &Identity) -> Option<Arc<IdentityUsage>> {
        let entry = self.options.identities.iter().find(|entry| entry.name == identity.entry)?;
        self.usages.of(&identity.name, entry.limits, Instant::now())
    }

    pub(super) fn now(&self) -> CommitTime {
        (self.clock)()
    }

    /// Checks that a caller may call the rpc at a path.
    ///
    /// # Errors
    /// UNAUTHENTICATED if the caller's identity is unknown, UNAVAILABLE if the keys of its JWT were
    /// never read, PERMISSION_DENIED if no grant covers the call, and UNIMPLEMENTED if there is no
    /// such rpc.
    pub(crate) fn admit(
        self: &Arc<Self>,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&PeerInfo>,
    ) -> Result<Caller, CallRefusal> {
        let right = required_right(path);
        if right == Some(RequiredRight::Health) && self.options.health_is_open {
            return Ok(Caller::new(peer, CallerRights::Anonymous));
        }
        let identity = self.identify(headers, peer).map_err(|unknown| CallRefusal::new(None, peer, unknown.into()))?;
        let caller = Caller::new(peer, CallerRights::Identified(Arc::new(identity), self.clone()));
        let Some(right) = right else {
            return Err(CallRefusal::of(&caller, refusal::no_method(path)));
        };
        match self.allows(caller.identity(), right) {
            true => Ok(caller),
            false => Err(CallRefusal::of(&caller, denied(caller.identity_name(), right))),
        }
    }

    /// Checks that a caller may read states, or metrics if `is_metrics`. Returns `None` for a
    /// caller who is not known and may have the answer without details.
    ///
    /// # Errors
    /// As [`AccessControl::admit`].
    pub(crate) fn admit_http(
        self: &Arc<Self>,
        is_metrics: bool,
        headers: &HeaderMap,
        peer: Option<&PeerInfo>,
    ) -> Result<Caller, CallRefusal> {
        let is_open = if is_metrics { self.options.metrics_are_open } else { self.options.health_is_open };
        let identity = match self.identify(headers, peer) {
            Ok(identity) => identity,
            Err(UnknownIdentity::Missing) if is_open => return Ok(Caller::new(peer, CallerRights::Anonymous)),
            Err(unknown) => return Err(CallRefusal::new(None, peer, unknown.into())),
        };
        let caller = Caller::new(peer, CallerRights::Identified(Arc::new(identity), self.clone()));
        match is_open || caller.is_observer() {
            true => Ok(caller),
            false => Err(CallRefusal::of(&caller, denied(caller.identity_name(), RequiredRight::State))),
        }
    }

    fn allows(&self, identity: Option<&Identity>, right: RequiredRight<'_>) -> bool {
        let (Some(identity), grants) = (identity, self.grants()) else { return false };
        match right {
            RequiredRight::Rows => grants.reads(identity),
            RequiredRight::RowsOrState => grants.reads(identity) || grants.observes(identity),
            RequiredRight::Order(order) => grants.orders(identity, order),
            RequiredRight::State | RequiredRight::Health => grants.observes(identity),
            RequiredRight::Identity => true,
        }
    }

    /// Returns the caller's identity: that of the token, or without a token that of the
    /// certificate. A wrong token is never ignored in favor of a certificate.
    fn identify(&self, headers: &HeaderMap, peer: Option<&PeerInfo>) -> Result<Identity, UnknownIdentity> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let identity = match (values.next(), values.next()) {
            (None, _) => self.of_certificate(peer).ok_or(UnknownIdentity::Missing)?,
            (Some(value), None) => match bearer(value.as_bytes()).ok_or(UnknownIdentity::Scheme)? {
                token if jwt::is_jwt(token) => self.of_jwt(token)?,
                token => self.of_token(token)?,
            },
            (Some(_), Some(_)) => return Err(UnknownIdentity::Repeated),
        };
        match identity.has_expired(self.now()) {
            true => Err(UnknownIdentity::Expired),
            false => Ok(identity),
        }
    }

    fn of_token(&self, token: &str) -> Result<Identity, UnknownIdentity> {
        let hash = TokenHash::of(token);
        // All tokens are compared, so that the time says nothing about the place of the right one.
        let mut found = None;
        for identity in &self.options.identities {
            for token in &identity.tokens {
                if token.hash.is_same(&hash) {
                    found = Some(Identity { expires_at: token.expires_at, ..identity.proven(&identity.name) });
                }
            }
        }
        found.ok_or(UnknownIdentity::Token)
    }

    fn of_jwt(&self, token: &str) -> Result<Identity, UnknownIdentity> {
        let verified = jwt::verify(token, self.jwt_entries(), self.now());
        let (entry, verified) = verified.map_err(UnknownIdentity::Jwt)?;
        let mut identity = entry.proven(&format!("{}/{}", entry.name, verified.subject));
        // The operator's claims replace those of the token.
        for (name, claim) in verified.claims {
            identity.claims.entry(name).or_insert(claim);
        }
        Ok(Identity { expires_at: Some(verified.expires_at), ..identity })
    }

    /// Returns the identities that JWTs prove, with their rules.
    fn jwt_entries(&self) -> impl Iterator<Item = (&IdentityOptions, &JwtOptions)> {
        self.options.identities.iter().filter_map(|entry| Some((entry, entry.jwt.as_ref()?)))
    }

    /// Waits for the key of the caller's JWT, within a bound, if the key is not known yet.
    pub(super) async fn await_key(&self, headers: &HeaderMap) {
        let token = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        if let Some(token) = token.filter(|token| jwt::is_jwt(token)) {
            jwt::await_key(token, self.jwt_entries().map(|(_, options)| options)).await;
        }
    }

    /// Returns the keys of all issuers, each once.
    pub(super) fn jwt_keys(&self) -> Vec<JwtKeys> {
        let mut all: Vec<JwtKeys> = Vec::new();
        for (_, options) in self.jwt_entries() {
            if !all.contains(&options.keys) {
                all.push(options.keys.clone());
            }
        }
        all
    }

    fn of_certificate(&self, peer: Option<&PeerInfo>) -> Option<Identity> {
        let der = peer?.certificates.first()?;
        self.options.identities.iter().find_map(|identity| {
            let name = identity.certificates.iter().find_map(|pattern| certificate::find_name(der, pattern))?;
            Some(identity.proven(&format!("{}/{name}", identity.name)))
        })
    }

    /// Returns the part of a table that an identity may read.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the reason if it may read nothing of the table.
    pub(super) fn scope(&self, identity: &Identity, table: &TableName) -> Result<RowScope, Status> {
        self.grants().scope(identity, table).map_err(|denial| {
            let name = &identity.name;
            Status::permission_denied(match denial {
                ScopeDenial::NoGrant => {
                    format!("no grant lets {name} read table {table}; the operator adds one to `access.readers`")
                }
                ScopeDenial::Claim(claim) => format!(
                    "the grant of table {table} needs the claim `{claim}`, which {name} does not have as a value; the \
                     operator adds it to the identity"
                ),
            })
        })
    }
}

impl IdentityOptions {
    fn proven(&self, name: &str) -> Identity {
        let claims = self.claims.iter().map(|(name, text)| (name.clone(), Json::from(text.as_str())));
        Identity { entry: self.name.clone(), name: name.to_owned(), claims: claims.collect(), expires_at: None }
    }
}

/// A call that was refused before it reached a service.
#[derive(Debug)]
pub(crate) struct CallRefusal {
    /// The caller's name, if it is known.
    pub(crate) identity: Option<String>,
    pub(crate) peer: Option<PeerAddress>,
    pub(crate) status: Status,
}

impl CallRefusal {
    pub(super) fn new(identity: Option<String>, peer: Option<&PeerInfo>, status: Status) -> CallRefusal {
        CallRefusal { identity, peer: peer.map(|peer| peer.address), status }
    }

    pub(super) fn of(caller: &Caller, status: Status) -> CallRefusal {
        CallRefusal { identity: Some(caller.identity_name().to_owned()), peer: caller.peer(), status }
    }
}

/// Returns the token of an `authorization` header. The scheme may have any case.
fn bearer(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

fn denied(name: &str, right: RequiredRight<'_>) -> Status {
    let (what, list) = match right {
        RequiredRight::Rows | RequiredRight::RowsOrState => ("read any table".to_owned(), "readers"),
        RequiredRight::Order(order) => (format!("order {order}"), "operators"),
        RequiredRight::State | RequiredRight::Health | RequiredRight::Identity => {
            ("read the server's state".to_owned(), "observers")
        }
    };
    Status::permission_denied(format!("no grant lets {name} {what}; the operator adds one to `access.{list}`"))
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
            UnknownIdentity::Expired => "the token has expired; ask the operator for a new one",
        })
    }
}

/// Returns the caller that the check has admitted.
///
/// # Errors
/// INTERNAL if the request did not pass the check. It is then refused, whatever it asks for.
pub(crate) fn admitted(extensions: &Extensions) -> Result<Caller, Status> {
    let caller = extensions.get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("the request has passed no check of its caller; this is a fault of laredo"))
}

#[cfg(test)]
mod tests;
