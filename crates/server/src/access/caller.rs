//! The caller of an rpc, as services see it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::TableName;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::control::AccessControl;
use super::grant::RowScope;
use super::identity::Identity;
use super::limits::{IdentityUsage, StreamPermit};
use crate::peer::{ClientGroup, PeerAddress, PeerInfo};

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
}

/// The rights of a caller.
#[derive(Clone)]
pub(super) enum CallerRights {
    /// The server has no access rules, so everyone may do everything.
    Unlimited,
    /// The caller is not known, and the call needs no rights.
    Anonymous,
    Identified(Arc<Identity>, Arc<AccessControl>),
}

impl Caller {
    pub(super) fn new(peer: Option<&PeerInfo>, rights: CallerRights) -> Caller {
        Caller { peer: peer.map(|peer| peer.address), rights, description: Arc::default() }
    }

    /// Returns the caller of a server without access rules.
    pub(crate) fn unlimited(peer: Option<&PeerInfo>) -> Caller {
        Caller::new(peer, CallerRights::Unlimited)
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        match &self.rights {
            CallerRights::Unlimited | CallerRights::Anonymous => None,
            CallerRights::Identified(identity, _) => Some(identity),
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
            CallerRights::Anonymous => false,
            CallerRights::Identified(identity, control) => control.grants().observes(identity),
        }
    }

    /// Returns the part of a table that the caller may read.
    ///
    /// # Errors
    /// PERMISSION_DENIED if the caller may read nothing of the table. The error is the same if
    /// there is no such table.
    pub(crate) fn scope(&self, table: &TableName) -> Result<RowScope, Status> {
        match &self.rights {
            CallerRights::Unlimited => Ok(RowScope::default()),
            CallerRights::Anonymous => Err(Status::unauthenticated("rows are only for known callers")),
            CallerRights::Identified(identity, control) => control.scope(identity, table),
        }
    }

    /// Counts a stream of the caller. Returns `None` if the caller has no limits.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the caller has too many streams, or began too many in a second.
    pub(crate) fn begin_stream(&self) -> Result<Option<StreamPermit>, Status> {
        let Some(usage) = self.usage() else { return Ok(None) };
        usage.begin_stream(self.identity_name(), Instant::now()).map(Some)
    }

    /// Counts bytes of a snapshot. Returns the time before which the caller must be sent no more,
    /// if it has a limit.
    pub(crate) fn count_snapshot_bytes(&self, bytes: usize) -> Option<Instant> {
        self.usage()?.count_snapshot_bytes(bytes, Instant::now())
    }

    fn usage(&self) -> Option<Arc<IdentityUsage>> {
        match &self.rights {
            CallerRights::Unlimited | CallerRights::Anonymous => None,
            CallerRights::Identified(identity, control) => control.usage(identity),
        }
    }

    /// Returns true if the caller's identity becomes invalid at some time.
    pub(super) fn expires(&self) -> bool {
        self.identity().is_some_and(|identity| identity.expires_at.is_some())
    }

    /// Waits until the caller's identity is no longer valid.
    pub(super) async fn expired(&self) {
        let CallerRights::Identified(identity, control) = &self.rights else { return std::future::pending().await };
        let Some(expires_at) = identity.expires_at else { return std::future::pending().await };
        loop {
            let left_us = expires_at.0.saturating_sub(control.now().0);
            let Ok(left_us @ 1..) = u64::try_from(left_us) else { return };
            tokio::time::sleep(Duration::from_micros(left_us).min(EXPIRY_CHECK_MAX)).await;
        }
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
