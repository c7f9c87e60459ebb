//! The caller of an rpc, as services see it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::TableName;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::control::{AccessControl, RequiredRight, required_right};
use super::credential::CallerCredential;
use super::grant::RowScope;
use super::identity::Identity;
use super::limits::{IdentityLimits, IdentityUsage, StreamPermit};
use super::rules::RulesReceiver;
use crate::peer::{ClientGroup, PeerAddress, PeerInfo};
use crate::refusal;

/// The maximum length, in characters, of the description of a request in the audit.
const DESCRIPTION_MAX: usize = 500;
/// The maximum time between two looks at the clock while a caller's expiry is awaited. The clock
/// may be set.
const EXPIRY_CHECK_MAX: Duration = Duration::from_secs(30);

/// The caller of an rpc, who was admitted.
#[derive(Clone)]
pub(crate) struct Caller {
    peer: Option<PeerAddress>,
    rights: CallerRights,
    /// The description of the request, for the audit.
    description: Arc<Mutex<String>>,
    /// The parts of tables that this call was granted.
    scopes: Arc<Mutex<Vec<(TableName, RowScope)>>>,
}

/// The rights of a caller.
#[derive(Clone)]
enum CallerRights {
    /// The server has no access rules, so everyone may do everything.
    Unlimited,
    /// The caller is not known, and the call needs no rights.
    Anonymous(RulesReceiver),
    Identified(IdentifiedCaller),
}

/// A caller that the rules know.
#[derive(Clone)]
struct IdentifiedCaller {
    credential: CallerCredential,
    identity: Arc<Identity>,
    rules: RulesReceiver,
}

impl Caller {
    fn new(peer: Option<&PeerInfo>, rights: CallerRights) -> Caller {
        let peer = peer.map(|peer| peer.address);
        Caller { peer, rights, description: Arc::default(), scopes: Arc::default() }
    }

    /// Returns the caller of a server without access rules.
    pub(crate) fn unlimited(peer: Option<&PeerInfo>) -> Caller {
        Caller::new(peer, CallerRights::Unlimited)
    }

    /// Returns a caller that is not known, of a call that needs no rights.
    pub(super) fn anonymous(peer: Option<&PeerInfo>, rules: RulesReceiver) -> Caller {
        Caller::new(peer, CallerRights::Anonymous(rules))
    }

    /// Returns a caller whose credential proves an identity.
    pub(super) fn identified(
        peer: Option<&PeerInfo>,
        credential: CallerCredential,
        identity: Identity,
        rules: RulesReceiver,
    ) -> Caller {
        let identity = Arc::new(identity);
        Caller::new(peer, CallerRights::Identified(IdentifiedCaller { credential, identity, rules }))
    }

    fn identity(&self) -> Option<&Identity> {
        match &self.rights {
            CallerRights::Unlimited | CallerRights::Anonymous(_) => None,
            CallerRights::Identified(caller) => Some(&caller.identity),
        }
    }

    /// Returns the name of the caller's identity; empty if it has none.
    pub(crate) fn identity_name(&self) -> &str {
        self.identity().map_or("", |identity| &identity.name)
    }

    /// Returns the address that the caller called from.
    pub(super) fn peer(&self) -> Option<PeerAddress> {
        self.peer
    }

    /// Returns the address that the caller called from, for logs; empty if it is unknown.
    pub(crate) fn peer_text(&self) -> String {
        self.peer.map_or_else(String::new, |peer| peer.to_string())
    }

    /// Returns the group with which the caller shares limits: its identity, or its network.
    pub(crate) fn group(&self) -> ClientGroup {
        match (self.identity(), self.peer) {
            (Some(identity), _) => ClientGroup::Identity(identity.name.as_str().into()),
            (None, Some(peer)) => ClientGroup::Network(peer.into()),
            (None, None) => ClientGroup::default(),
        }
    }

    /// Returns true if the server has access rules.
    pub(crate) fn is_ruled(&self) -> bool {
        !matches!(self.rights, CallerRights::Unlimited)
    }

    /// Returns true if the caller may see the state of the server, and of other clients.
    pub(crate) fn is_observer(&self) -> bool {
        match &self.rights {
            CallerRights::Unlimited => true,
            CallerRights::Anonymous(_) => false,
            CallerRights::Identified(caller) => caller.control().grants().observes(&caller.identity),
        }
    }

    /// Returns true if the caller may know that a table exists, and its state: an observer, or a
    /// reader of the table.
    pub(crate) fn may_know(&self, table: &TableName) -> bool {
        self.is_observer() || self.scope(table).is_ok()
    }

    /// Checks that the caller has a right, apart from the rows of a table.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the grant that is missing.
    pub(super) fn check_right(&self, right: RequiredRight<'_>) -> Result<(), Status> {
        match &self.rights {
            CallerRights::Unlimited => Ok(()),
            CallerRights::Anonymous(_) => Err(unknown_caller()),
            CallerRights::Identified(caller) => caller.control().check_right(&caller.identity, right),
        }
    }

