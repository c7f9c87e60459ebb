//! The proof that the database still contains what was sent: PostgreSQL sends the newest commits
//! again, and each is compared.

use std::collections::{BTreeMap, VecDeque};

use laredo_core::{CommitMark, Lsn};
use laredo_engine::source::TableIndex;

/// The number of commits that are remembered one by one. The acknowledged position stays before
/// them.
const COMMITS_KEPT: usize = 8;
/// The maximum number of groups that remember the commits after the acknowledged position. A table
/// that is only kept in snapshots acknowledges hours of commits at once.
const GROUPS_MAX: usize = 4096;
/// The WAL that may follow a commit while the acknowledged position still stays before it, in
/// bytes. PostgreSQL must not keep WAL for a table that does not change.
const HELD_BYTES_MAX: u64 = 16 << 20;

/// A table's state that an earlier run has kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptTable {
    /// The index of the table.
    pub table: TableIndex,
    /// The position up to which every commit was kept.
    pub position: Lsn,
    /// The newest commit of any table up to that position; all zeros if it is unknown.
    pub mark: CommitMark,
}

/// A commit that was sent, with the start of its record. A stream from there sends it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SentCommit {
    begins: Lsn,
    mark: CommitMark,
}

/// The newest commits that the stream has sent, of all followed tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct SentCommits {
    newest: VecDeque<SentCommit>,
    /// The position after which every sent commit is in `newest`.
    from: Lsn,
    /// All commits from the oldest one that the acknowledged position has to stay before.
    groups: VecDeque<CommitGroup>,
}

/// A run of consecutive commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CommitGroup {
    /// The start of the first commit record.
    begins: Lsn,
    /// The end of the first commit record.
    first: Lsn,
    /// The end of the last commit record.
    last: Lsn,
}

impl SentCommits {
    /// Starts again after a position.
    pub(crate) fn begin(&mut self, from: Lsn) {
        *self = SentCommits { from, ..SentCommits::default() };
    }

    /// Adds a commit, unless it is not newer than the newest.
    pub(crate) fn note(&mut self, begins: Lsn, mark: CommitMark) {
        if self.newest.back().is_some_and(|newest| newest.mark.end >= mark.end) {
            return;
        }
        self.newest.push_back(SentCommit { begins, mark });
        if self.newest.len() > COMMITS_KEPT
            && let Some(oldest) = self.newest.pop_front()
        {
            self.from = oldest.mark.end;
        }
        self.groups.push_back(CommitGroup { begins, first: mark.end, last: mark.end });
        if self.groups.len() > GROUPS_MAX {
            self.join_groups();
        }
    }

    /// Returns the newest commit; all zeros if none is known.
    pub(crate) fn newest(&self) -> CommitMark {
        self.newest.back().map(|commit| commit.mark).unwrap_or_default()
    }

    /// Joins groups pairwise, except the newest ones.
    fn join_groups(&mut self) {
        let newest = self.groups.split_off(self.groups.len() - COMMITS_KEPT);
        let groups: Vec<CommitGroup> = self.groups.drain(..).collect();
        let join = |pair: &[CommitGroup]| Some(CommitGroup { last: pair.last()?.last, ..*pair.first()? });
        self.groups = groups.chunks(2).filter_map(join).chain(newest).collect();
    }

    /// Returns the position that may be acknowledged. PostgreSQL can send the newest commits before
    /// `acknowledged` again, unless they are far behind.
    pub(crate) fn hold(&self, acknowledged: Lsn) -> Lsn {
        let before = self.before(acknowledged);
        let near = Lsn(acknowledged.0.saturating_sub(HELD_BYTES_MAX));
        let newest = self.groups.range(before.saturating_sub(COMMITS_KEPT)..before);
        let held = { newest }.find(|group| group.last >= near);
        held.map_or(acknowledged, |held| acknowledged.min(held.begins))
    }

    /// Forgets the commits that no later acknowledged position has to stay before.
    pub(crate) fn forget(&mut self, acknowledged: Lsn) {
        self.groups.drain(..self.before(acknowledged).saturating_sub(COMMITS_KEPT));
    }

    fn before(&self, acknowledged: Lsn) -> usize {
        self.groups.partition_point(|group| group.first <= acknowledged)
    }

