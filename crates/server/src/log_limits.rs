//! The limit on log lines that clients cause. A client that connects again and again must neither
//! fill the disk nor push the other lines out of the log.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::peer::ClientGroup;

/// The number of lines about an event that a group of clients may cause at once.
const BURST: u32 = 100;
/// The time after which it may cause one more.
const INTERVAL: Duration = Duration::from_millis(200);
/// The maximum number of pairs of an event and a group that are counted apart. Further groups share
/// the limits of clients from an unknown network.
const GROUPS_MAX: usize = 1024;
/// The maximum number of bytes of a client's own name in a log line.
const NAME_BYTES_MAX: usize = 128;

/// An event that clients cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientEvent {
    StreamBegins,
    StreamEnded,
    MalformedMessage,
    ContentsDiffered,
}

impl ClientEvent {
    /// Returns the `event` of its lines in the log.
    fn name(self) -> &'static str {
        match self {
            ClientEvent::StreamBegins => "stream_begun",
            ClientEvent::StreamEnded => "stream_ended",
            ClientEvent::MalformedMessage => "message_malformed",
            ClientEvent::ContentsDiffered => "client_rows_reported",
        }
    }
}

/// The limits of all events and groups.
#[derive(Default)]
pub(crate) struct LogLimits {
    state: Mutex<LogLimitState>,
}

#[derive(Default)]
struct LogLimitState {
    limits: HashMap<(ClientEvent, ClientGroup), GroupLogLimit>,
    left_out: u64,
}

/// The lines that a group may still cause.
struct GroupLogLimit {
    lines: u32,
    /// The time at which `lines` was right.
    at: Instant,
    /// The number of lines that were left out since the last report.
    left_out: u64,
}

impl GroupLogLimit {
    fn new(now: Instant) -> GroupLogLimit {
        GroupLogLimit { lines: BURST, at: now, left_out: 0 }
    }

    /// Adds the lines that the group may cause again.
    fn refill(&mut self, now: Instant) {
        let intervals = now.saturating_duration_since(self.at).as_millis() / INTERVAL.as_millis();
        let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
        self.at += INTERVAL.saturating_mul(intervals);
        self.lines = self.lines.saturating_add(intervals).min(BURST);
    }
}

impl LogLimits {
    /// Returns true if a line about an event may be logged. Counts the line otherwise.
    pub(crate) fn allows(&self, event: ClientEvent, group: ClientGroup) -> bool {
        let (now, mut state, mut key) = (Instant::now(), self.state.lock(), (event, group));
        if !state.limits.contains_key(&key) && state.limits.len() >= GROUPS_MAX {
            key.1 = ClientGroup::default();
        }
        let limit = state.limits.entry(key).or_insert_with(|| GroupLogLimit::new(now));
        limit.refill(now);
        let is_allowed = limit.lines > 0;
        limit.lines = limit.lines.saturating_sub(1);
        limit.left_out += u64::from(!is_allowed);
        state.left_out += u64::from(!is_allowed);
        is_allowed
    }

    /// Logs the number of lines that were left out for each event and group, once the group may
    /// cause lines again. Forgets the groups that have caused none for long.
    pub(crate) fn report(&self, now: Instant) {
        let mut reports = Vec::new();
        self.state.lock().limits.retain(|(event, group), limit| {
            limit.refill(now);
            if limit.lines > 0 && limit.left_out > 0 {
                reports.push((event.name(), group.clone(), std::mem::take(&mut limit.left_out)));
            }
            limit.lines < BURST
        });
        for (event, group, lines) in reports {
            tracing::warn!(
                event = "client_lines_left_out",
                kind = event, client = %group, lines,
                "log lines were left out, because a client causes too many of them"
            );
        }
    }

    /// Returns the number of lines that were left out since the start.
    pub(crate) fn left_out(&self) -> u64 {
        self.state.lock().left_out
    }
}

/// Returns the part of a client's own name that is logged.
pub(crate) fn shown_name(client_id: &str) -> &str {
    &client_id[..client_id.floor_char_boundary(NAME_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::PeerAddress;

    fn peer(last: u16) -> ClientGroup {
        ClientGroup::Network(PeerAddress::Tcp(([10, 0, (last >> 8) as u8, last as u8], 1).into()).into())
    }

    fn identity(name: &str) -> ClientGroup {
        ClientGroup::Identity(name.into())
    }

    fn allowed(limits: &LogLimits, event: ClientEvent, group: ClientGroup, lines: u32) -> u32 {
        (0..lines).map(|_| u32::from(limits.allows(event, group.clone()))).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn each_event_and_group_has_a_limit_of_its_own() {
        let limits = LogLimits::default();
        let (begins, ended) = (ClientEvent::StreamBegins, ClientEvent::StreamEnded);
        assert_eq!(allowed(&limits, begins, peer(1), 1000), BURST);
        assert_eq!(allowed(&limits, ended, peer(1), 1000), BURST);
        assert_eq!(allowed(&limits, begins, peer(2), 10), 10);
        assert_eq!(allowed(&limits, begins, identity("a"), 1000), BURST);
        assert_eq!(allowed(&limits, begins, identity("b"), 10), 10);
        assert_eq!(limits.left_out(), 3 * (1000 - u64::from(BURST)));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(allowed(&limits, begins, peer(1), 1000), 10, "five a second");
        assert_eq!(allowed(&limits, begins, peer(2), 1000), BURST);
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_were_left_out_are_reported_once_and_quiet_groups_forgotten() {
        let limits = LogLimits::default();
        allowed(&limits, ClientEvent::StreamBegins, peer(1), 150);
        let unreported =
            |limits: &LogLimits| limits.state.lock().limits.values().map(|limit| limit.left_out).sum::<u64>();
        limits.report(Instant::now());
        assert_eq!(unreported(&limits), 50, "the storm continues");
        tokio::time::advance(INTERVAL).await;
        limits.report(Instant::now());
        assert_eq!((unreported(&limits), limits.left_out()), (0, 50));
        tokio::time::advance(INTERVAL * BURST).await;
        limits.report(Instant::now());
        assert!(limits.state.lock().limits.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_groups_takes_bounded_memory_and_lines() {
        let limits = LogLimits::default();
        let lines: u32 = (0..20_000).map(|n| allowed(&limits, ClientEvent::StreamBegins, peer(n), 1)).sum();
        assert_eq!(lines as usize, GROUPS_MAX + BURST as usize);
        assert!(limits.state.lock().limits.len() <= GROUPS_MAX + 1);
    }

    #[test]
    fn a_long_name_is_cut_between_two_characters() {
        assert_eq!(shown_name("pod-1"), "pod-1");
        assert_eq!(shown_name(&"x".repeat(1000)).len(), 128);
        assert_eq!(shown_name(&"€".repeat(100)).len(), 126);
    }
}
