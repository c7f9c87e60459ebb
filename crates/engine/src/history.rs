//! The histories of a database: the newest commits that a source has sent.

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use laredo_core::{CommitMark, CommitTime, Lsn, ScopedMark, SourceIdentity, TableName};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::source::{SourceClock, SourceError};

/// The number of commits that a source remembers. They take up to 3 MiB.
const MARKS_MAX: usize = 1 << 16;
/// The maximum number of journals of other histories that are remembered by name.
const STRANGERS_MAX: usize = 1024;

/// The verdict on a client's mark, by the source's commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MarkVerdict {
    /// The marked commit is part of this history.
    Same,
    /// The marked commit is part of another history.
    Other,
    /// The remembered commits do not decide it.
    #[default]
    Unknown,
}

/// The newest commits of all tables that a source has sent, without gaps.
#[derive(Debug, Default)]
struct CommitLog {
    marks: VecDeque<CommitMark>,
    /// The position after which `marks` has every commit, up to `until`.
    from: Lsn,
    until: Lsn,
    /// The newest commit at or before `from`; unknown if it was never sent.
    before: CommitMark,
}

impl CommitLog {
    fn note_commit(&mut self, mark: CommitMark) {
        if self.until == Lsn::ZERO {
            // Earlier commits are unknown, but this commit is known.
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

    fn advance_to(&mut self, position: Lsn) {
        if self.until == Lsn::ZERO {
            self.from = position;
        }
        self.until = self.until.max(position);
    }

    fn newest(&self) -> CommitMark {
        self.marks.back().copied().unwrap_or(self.before)
    }

    fn judge(&self, mark: CommitMark, is_in_scope: bool) -> MarkVerdict {
        if mark == self.before {
            return MarkVerdict::Same;
        }
        if mark.end <= self.from || mark.end > self.until {
            return MarkVerdict::Unknown;
        }
        match self.marks.binary_search_by_key(&mark.end, |known| known.end) {
            Ok(found) if self.marks.get(found) == Some(&mark) => MarkVerdict::Same,
            Ok(_) => MarkVerdict::Other,
            Err(_) if is_in_scope => MarkVerdict::Other,
            Err(_) => MarkVerdict::Unknown,
        }
    }
}

/// A function that asks a source for the end of the database's WAL.
pub(crate) type WalEndQuery =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Lsn, SourceError>> + Send>> + Send + Sync>;

/// The history of a source, as far as it is known. The source's tables and their readers share it.
pub struct SourceHistory {
    identity: RwLock<Arc<SourceIdentity>>,
    log: Mutex<CommitLog>,
    scope: AtomicU64,
    /// The journals whose positions were found to belong to another history.
    strangers: Mutex<HashSet<String>>,
    written: tokio::sync::Mutex<(Lsn, Option<Instant>)>,
    ask_written: WalEndQuery,
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
        ask_written: WalEndQuery,
        clock: SourceClock,
    ) -> SourceHistory {
        SourceHistory {
            identity: RwLock::new(Arc::new(identity)),
            log: Mutex::default(),
            scope: AtomicU64::new(scope_of(tables)),
            strangers: Mutex::default(),
            written: tokio::sync::Mutex::new((Lsn::ZERO, None)),
            ask_written,
            clock,
        }
    }

    /// Returns the time on the database's clock when this machine's clock shows `own`.
    #[must_use]
    pub fn source_time(&self, own: CommitTime) -> CommitTime {
        self.clock.now(own)
    }

    /// Returns the identity of the database, with the timelines that led to it.
    #[must_use]
    pub fn identity(&self) -> Arc<SourceIdentity> {
        self.identity.read().clone()
    }

    pub(crate) fn set_identity(&self, identity: SourceIdentity) {
        *self.identity.write() = Arc::new(identity);
    }

    /// Returns a number that identifies the set of tables whose commits are remembered. Marks of
    /// two servers are comparable only if their scopes are equal.
    #[must_use]
    pub fn scope(&self) -> u64 {
        self.scope.load(Ordering::Relaxed)
    }

    /// Begins a run with these tables.
    pub(crate) fn begin_tables(&self, tables: &[TableName]) {
        self.scope.store(scope_of(tables), Ordering::Relaxed);
    }

    /// Handles a change of the tables during a run, before it is made. Commits of the tables that
    /// are added or removed are not all remembered. So until the next run, the scope is one that no
    /// other server has. `changed_at` makes it different.
    pub(crate) fn change_tables(&self, tables: &[TableName], changed_at: CommitTime) {
        let change = TableName::new("", changed_at.0.to_string());
        let named: Vec<TableName> = tables.iter().cloned().chain([change]).collect();
        self.scope.store(scope_of(&named), Ordering::Relaxed);
    }

    /// Returns the verdict of the remembered commits on a mark. All commits of the reader's table
    /// that end after `complete_from` are among them, if any are. A mark of scope zero is of such a
    /// commit.
    pub(crate) fn judge(&self, mark: ScopedMark, complete_from: Lsn) -> MarkVerdict {
        let ScopedMark { commit, scope } = mark;
        let is_in_scope = if scope == 0 { commit.end > complete_from } else { scope == self.scope() };
        self.log.lock().judge(commit, is_in_scope)
    }

    /// Remembers that the positions of a journal belong to another history.
    pub fn note_stranger(&self, instance: &str) {
        let mut strangers = self.strangers.lock();
        if !instance.is_empty() && strangers.len() < STRANGERS_MAX {
            strangers.insert(instance.to_owned());
        }
    }

    /// Returns true if the positions of a journal were found to belong to another history.
    #[must_use]
    pub fn is_stranger(&self, instance: &str) -> bool {
        self.strangers.lock().contains(instance)
    }

    /// Returns true if the database's WAL ends before a position, which then belongs to another
    /// history.
    ///
    /// Returns `None` if the database cannot be asked. Concurrent callers share one answer.
    pub async fn is_beyond_wal(&self, position: Lsn) -> Option<bool> {
        let asked_at = Instant::now();
        let mut written = self.written.lock().await;
        // An answer from before this call may be out of date.
        if written.0 < position && written.1.is_none_or(|at| at < asked_at) {
            let at = Instant::now();
            match (self.ask_written)().await {
                Ok(end) => *written = (end, Some(at)),
                Err(error) => {
                    tracing::debug!(event = "wal_end_unknown", %error, "cannot ask the database where its WAL ends");
                    return None;
                }
            }
        }
        Some(written.0 < position)
    }

    pub(crate) fn note_commit(&self, mark: CommitMark) {
        self.log.lock().note_commit(mark);
    }

    pub(crate) fn advance_to(&self, position: Lsn) {
        self.log.lock().advance_to(position);
    }

    pub(crate) fn newest(&self) -> CommitMark {
        self.log.lock().newest()
    }

    /// Forgets all commits, because some may be missing or belong to another history.
    pub(crate) fn forget_commits(&self) {
        *self.log.lock() = CommitLog::default();
    }

    /// Starts with the newest commit at or before the position after which the stream resumes.
    pub(crate) fn seed(&self, position: Lsn, newest: CommitMark) {
        *self.log.lock() = CommitLog { marks: VecDeque::new(), from: position, until: position, before: newest };
    }

    /// Forgets the known end of the WAL, because the database's storage was restored.
    pub(crate) async fn forget_written(&self) {
        *self.written.lock().await = (Lsn::ZERO, None);
    }
}

/// Returns a hash (FNV-1a) of the tables' names. It is the same in every server and version, and
/// never zero.
fn scope_of(tables: &[TableName]) -> u64 {
    let mut names: Vec<String> = tables.iter().map(|table| format!("{}\0{}\0", table.schema, table.table)).collect();
    names.sort();
    let hash = names
        .iter()
        .flat_map(|name| name.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use laredo_core::Xid;

    use super::*;

    fn mark(end: u64, xid: u64) -> CommitMark {
        CommitMark { end: Lsn(end), xid: Xid(xid), committed_at: CommitTime(7) }
    }

    #[test]
    fn a_mark_is_judged_as_far_as_commits_are_remembered_without_gaps() {
        let mut log = CommitLog::default();
        log.advance_to(Lsn(100));
        (2..=5).for_each(|n| log.note_commit(mark(n * 100, n)));
        log.advance_to(Lsn(600));
        for (asked, in_scope, expected) in [
            (mark(100, 1), true, MarkVerdict::Unknown),
            (mark(200, 2), true, MarkVerdict::Same),
            (mark(200, 9), false, MarkVerdict::Other),
            (CommitMark { committed_at: CommitTime(8), ..mark(200, 2) }, true, MarkVerdict::Other),
            (mark(250, 2), true, MarkVerdict::Other),
            (mark(250, 2), false, MarkVerdict::Unknown),
            (mark(550, 6), true, MarkVerdict::Other),
            (mark(601, 6), true, MarkVerdict::Unknown),
        ] {
            assert_eq!(log.judge(asked, in_scope), expected, "{asked:?}");
        }
        assert_eq!(log.newest(), mark(500, 5));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_begins_where_it_is_complete() {
        let mut log = CommitLog::default();
        log.note_commit(mark(50, 5));
        assert_eq!(log.judge(mark(50, 5), true), MarkVerdict::Same);
        assert_eq!(log.judge(mark(49, 4), true), MarkVerdict::Unknown, "nothing is known of what came before");
        (0..MARKS_MAX as u64 + 10).for_each(|n| log.note_commit(mark(100 + n, n)));
        assert_eq!(log.marks.len(), MARKS_MAX);
        assert_eq!(log.judge(mark(101, 1), true), MarkVerdict::Unknown, "of long ago");
        assert_eq!(log.judge(mark(100 + 10, 10), true), MarkVerdict::Same);
    }

    #[test]
    fn a_scope_names_a_set_of_tables() {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<TableName>>();
        assert_eq!(scope_of(&names(&["public.a", "public.b"])), scope_of(&names(&["public.b", "public.a"])));
        assert_ne!(scope_of(&names(&["public.a"])), scope_of(&names(&["public.b"])));
    }
}