    /// Returns the position where a stream has to begin so that it sends the commits again, and the
    /// proof that it has to give.
    /// `tables` has for each table the position after which every commit of it was sent.
    fn prove(
        &self,
        tables: impl Iterator<Item = (TableIndex, Lsn)>,
        confirmed: Lsn,
        resume: Lsn,
    ) -> (Lsn, HistoryProof) {
        let begins = self.newest.front().map_or(self.from, |oldest| oldest.begins);
        let from = begins.max(confirmed).min(resume);
        let expected = self.newest.iter().filter(|commit| commit.begins >= from).map(|commit| commit.mark);
        let tables = tables.map(|(table, complete_after)| (table, (from.max(complete_after), resume))).collect();
        (from, HistoryProof { expected: expected.collect(), tables, common: Lsn::ZERO })
    }
}

/// The evidence that the database is not the one that was followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: its storage was restored to an earlier state, or another server has taken its place")]
pub struct HistoryMismatch {
    what: String,
    /// The newest commit that both histories contain.
    pub(crate) common: Lsn,
}

/// The commits that a stream has to send again before anything new is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HistoryProof {
    /// The commits that have to arrive.
    expected: VecDeque<CommitMark>,
    /// For each table, a range of positions (start excluded) in which no other commit may arrive.
    tables: BTreeMap<TableIndex, (Lsn, Lsn)>,
    /// The newest expected commit that has arrived.
    common: Lsn,
}

impl HistoryProof {
    /// Checks a commit that has arrived and that changed these tables.
    pub(crate) fn commit(
        &mut self,
        mark: CommitMark,
        tables: impl IntoIterator<Item = TableIndex>,
    ) -> Result<(), HistoryMismatch> {
        if let Some(expected) = self.expected.front() {
            if expected.end < mark.end || (expected.end == mark.end && *expected != mark) {
                return Err(self.missing(*expected));
            }
            if *expected == mark {
                self.common = mark.end;
                self.expected.pop_front();
                return Ok(());
            }
        }
        let is_unknown = |table: TableIndex| {
            self.tables.get(&table).is_some_and(|(after, until)| *after < mark.end && mark.end <= *until)
        };
        match tables.into_iter().find(|table| is_unknown(*table)) {
            None => Ok(()),
            Some(_) => {
                Err(self.mismatch(format!("PostgreSQL has a commit at {} that it did not have before", mark.end)))
            }
        }
    }

    /// Checks that nothing expected is missing up to a position. Returns true if the proof is
    /// complete.
    pub(crate) fn reached(&mut self, position: Lsn) -> Result<bool, HistoryMismatch> {
        match self.expected.front() {
            Some(expected) if expected.end <= position => Err(self.missing(*expected)),
            Some(_) => Ok(false),
            None => Ok(self.tables.values().all(|(_, until)| *until <= position)),
        }
    }

    fn missing(&self, expected: CommitMark) -> HistoryMismatch {
        let CommitMark { end, xid, .. } = expected;
        self.mismatch(format!("PostgreSQL no longer has the commit of transaction {} at {end}", xid.0))
    }

    fn mismatch(&self, what: String) -> HistoryMismatch {
        HistoryMismatch { what, common: self.common }
    }
}

/// The start of a stream, and the proof that it has to give first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamBeginning {
    pub(crate) from: Lsn,
    pub(crate) proof: Option<HistoryProof>,
}

impl StreamBeginning {
    /// Begins at a position without a proof.
    pub(crate) fn at(from: Lsn) -> StreamBeginning {
        StreamBeginning { from, proof: None }
    }

    /// Begins after another connection of this run. The server may have been restarted in the
    /// meantime. `tables` has for each table the position after which every commit of it was sent.
    ///
    /// # Errors
    /// Fails if the slot was moved beyond the commits that prove the history.
    pub(crate) fn again(
        sent: &SentCommits,
        tables: impl Iterator<Item = (TableIndex, Lsn)>,
        confirmed: Lsn,
        resume: Lsn,
    ) -> Result<StreamBeginning, HistoryMismatch> {
        check_slot(sent.newest(), confirmed, resume)?;
        let (from, proof) = sent.prove(tables, confirmed, resume);
        Ok(StreamBeginning { from, proof: Some(proof) })
    }

    /// Begins after an earlier run that has kept these tables.
    ///
    /// # Errors
    /// Fails if the slot was moved beyond the commits that prove the history.
    pub(crate) fn after_restart(
        kept: &[KeptTable],
        confirmed: Lsn,
        resume: Lsn,
    ) -> Result<StreamBeginning, HistoryMismatch> {
        let known = || kept.iter().filter(|kept| kept.mark.known().is_some());
        known().try_for_each(|kept| check_slot(kept.mark, confirmed, kept.position))?;
        if known().next().is_none() {
            return Ok(StreamBeginning::at(resume));
        }
        let mut expected: Vec<CommitMark> = known().map(|kept| kept.mark).filter(|mark| mark.end > confirmed).collect();
        expected.sort_by_key(|mark| (mark.end, mark.xid));
        expected.dedup();
        let tables = known().map(|kept| (kept.table, (kept.mark.end.max(confirmed), kept.position))).collect();
        let proof = HistoryProof { expected: expected.into(), tables, common: Lsn::ZERO };
        Ok(StreamBeginning { from: confirmed.min(resume), proof: Some(proof) })
    }
}

