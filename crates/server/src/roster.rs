//! The open streams of a table, and the comparison of their clients' rows with the server's.
//!
//! A comparison round asks every client that can answer. Once the client has been sent everything
//! up to the head, its stream sends a heartbeat with a [`CheckId`]. The client then reports the
//! checksum of its own rows at the heartbeat's position (`ReportChecksum`). A round ends when every
//! client is settled, or when its time is over.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use laredo_core::{Checksum, Lsn, TableName};
use laredo_engine::journal::Head;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::refusal;
use crate::request::SessionRequest;

#[cfg(test)]
mod tests;

/// The time after the end of a stream in which an answer is still accepted. A client that finds
/// that its rows are wrong ends its stream while its answer is under way.
const LAST_ANSWER: Duration = Duration::from_secs(2);

const NO_CHECKSUM: &str = "the server has no checksum of this table's rows";
const NOTHING_TO_COMPARE: &str = "the client has no checksum of its rows at the server's position";
const UNANSWERED: &str = "it was asked and did not answer in time";
const UNASKED: &str = "it could not be asked in time: it has not been sent everything up to the server's position";
const GONE: &str = "its stream ended before it answered";

/// The name of one check of one client. Only the client that was sent it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CheckId([u8; 16]);

impl CheckId {
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Returns `None` if the bytes cannot be a check's ID.
    pub(crate) fn from_wire(bytes: &[u8]) -> Option<CheckId> {
        bytes.try_into().ok().map(CheckId)
    }
}

/// A client's report of its own rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChecksumReport {
    pub(crate) check: CheckId,
    pub(crate) position: Lsn,
    /// Missing if the client has no rows of the position to compare.
    pub(crate) checksum: Option<Checksum>,
    pub(crate) rows: Option<u64>,
}

