//! Histories of one database: the newest commits that a source has sent, and the forks that were noted.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;

use laredo_core::{CommitMark, CommitTime, Lsn, TableName, Xid};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::source::{SourceClock, SourceError, SourceIdentity};

/// Commits that a source remembers one by one: 2 MiB.
const MARKS_MAX: usize = 1 << 16;
/// Journals of other histories that are remembered by name.
const STRANGERS_MAX: usize = 1024;

/// A point where a database's history parted from the one that laredo was sent, or may have parted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fork {
    /// The newest position that both histories are known to share; zero where none is known.
    pub common: Lsn,
    /// No position of the abandoned history is known beyond this.
    pub abandoned: Lsn,
    /// True where the histories differ for certain. Otherwise only the proof that they do not is missing.
    pub is_certain: bool,
}

/// Lets a source wait until every table has noted a fork on disk: each drops its copy of the receipt then.
#[derive(Clone, Debug)]
pub struct Receipt(mpsc::Sender<Infallible>);

/// The source's end of a [`Receipt`].
#[derive(Debug)]
pub struct Receipts(mpsc::Receiver<Infallible>);

impl Receipt {
    /// Returns a receipt and the end that waits for all its copies.
    #[must_use]
    pub fn new() -> (Receipt, Receipts) {
        let (sender, receiver) = mpsc::channel(1);
        (Receipt(sender), Receipts(receiver))
    }

    /// Returns a receipt that nothing waits for.
    #[must_use]
    pub fn unawaited() -> Receipt {
        Receipt::new().0
    }

    /// Gives the receipt back: the fork is noted.
    pub(crate) fn give(self) {
        drop(self.0);
    }
}

impl Receipts {
    /// Waits until all copies of the receipt are given back.
    pub async fn all(mut self) {
        while self.0.recv().await.is_some() {}
    }
}

/// The judgment of a client's mark by the source's commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The marked commit is part of this history.
    Same,
    /// The marked commit is part of another history.
    Other,
    /// The commits that are remembered do not reach so far.
    #[default]
    Unknown,
}

/// The newest commits that a source has sent, without gaps, of all its tables.
#[derive(Debug, Default)]
struct CommitLog {
    marks: VecDeque<CommitMark>,
    /// Every commit after this, up to `until`, is in `marks`.
    from: Lsn,
    until: Lsn,
    /// The newest commit at or before `from`; unknown where it was never sent.
    before: CommitMark,
}

impl CommitLog {
    fn note(&mut self, mark: CommitMark) {
        if self.until == Lsn::ZERO {
            // What was committed before is not known; the commit itself is.
            (self.from, self.before) = (mark.end, mark);
        }
        if mark.end <= self.until {
            return;
        }
        self.until = mark.end;
        if self.from == mark.end {
            return;
        }
        self.marks.push_back(mark);
        if self.marks.len() > MARKS_MAX
            && let Some(oldest) = self.marks.pop_front()
        {
            (self.from, self.before) = (oldest.end, oldest);
        }
    }

    fn reach(&mut self, position: Lsn) {
        if self.until == Lsn::ZERO {
            self.from = position;
        }
        self.until = self.until.max(position);
    }

    fn newest(&self) -> CommitMark {
        self.marks.back().copied().unwrap_or(self.before)
    }

    fn judge(&self, mark: CommitMark, is_in_scope: bool) -> Verdict {
        if mark == self.before {
            return Verdict::Same;
        }
        if mark.end <= self.from || mark.end > self.until {
            return Verdict::Unknown;
        }
        match self.marks.binary_search_by_key(&mark.end, |known| known.end) {
            Ok(found) if self.marks.get(found) == Some(&mark) => Verdict::Same,
            Ok(_) => Verdict::Other,
            Err(_) if is_in_scope => Verdict::Other,
            Err(_) => Verdict::Unknown,
        }
    }
}

/// Asks a source where the database's WAL ends.
pub(crate) type AskWritten =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Lsn, SourceError>> + Send>> + Send + Sync>;