    /// Returns the part of a table that the caller may read.
    ///
    /// # Errors
    /// PERMISSION_DENIED if the caller may read nothing of the table. The error is the same if
    /// there is no such table.
    pub(crate) fn scope(&self, table: &TableName) -> Result<RowScope, Status> {
        let scope = match &self.rights {
            CallerRights::Unlimited => return Ok(RowScope::default()),
            CallerRights::Anonymous(_) => return Err(unknown_caller()),
            CallerRights::Identified(caller) => caller.control().scope(&caller.identity, table)?,
        };
        self.scopes.lock().push((table.clone(), scope.clone()));
        Ok(scope)
    }

    /// Counts a stream of the caller. Returns `None` if the caller has no limits.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the caller has too many streams, or began too many in a second.
    pub(crate) fn begin_stream(&self) -> Result<Option<StreamPermit>, Status> {
        let Some((limits, usage)) = self.usage() else { return Ok(None) };
        usage.begin_stream(limits, self.identity_name(), Instant::now()).map(Some)
    }

    /// Counts bytes of a snapshot that is about to be sent. Returns the time before which they must
    /// not be sent, if the caller has a limit.
    pub(crate) fn count_snapshot_bytes(&self, bytes: usize) -> Option<Instant> {
        let (limits, usage) = self.usage()?;
        usage.count_snapshot_bytes(limits, bytes, Instant::now())
    }

    /// Returns the limits of the server's newest rules, and the usage that they bound.
    fn usage(&self) -> Option<(IdentityLimits, Arc<IdentityUsage>)> {
        match &self.rights {
            CallerRights::Unlimited | CallerRights::Anonymous(_) => None,
            CallerRights::Identified(caller) => caller.rules.newest().usage(&caller.identity),
        }
    }

    /// Waits until an open call must end: its token or certificate has expired, or the rules were
    /// replaced by others that do not allow it in this form. Returns the status for its client.
    ///
    /// The call is at `path`. The future is pending for ever if no rule can end the call.
    pub(super) async fn ended(mut self, path: &str) -> Status {
        loop {
            let has_expired = match &mut self.rights {
                CallerRights::Unlimited => std::future::pending().await,
                CallerRights::Anonymous(rules) => {
                    rules.replaced().await;
                    false
                }
                CallerRights::Identified(IdentifiedCaller { identity, rules, .. }) => {
                    let (identity, control) = (identity.clone(), rules.control().clone());
                    tokio::select! {
                        biased;
                        () = rules.replaced() => false,
                        () = expired(&identity, &control) => true,
                    }
                }
            };
            if has_expired {
                return Status::unauthenticated(
                    "the caller's token or certificate has expired; reconnect with a new one",
                );
            }
            if let Err(status) = self.judge_again(path) {
                return status;
            }
        }
    }

    /// Judges the open call by the rules that have replaced those before.
    ///
    /// # Errors
    /// UNAUTHENTICATED if the credential proves no identity any more. PERMISSION_DENIED if no grant
    /// covers the call or its table. UNAVAILABLE if the client has to begin again, because the
    /// credential proves another identity, the grant is for another part of the table, or a caller
    /// of this call has to be known now.
    fn judge_again(&mut self, path: &str) -> Result<(), Status> {
        let right = required_right(path).ok_or_else(|| refusal::no_method(path))?;
        let caller = match &mut self.rights {
            CallerRights::Unlimited => return Ok(()),
            CallerRights::Anonymous(rules) => {
                let is_open = right == RequiredRight::Health && rules.control().health_is_open();
                return if is_open { Ok(()) } else { Err(refusal::closed_health()) };
            }
            CallerRights::Identified(caller) => caller,
        };
        let control = caller.control();
        let identity = control.identify(&caller.credential)?;
        if (&identity.entry, &identity.name) != (&caller.identity.entry, &caller.identity.name) {
            return Err(refusal::another_identity());
        }
        if !(right == RequiredRight::Health && control.health_is_open()) {
            control.check_right(&identity, right)?;
        }
        for (table, scope) in self.scopes.lock().iter() {
            if !control.scope(&identity, table)?.selects_same(scope) {
                return Err(refusal::another_grant(table));
            }
        }
        // The token may expire at another time now.
        caller.identity = Arc::new(identity);
        Ok(())
    }

    /// Describes the request for the audit.
    pub(crate) fn describe(&self, request: &impl fmt::Debug) {
        let mut description = format!("{request:?}");
        if let Some((end, _)) = description.char_indices().nth(DESCRIPTION_MAX) {
            description.truncate(end);
            description.push('…');
        }
        *self.description.lock() = description;
    }

    pub(super) fn description(&self) -> String {
        self.description.lock().clone()
    }
}

impl IdentifiedCaller {
    fn control(&self) -> &AccessControl {
        self.rules.control()
    }
}

/// Waits until an identity is no longer valid.
async fn expired(identity: &Identity, control: &AccessControl) {
    let Some(expires_at) = identity.expires_at else { return std::future::pending().await };
    loop {
        let left_us = expires_at.0.saturating_sub(control.now().0);
        let Ok(left_us @ 1..) = u64::try_from(left_us) else { return };
        tokio::time::sleep(Duration::from_micros(left_us).min(EXPIRY_CHECK_MAX)).await;
    }
}

fn unknown_caller() -> Status {
    Status::unauthenticated("this is only for known callers; send `authorization: Bearer TOKEN`")
}
