//! The audit: one line for each order and each refusal, with the target `audit`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::caller::Caller;
use crate::peer::PeerAddress;

/// The maximum number of refusals that are logged in one [`REFUSAL_WINDOW`]. Anyone can cause them.
const REFUSALS_MAX: u32 = 20;
const REFUSAL_WINDOW: Duration = Duration::from_secs(1);

/// The writer of the audit. It limits the lines that refused callers can cause; orders have a line
/// each.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditLog(Arc<Mutex<RefusalCount>>);

/// The refusals of the current window.
#[derive(Debug, Default)]
struct RefusalCount {
    since: Option<Instant>,
    logged: u32,
    /// The refusals that were not logged since the last one that was.
    unlogged: u64,
}

impl AuditLog {
    /// Logs an order with its result.
    pub(super) fn order(&self, caller: &Caller, rpc: &str, result: &Status) {
        let (identity, peer, request) = (caller.identity_name(), address(caller.peer()), caller.description());
        let (code, reason) = (result.code(), result.message());
        match code {
            Code::Ok => tracing::info!(
                target: "audit", event = "order_accepted", identity, peer, rpc, request, result = "accepted",
                "order"
            ),
            _ => tracing::warn!(
                target: "audit", event = "order_refused", identity, peer, rpc, request, result = ?code, reason,
                "order"
            ),
        }
    }

    /// Logs a refusal, unless there are too many of them.
    pub(super) fn refusal(
        &self,
        identity: Option<&str>,
        peer: Option<PeerAddress>,
        (rpc, request): (&str, &str),
        refused: &Status,
    ) {
        let Some(unlogged) = self.0.lock().count(Instant::now()) else { return };
        let (identity, peer, reason) = (identity.unwrap_or_default(), address(peer), refused.message());
        let result = refused.code();
        tracing::warn!(
            target: "audit", event = "call_refused", identity, peer, rpc, request, ?result, reason, unlogged,
            "refusal"
        );
    }

    /// Logs the end of a stream whose caller may not have it any more, unless there are too many
    /// refusals.
    pub(super) fn end(&self, caller: &Caller, rpc: &str, ended: &Status) {
        let Some(unlogged) = self.0.lock().count(Instant::now()) else { return };
        let (identity, peer, request) = (caller.identity_name(), address(caller.peer()), caller.description());
        let (result, reason) = (ended.code(), ended.message());
        tracing::warn!(
            target: "audit", event = "stream_revoked", identity, peer, rpc, request, ?result, reason, unlogged,
            "stream ended"
        );
    }
}

impl RefusalCount {
    /// Counts a refusal. Returns the number of earlier ones that were not logged, or `None` if this
    /// one is not logged either.
    fn count(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= REFUSAL_WINDOW) {
            self.since = Some(now);
            self.logged = 0;
        }
        if self.logged >= REFUSALS_MAX {
            self.unlogged += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

fn address(peer: Option<PeerAddress>) -> String {
    peer.map_or_else(String::new, |peer| peer.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_refusals_are_counted_and_not_logged() {
        let (mut count, begun) = (RefusalCount::default(), Instant::now());
        for _ in 0..REFUSALS_MAX {
            assert_eq!(count.count(begun), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(count.count(begun + REFUSAL_WINDOW / 2), None);
        }
        assert_eq!(count.count(begun + REFUSAL_WINDOW), Some(7), "the next window says how many were left out");
        assert_eq!(count.count(begun + REFUSAL_WINDOW), Some(0));
    }
}