/// A source's history, as far as it is known; shared by the source's tables and their readers.
pub struct SourceHistory {
    identity: RwLock<Arc<SourceIdentity>>,
    log: Mutex<CommitLog>,
    scope: u64,
    /// Journals whose positions were found to be of another history.
    strangers: Mutex<HashSet<String>>,
    written: tokio::sync::Mutex<(Lsn, Option<Instant>)>,
    ask_written: AskWritten,
    clock: SourceClock,
}

impl Debug for SourceHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceHistory").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

impl SourceHistory {
    pub(crate) fn new(
        identity: SourceIdentity,
        tables: &[TableName],
        ask_written: AskWritten,
        clock: SourceClock,
    ) -> SourceHistory {
        SourceHistory {
            identity: RwLock::new(Arc::new(identity)),
            log: Mutex::default(),
            scope: scope_of(tables),
            strangers: Mutex::default(),
            written: tokio::sync::Mutex::new((Lsn::ZERO, None)),
            ask_written,
            clock,
        }
    }

    /// Returns the time on the database's clock, where `own` is the time on this machine's.
    #[must_use]
    pub fn source_time(&self, own: CommitTime) -> CommitTime {
        self.clock.now(own)
    }

    /// Returns which database this is, and which timelines led to it.
    #[must_use]
    pub fn identity(&self) -> Arc<SourceIdentity> {
        self.identity.read().clone()
    }

    pub(crate) fn set_identity(&self, identity: SourceIdentity) {
        *self.identity.write() = Arc::new(identity);
    }

    /// Returns a number for the tables whose commits are remembered: other servers' marks are comparable only where it is
    /// the same.
    #[must_use]
    pub fn scope(&self) -> u64 {
        self.scope
    }

    /// Says what the remembered commits make of a mark. `scope` is that of the server it comes from, or zero for a commit
    /// of one of the tables.
    #[must_use]
    pub fn judge(&self, mark: CommitMark, scope: u64) -> Verdict {
        self.log.lock().judge(mark, scope == 0 || scope == self.scope)
    }

    /// Remembers that the positions of a journal are of another history.
    pub fn note_stranger(&self, instance: &str) {
        let mut strangers = self.strangers.lock();
        if !instance.is_empty() && strangers.len() < STRANGERS_MAX {
            strangers.insert(instance.to_owned());
        }
    }

    /// Returns true if the positions of a journal were found to be of another history.
    #[must_use]
    pub fn is_stranger(&self, instance: &str) -> bool {
        self.strangers.lock().contains(instance)
    }

    /// Returns true if the database's WAL ends before a position, so that it can only be another history's; `None` where the
    /// database cannot be asked. Those who ask at the same time share one answer.
    pub async fn is_beyond_wal(&self, position: Lsn) -> Option<bool> {
        let asked_at = Instant::now();
        let mut written = self.written.lock().await;
        // An answer from before the question may be out of date.
        if written.0 < position && written.1.is_none_or(|at| at < asked_at) {
            let at = Instant::now();
            match (self.ask_written)().await {
                Ok(end) => *written = (end, Some(at)),
                Err(error) => {
                    tracing::debug!(%error, "cannot ask the database where its WAL ends");
                    return None;
                }
            }
        }
        Some(written.0 < position)
    }

    pub(crate) fn note(&self, mark: CommitMark) {
        self.log.lock().note(mark);
    }

    pub(crate) fn reach(&self, position: Lsn) {
        self.log.lock().reach(position);
    }

    pub(crate) fn newest(&self) -> CommitMark {
        self.log.lock().newest()
    }

    /// Begins again: commits may be missing, or are of another history.
    pub(crate) fn forget_commits(&self) {
        *self.log.lock() = CommitLog::default();
    }

    /// Begins with the newest commit at or before the position that the stream resumes after.
    pub(crate) fn seed(&self, position: Lsn, newest: CommitMark) {
        *self.log.lock() = CommitLog { marks: VecDeque::new(), from: position, until: position, before: newest };
    }

    /// Forgets what was learned of the WAL's end: the database's storage was put back.
    pub(crate) async fn forget_written(&self) {
        *self.written.lock().await = (Lsn::ZERO, None);
    }
}