/// The result of a round for one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ComparedClient {
    pub(crate) client_id: String,
    pub(crate) since: Instant,
    pub(crate) outcome: ComparisonOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ComparisonOutcome {
    Equal {
        position: Lsn,
        rows: Option<u64>,
    },
    Differs {
        position: Lsn,
        rows: Option<u64>,
        ours: Checksum,
        theirs: Checksum,
    },
    /// The client cannot be compared, for this reason.
    NotComparable(&'static str),
    /// The client has not answered, for this reason.
    NoAnswer(&'static str),
    /// The stream ended before the client answered.
    Left(&'static str),
}

/// The open streams of one table.
pub(crate) struct StreamRoster {
    source: Box<str>,
    table: TableName,
    streams: Mutex<RosterStreams>,
    /// Notified when a client of the current round was settled or left.
    moved: Notify,
    /// Held during a round, so that rounds run one at a time.
    turn: tokio::sync::Mutex<()>,
    /// The number of answers since the start that differed.
    differing: AtomicU64,
    /// The key of the hash that generates the names of checks, from the operating system's
    /// randomness.
    secret: RandomState,
}

#[derive(Default)]
struct RosterStreams {
    members: BTreeMap<u64, RosterMember>,
    /// The members that were sent a check and have not answered it.
    asked: HashMap<CheckId, u64>,
    next_member: u64,
    next_check: u64,
}

/// A stream while it is open. A round keeps its streams until the round's end.
struct RosterMember {
    client_id: String,
    since: Instant,
    /// The reason why the client's rows cannot be compared, if there is one.
    obstacle: Option<&'static str>,
    signal: Arc<CheckSignal>,
    check: ClientCheck,
    left_at: Option<Instant>,
}

/// The part of a member that its stream looks at after each transaction.
#[derive(Default)]
struct CheckSignal {
    is_wanted: AtomicBool,
    wanted: Notify,
}

#[derive(Clone, Copy, Debug)]
enum ClientCheck {
    /// The stream is not part of a round.
    None,
    /// The stream must send the check when the client has everything.
    Wanted,
    /// The client was sent the check, and this was the server's checksum at this position.
    Sent {
        position: Lsn,
        checksum: Checksum,
    },
    Settled(ComparisonOutcome),
}

/// A stream's membership in the roster, which ends when this is dropped.
pub(crate) struct RosterMembership {
    roster: Arc<StreamRoster>,
    number: u64,
    signal: Arc<CheckSignal>,
}

impl StreamRoster {
    pub(crate) fn new(source: &str, table: TableName) -> StreamRoster {
        StreamRoster {
            source: source.into(),
            table,
            streams: Mutex::default(),
            moved: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            differing: AtomicU64::new(0),
            secret: RandomState::new(),
        }
    }

    /// Adds a stream.
    pub(crate) fn join(self: &Arc<Self>, ask: &SessionRequest) -> RosterMembership {
        let signal = Arc::<CheckSignal>::default();
        let member = RosterMember {
            client_id: ask.client_id.clone(),
            since: Instant::now(),
            obstacle: ask.comparison_obstacle(),
            signal: signal.clone(),
            check: ClientCheck::None,
            left_at: None,
        };
        let mut streams = self.streams.lock();
        let number = streams.next_member;
        streams.next_member += 1;
        streams.members.insert(number, member);
        RosterMembership { roster: self.clone(), number, signal }
    }

    /// Returns the number of answers since the start that differed.
    pub(crate) fn differing(&self) -> u64 {
        self.differing.load(Ordering::Relaxed)
    }

    /// Compares the rows of all clients whose streams are open now. It takes at most `wait`, in
    /// addition to waiting for an earlier round.
    pub(crate) async fn compare(&self, wait: Duration) -> Vec<ComparedClient> {
        let _turn = self.turn.lock().await;
        let round = ComparisonRound::begin(self);
        let deadline = Instant::now() + wait;
        while let Some(at) = round.settle(Instant::now(), deadline) {
            // The loop continues after a notification and after the time limit alike.
            let _ = timeout_at(at, self.moved.notified()).await;
        }
        round.results()
    }

    /// Accepts a client's answer.
    ///
    /// # Errors
    /// Returns an error if the check is unknown, or is for another position.
    pub(crate) fn answer(&self, report: ChecksumReport) -> Result<(), Status> {
        let mut streams = self.streams.lock();
        let number = streams.asked.get(&report.check).copied();
        let Some(member) = number.and_then(|number| streams.members.get_mut(&number)) else {
            return Err(refusal::unknown_check(&self.table));
        };
        let ClientCheck::Sent { position, checksum: ours } = member.check else {
            return Err(refusal::unknown_check(&self.table));
        };
        if position != report.position {
            return Err(refusal::malformed("source_position", format!("the check is of {position}")));
        }
        let rows = report.rows;
        let outcome = match report.checksum {
            None => ComparisonOutcome::NotComparable(NOTHING_TO_COMPARE),
            Some(theirs) if theirs == ours => ComparisonOutcome::Equal { position, rows },
            Some(theirs) => {
                let (source, table, client_id) = (&*self.source, &self.table, &member.client_id);
                self.differing.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    event = "client_rows_differ",
                    source, %table, client_id, %position, %ours, %theirs, rows,
                    "a client's rows differ from the server's; a client of this version loads all of them again"
                );
                ComparisonOutcome::Differs { position, rows, ours, theirs }
            }
        };
        member.check = ClientCheck::Settled(outcome);
        streams.asked.remove(&report.check);
        drop(streams);
        self.moved.notify_one();
        Ok(())
    }

    /// Returns an ID that cannot be guessed: two words of a keyed hash of a number that is never
    /// reused.
    fn check_id(&self, number: u64) -> CheckId {
        let word = |half: u8| u128::from(self.secret.hash_one((number, half)));
        CheckId((word(0) << 64 | word(1)).to_be_bytes())
    }
}

impl RosterMembership {
    /// Returns true if the client must be asked for its checksum.
    pub(crate) fn is_wanted(&self) -> bool {
        self.signal.is_wanted.load(Ordering::Acquire)
    }

    /// Waits until [`RosterMembership::is_wanted`] may have become true.
    pub(crate) async fn wanted(&self) {
        self.signal.wanted.notified().await;
    }

    /// Returns the check to send to the client with this head, if there is one to send. The client
    /// must have been sent everything up to the head, and nothing beyond.
    pub(crate) fn take_check(&self, head: Head) -> Option<CheckId> {
        if !self.is_wanted() {
            return None;
        }
        let mut streams = self.roster.streams.lock();
        let streams = &mut *streams;
        let member = streams.members.get_mut(&self.number)?;
        let ClientCheck::Wanted = member.check else { return None };
        self.signal.is_wanted.store(false, Ordering::Release);
        let Some(checksum) = head.checksum else {
            member.check = ClientCheck::Settled(ComparisonOutcome::NotComparable(NO_CHECKSUM));
            self.roster.moved.notify_one();
            return None;
        };
        let id = self.roster.check_id(streams.next_check);
        streams.next_check += 1;
        member.check = ClientCheck::Sent { position: head.position, checksum };
        streams.asked.insert(id, self.number);
        Some(id)
    }
}

impl Drop for RosterMembership {
    fn drop(&mut self) {
        let mut streams = self.roster.streams.lock();
        match streams.members.get_mut(&self.number) {
            Some(RosterMember { check: ClientCheck::None, .. }) | None => drop(streams.members.remove(&self.number)),
            Some(member) => member.left_at = Some(Instant::now()),
        }
        drop(streams);
        self.roster.moved.notify_one();
    }
}

/// The current round. Dropping it ends the round.
struct ComparisonRound<'a> {
    roster: &'a StreamRoster,
}

impl<'a> ComparisonRound<'a> {
    fn begin(roster: &'a StreamRoster) -> ComparisonRound<'a> {
        let mut streams = roster.streams.lock();
        for member in streams.members.values_mut() {
            match member.obstacle {
                Some(reason) => member.check = ClientCheck::Settled(ComparisonOutcome::NotComparable(reason)),
                None => {
                    member.check = ClientCheck::Wanted;
                    member.signal.is_wanted.store(true, Ordering::Release);
                    member.signal.wanted.notify_one();
                }
            }
        }
        ComparisonRound { roster }
    }

    /// Settles the clients whose time is over. Returns the time of the next call, or `None` if all
    /// clients are settled.
    fn settle(&self, now: Instant, deadline: Instant) -> Option<Instant> {
        let mut streams = self.roster.streams.lock();
        let mut next: Option<Instant> = None;
        for member in streams.members.values_mut() {
            let (until, unanswered) = match member.check {
                ClientCheck::None | ClientCheck::Settled(_) => continue,
                ClientCheck::Wanted => (member.left_at.unwrap_or(deadline), UNASKED),
                ClientCheck::Sent { .. } => {
                    let last = member.left_at.and_then(|left_at| left_at.checked_add(LAST_ANSWER));
                    (last.unwrap_or(deadline), UNANSWERED)
                }
            };
            let until = until.min(deadline);
            if until > now {
                next = Some(next.map_or(until, |next| next.min(until)));
                continue;
            }
            member.check = ClientCheck::Settled(match member.left_at {
                Some(_) => ComparisonOutcome::Left(GONE),
                None => ComparisonOutcome::NoAnswer(unanswered),
            });
        }
        next
    }

    fn results(&self) -> Vec<ComparedClient> {
        let streams = self.roster.streams.lock();
        let settled = |member: &RosterMember| match member.check {
            ClientCheck::Settled(outcome) => {
                Some(ComparedClient { client_id: member.client_id.clone(), since: member.since, outcome })
            }
            ClientCheck::None | ClientCheck::Wanted | ClientCheck::Sent { .. } => None,
        };
        streams.members.values().filter_map(settled).collect()
    }
}

impl Drop for ComparisonRound<'_> {
    fn drop(&mut self) {
        let mut streams = self.roster.streams.lock();
        streams.asked.clear();
        streams.members.retain(|_, member| member.left_at.is_none());
        for member in streams.members.values_mut() {
            member.check = ClientCheck::None;
            member.signal.is_wanted.store(false, Ordering::Release);
        }
    }
}