/// Checks that the slot is before the newest commit, unless that commit is far behind. Any other
/// slot is not the one that was followed.
fn check_slot(newest: CommitMark, confirmed: Lsn, position: Lsn) -> Result<(), HistoryMismatch> {
    let is_near = position.0.saturating_sub(newest.end.0) < HELD_BYTES_MAX;
    if newest.known().is_some() && confirmed >= newest.end && confirmed <= position && is_near {
        let what = format!("the replication slot was moved to {confirmed}, beyond the newest commit at {}", newest.end);
        return Err(HistoryMismatch { what, common: Lsn::ZERO });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use laredo_core::{CommitTime, Xid};

    use super::*;

    fn mark(end: u64) -> CommitMark {
        CommitMark { end: Lsn(end), xid: Xid(end / 10), committed_at: CommitTime(end.cast_signed()) }
    }

    fn kept(table: usize, position: u64, newest: u64) -> KeptTable {
        KeptTable { table: TableIndex(table), position: Lsn(position), mark: mark(newest) }
    }

    /// Feeds commits, each with its table, and then a position.
    fn take(proof: &mut HistoryProof, commits: &[(CommitMark, usize)], position: u64) -> Result<bool, String> {
        for (mark, table) in commits {
            proof.commit(*mark, [TableIndex(*table)]).map_err(|mismatch| mismatch.to_string())?;
        }
        proof.reached(Lsn(position)).map_err(|mismatch| mismatch.to_string())
    }

    #[test]
    fn what_was_kept_must_come_again_and_nothing_else_of_its_tables() {
        let kept = [kept(0, 1000, 900), kept(1, 1200, 1100)];
        let proof = || StreamBeginning::after_restart(&kept, Lsn(500), Lsn(1000)).unwrap().proof.unwrap();
        let other = CommitMark { committed_at: CommitTime(1), ..mark(900) };
        let gone = "no longer has the commit of transaction 90 at 0/384";
        let extra = "has a commit at";
        for (commits, position, expected) in [
            (vec![(mark(900), 0), (mark(1100), 1)], 1200, Ok(true)),
            (vec![(mark(900), 0)], 950, Ok(false)),
            (vec![(mark(600), 0), (mark(900), 0), (mark(1100), 1)], 1300, Ok(true)),
            (vec![(mark(900), 0), (mark(1050), 0), (mark(1100), 1)], 1300, Ok(true)),
            (vec![], 950, Err(gone)),
            (vec![(mark(910), 5)], 950, Err(gone)),
            (vec![(other, 0)], 0, Err(gone)),
            (vec![(mark(900), 0), (mark(950), 0)], 0, Err(extra)),
            (vec![(mark(900), 0), (mark(1100), 1), (mark(1150), 1)], 0, Err(extra)),
            (vec![(mark(900), 0), (mark(1100), 1), (mark(1150), 0)], 1200, Ok(true)),
            (vec![(mark(900), 0), (mark(1050), 1)], 1100, Err("transaction 110")),
        ] {
            let found = take(&mut proof(), &commits, position);
            match expected {
                Ok(complete) => assert_eq!(found, Ok(complete), "{commits:?}"),
                Err(why) => assert!(found.clone().is_err_and(|found| found.contains(why)), "{commits:?} {found:?}"),
            }
        }
    }

    #[test]
    fn a_slot_that_is_not_where_it_was_left_proves_nothing() {
        let at = |confirmed| StreamBeginning::after_restart(&[kept(0, 1000, 900)], Lsn(confirmed), Lsn(1000));
        assert!(at(899).is_ok());
        assert!(at(900).unwrap_err().to_string().contains("was moved to 0/384"));
        // The slot may be there if nothing has happened for long.
        let idle = KeptTable { position: Lsn(900 + HELD_BYTES_MAX), ..kept(0, 0, 900) };
        assert!(StreamBeginning::after_restart(std::slice::from_ref(&idle), Lsn(2000), idle.position).is_ok());
        // Without a known commit, as from a version that did not keep them, the database is
        // trusted.
        let old = KeptTable { mark: CommitMark::default(), ..kept(0, 1000, 0) };
        assert_eq!(
            StreamBeginning::after_restart(&[old], Lsn(1000), Lsn(1000)).unwrap(),
            StreamBeginning::at(Lsn(1000))
        );
    }

    fn first_table() -> impl Iterator<Item = (TableIndex, Lsn)> {
        [(TableIndex(0), Lsn::ZERO)].into_iter()
    }

    #[test]
    fn commits_of_a_table_that_was_added_later_prove_nothing_before_its_copy() {
        let mut sent = SentCommits::default();
        sent.begin(Lsn(100));
        (1..=3).for_each(|n| sent.note(Lsn(n * 1000 - 50), mark(n * 1000)));
        let tables = [(TableIndex(0), Lsn::ZERO), (TableIndex(1), Lsn(2500)), (TableIndex(2), Lsn(u64::MAX))];
        let proof = || StreamBeginning::again(&sent, tables.into_iter(), Lsn(500), Lsn(3200)).unwrap().proof.unwrap();
        let others = |extra| [(mark(1000), 0), (mark(2000), 0), extra, (mark(3000), 0)];
        for (extra, is_same) in [((mark(2400), 1), true), ((mark(2600), 1), false), ((mark(2600), 2), true)] {
            assert_eq!(take(&mut proof(), &others(extra), 3200).is_ok(), is_same, "{extra:?}");
        }
        assert!(take(&mut proof(), &[(mark(1000), 0), (mark(2000), 0), (mark(2100), 0)], 0).is_err());
    }

    #[test]
    fn the_newest_commits_are_held_and_must_come_again() {
        let sent = || {
            let mut sent = SentCommits::default();
            sent.begin(Lsn(100));
            (1..=10).for_each(|n| sent.note(Lsn(n * 1000 - 50), mark(n * 1000)));
            sent
        };
        assert_eq!(SentCommits::default().hold(Lsn(150)), Lsn(150));
        assert_eq!(sent().hold(Lsn(10_500)), Lsn(2950), "before the oldest of eight");
        assert_eq!(sent().hold(Lsn(3500)), Lsn(950), "before those at or before the position");
        assert_eq!(sent().hold(Lsn(900)), Lsn(900), "there is none");
        let far = 9000 + HELD_BYTES_MAX;
        assert_eq!(sent().hold(Lsn(far)), Lsn(8950), "of those that are near");
        assert_eq!(sent().hold(Lsn(far + 1001)), Lsn(far + 1001), "and of none that is far behind");
        let StreamBeginning { from, proof } =
            StreamBeginning::again(&sent(), first_table(), Lsn(2950), Lsn(10_500)).unwrap();
        let proof = proof.unwrap();
        assert_eq!((from, proof.expected.len()), (Lsn(2950), 8));
        let all: Vec<_> = (3..=10).map(|n| (mark(n * 1000), 0)).collect();
        assert_eq!(take(&mut proof.clone(), &all, 10_500), Ok(true));
        assert!(take(&mut proof.clone(), &[&all[..], &[(mark(10_400), 0)]].concat(), 0).is_err());
        assert!(take(&mut proof.clone(), &all[1..], 0).is_err());
        assert!(take(&mut proof.clone(), &all[..7], 10_500).is_err());
        // A slot that is further ahead sends fewer commits.
        let StreamBeginning { from, proof } =
            StreamBeginning::again(&sent(), first_table(), Lsn(8950), Lsn(10_500)).unwrap();
        assert_eq!((from, proof.unwrap().expected.len()), (Lsn(8950), 2));
    }

    #[test]
    fn however_many_commits_wait_to_be_acknowledged_one_before_the_position_is_held() {
        let mut sent = SentCommits::default();
        let count = 20 * GROUPS_MAX as u64;
        (1..=count).for_each(|n| sent.note(Lsn(n * 100 - 50), mark(n * 100)));
        assert!(sent.groups.len() <= GROUPS_MAX);
        for acknowledged in [1000, 1050, 200_000, count * 50 + 30, count * 100 + 99] {
            let held = sent.hold(Lsn(acknowledged));
            let newest = acknowledged / 100 * 100;
            assert!(held.0 < newest, "{acknowledged}: {held}");
            assert!(acknowledged - held.0 < HELD_BYTES_MAX, "{acknowledged}: {held}");
        }
        let mut held = Lsn::ZERO;
        for acknowledged in (0..=count).step_by(1000).chain([count]) {
            let next = sent.hold(Lsn(acknowledged * 100));
            sent.forget(Lsn(acknowledged * 100));
            assert!(next >= held);
            held = next;
        }
        assert!(sent.groups.len() <= COMMITS_KEPT);
    }
}
