//! The access rules of one time: the identity that a credential proves, and its rights.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Extensions;
use laredo_core::{CommitTime, TableName};
use laredo_engine::Clock;
use rustls::pki_types::CertificateDer;
use serde_json::Value as Json;
use tokio::time::Instant;
use tonic::Status;

use super::caller::Caller;
use super::certificate::CallerCertificate;
use super::credential::{CallerCredential, UnknownIdentity};
use super::grant::{AccessGrants, RowScope, ScopeDenial};
use super::identity::Identity;
use super::jwt::{self, JwtKeySet, JwtKeys, JwtOptions};
use super::limits::{IdentityLimits, IdentityUsage, IdentityUsages};
use super::pattern::NamePattern;
use super::token::TokenHash;
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
    /// The names in clients' certificates. Each of them proves the identity until the certificate
    /// expires.
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

/// The access rules of a running server, at one time.
pub(super) struct AccessControl {
    options: AccessOptions,
    /// The sets of keys of the issuers when these rules were made.
    key_sets: Vec<Option<Arc<JwtKeySet>>>,
    /// The usage of identities, which outlives the rules.
    usages: Arc<IdentityUsages>,
    clock: Clock,
}

/// The rights that a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequiredRight<'a> {
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

/// Returns the right that the rpc at a path needs. Returns `None` if there is no such rpc.
pub(super) fn required_right(path: &str) -> Option<RequiredRight<'_>> {
    let (service, method) = rpc_rules::split_path(path)?;
    Some(match (service, rpc_rules::find_effect(path)?) {
        (rpc_rules::HEALTH, _) => RequiredRight::Health,
        (rpc_rules::REFLECTION, _) => RequiredRight::Identity,
        (_, RpcEffect::Reads) => RequiredRight::Rows,
        // These report to a reader what it may read.
        (rpc_rules::REPLICATION, RpcEffect::Observes) => RequiredRight::RowsOrState,
        (_, RpcEffect::Observes) => RequiredRight::State,
        (_, RpcEffect::Orders) => RequiredRight::Order(method),
    })
}

impl AccessControl {
    pub(super) fn new(options: AccessOptions, clock: Clock) -> AccessControl {
        AccessControl { key_sets: key_sets(&options), options, usages: Arc::default(), clock }
    }

    /// Returns other rules, with the usage of identities so far.
    pub(super) fn with_options(&self, options: AccessOptions) -> AccessControl {
        let (usages, clock) = (self.usages.clone(), self.clock.clone());
        AccessControl { key_sets: key_sets(&options), options, usages, clock }
    }

    pub(super) fn options(&self) -> &AccessOptions {
        &self.options
    }

    /// Returns true if the keys of an issuer are others now than when these rules were made.
    pub(super) fn has_new_keys(&self) -> bool {
        key_sets(&self.options) != self.key_sets
    }

    pub(super) fn grants(&self) -> &AccessGrants {
        &self.options.grants
    }

    pub(super) fn health_is_open(&self) -> bool {
        self.options.health_is_open
    }

    pub(super) fn metrics_are_open(&self) -> bool {
        self.options.metrics_are_open
    }

    /// Returns the limits of an identity, and its usage. Returns `None` if it has no limits.
    pub(super) fn usage(&self, identity: &Identity) -> Option<(IdentityLimits, Arc<IdentityUsage>)> {
        let entry = self.options.identities.iter().find(|entry| entry.name == identity.entry)?;
        let has_limits = entry.limits != IdentityLimits::default();
        has_limits.then(|| (entry.limits, self.usages.of(&identity.name, Instant::now())))
    }

    pub(super) fn now(&self) -> CommitTime {
        (self.clock)()
    }

    /// Checks that an identity has a right.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the grant that is missing.
    pub(super) fn check_right(&self, identity: &Identity, right: RequiredRight<'_>) -> Result<(), Status> {
        let grants = self.grants();
        let is_granted = match right {
            RequiredRight::Rows => grants.reads(identity),
            RequiredRight::RowsOrState => grants.reads(identity) || grants.observes(identity),
            RequiredRight::Order(order) => grants.orders(identity, order),
            RequiredRight::State | RequiredRight::Health => grants.observes(identity),
            RequiredRight::Identity => true,
        };
        if is_granted { Ok(()) } else { Err(denied(&identity.name, right)) }
    }

    /// Returns the identity that a credential proves now.
    pub(super) fn identify(&self, credential: &CallerCredential) -> Result<Identity, UnknownIdentity> {
        let identity = match credential {
            CallerCredential::Token(hash) => self.of_token(hash).ok_or(UnknownIdentity::Token)?,
            CallerCredential::Jwt(token) => self.of_jwt(token)?,
            CallerCredential::Certificate(chain) => self.of_certificate(chain).ok_or(UnknownIdentity::Missing)?,
        };
        match identity.has_expired(self.now()) {
            true => Err(UnknownIdentity::Expired),
            false => Ok(identity),
        }
    }

    fn of_token(&self, hash: &TokenHash) -> Option<Identity> {
        // All tokens are compared, so that the time says nothing about the place of the right one.
        let mut found = None;
        for identity in &self.options.identities {
            for token in &identity.tokens {
                if token.hash.is_same(hash) {
                    found = Some(Identity { expires_at: token.expires_at, ..identity.proven(&identity.name) });
                }
            }
        }
        found
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

    /// Waits for the key of a JWT, within a bound, if the key is not known yet.
    pub(super) async fn await_key(&self, token: &str) {
        jwt::await_key(token, self.jwt_entries().map(|(_, options)| options)).await;
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

    fn of_certificate(&self, chain: &[CertificateDer<'static>]) -> Option<Identity> {
        let certificate = CallerCertificate::read(chain.first()?)?;
        let identity = self.options.identities.iter().find_map(|identity| {
            let name = identity.certificates.iter().find_map(|pattern| certificate.find_name(pattern))?;
            Some(identity.proven(&format!("{}/{name}", identity.name)))
        })?;
        // The handshake has checked the time, but a connection may outlive its certificate.
        Some(Identity { expires_at: Some(certificate.expires_at()), ..identity })
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

fn key_sets(options: &AccessOptions) -> Vec<Option<Arc<JwtKeySet>>> {
    options.identities.iter().filter_map(|entry| Some(entry.jwt.as_ref()?.keys.set())).collect()
}

impl IdentityOptions {
    fn proven(&self, name: &str) -> Identity {
        let claims = self.claims.iter().map(|(name, text)| (name.clone(), Json::from(text.as_str())));
        Identity { entry: self.name.clone(), name: name.to_owned(), claims: claims.collect(), expires_at: None }
    }
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