/// Returns a hash of the tables' names that is the same in every server and version (FNV-1a), and never zero.
fn scope_of(tables: &[TableName]) -> u64 {
    let mut names: Vec<String> = tables.iter().map(|table| format!("{}\0{}\0", table.schema, table.table)).collect();
    names.sort();
    let hash = names
        .iter()
        .flat_map(|name| name.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash.max(1)
}

/// A mark as clients and servers exchange it: with the scope of the server that it comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScopedMark {
    /// The commit.
    pub mark: CommitMark,
    /// The scope of the server that named it; zero for a commit of the table.
    pub scope: u64,
}

impl ScopedMark {
    /// Returns the mark if it names a commit at or before a position.
    #[must_use]
    pub fn at(self, position: Lsn) -> Option<ScopedMark> {
        self.mark.known().filter(|mark| mark.end <= position).map(|_| self)
    }
}

impl From<laredo_proto::replication::CommitMark> for ScopedMark {
    fn from(wire: laredo_proto::replication::CommitMark) -> ScopedMark {
        let committed_at = laredo_core::CommitTime::from_unix_us(wire.committed_at_us);
        ScopedMark { mark: CommitMark { end: Lsn(wire.end), xid: Xid(wire.xid), committed_at }, scope: wire.scope }
    }
}

impl From<ScopedMark> for laredo_proto::replication::CommitMark {
    fn from(ScopedMark { mark, scope }: ScopedMark) -> laredo_proto::replication::CommitMark {
        let (end, xid, committed_at_us) = (mark.end.0, mark.xid.0, mark.committed_at.unix_us());
        laredo_proto::replication::CommitMark { end, xid, committed_at_us, scope }
    }
}

#[cfg(test)]
mod tests {
    use laredo_core::CommitTime;

    use super::*;

    fn mark(end: u64, xid: u64) -> CommitMark {
        CommitMark { end: Lsn(end), xid: Xid(xid), committed_at: CommitTime(7) }
    }

    #[test]
    fn a_mark_is_judged_as_far_as_commits_are_remembered_without_gaps() {
        let mut log = CommitLog::default();
        log.reach(Lsn(100));
        (2..=5).for_each(|n| log.note(mark(n * 100, n)));
        log.reach(Lsn(600));
        for (asked, in_scope, expected) in [
            (mark(100, 1), true, Verdict::Unknown),
            (mark(200, 2), true, Verdict::Same),
            (mark(200, 9), false, Verdict::Other),
            (CommitMark { committed_at: CommitTime(8), ..mark(200, 2) }, true, Verdict::Other),
            (mark(250, 2), true, Verdict::Other),
            (mark(250, 2), false, Verdict::Unknown),
            (mark(550, 6), true, Verdict::Other),
            (mark(601, 6), true, Verdict::Unknown),
        ] {
            assert_eq!(log.judge(asked, in_scope), expected, "{asked:?}");
        }
        assert_eq!(log.newest(), mark(500, 5));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_begins_where_it_is_complete() {
        let mut log = CommitLog::default();
        log.note(mark(50, 5));
        assert_eq!(log.judge(mark(50, 5), true), Verdict::Same);
        assert_eq!(log.judge(mark(49, 4), true), Verdict::Unknown, "nothing is known of what came before");
        (0..MARKS_MAX as u64 + 10).for_each(|n| log.note(mark(100 + n, n)));
        assert_eq!(log.marks.len(), MARKS_MAX);
        assert_eq!(log.judge(mark(101, 1), true), Verdict::Unknown, "of long ago");
        assert_eq!(log.judge(mark(100 + 10, 10), true), Verdict::Same);
    }

    #[test]
    fn a_scope_names_a_set_of_tables() {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<TableName>>();
        assert_eq!(scope_of(&names(&["public.a", "public.b"])), scope_of(&names(&["public.b", "public.a"])));
        assert_ne!(scope_of(&names(&["public.a"])), scope_of(&names(&["public.b"])));
    }
}
