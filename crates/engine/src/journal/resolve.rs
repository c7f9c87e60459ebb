//! The decision from where a client resumes, as a pure function.

use std::sync::Arc;

use laredo_core::{CommitMark, DefinitionVersion, Lsn, ScopedMark, Sequence, SourceIdentity};

use super::PredecessorJournal;
use super::definitions::{self, DefinitionHistory};
use super::gaps::SequenceGaps;
use crate::head::{EarlierInstance, Head, InstanceId, TransactionBoundary};
use crate::history::MarkVerdict;
use crate::segment::Segment;

/// A client's statement of what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResumeRequest {
    /// The journal that the client's sequence belongs to; empty if the client does not name one.
    pub instance: String,
    /// The last sequence that the client has; zero for none.
    pub sequence: Sequence,
    /// The snapshot that the client has loaded; empty for none.
    pub snapshot_id: String,
    /// The position up to which the client has applied everything.
    pub position: Option<Lsn>,
    /// The newest commit that the client knows at or before its position; all zeros if it names
    /// none.
    pub mark: ScopedMark,
    /// The verdict on that mark, by the source's newest commits.
    pub verdict: MarkVerdict,
    /// True if the named journal was found to belong to another history.
    pub is_stranger: bool,
    /// The source that the client's position belongs to, if the client names it.
    pub source: Option<SourceIdentity>,
    /// The source of this journal.
    pub own_source: Arc<SourceIdentity>,
    /// The definition of the client's rows, if the client names it.
    pub definition: DefinitionVersion,
    /// True if the client takes only whole transactions, and cannot resume inside one.
    pub whole_transactions: bool,
}

/// The reason of a [`ResumeOutcome::Delta`] from a position. The first entries may be repeats.
pub const BY_POSITION: &str = "source position";

/// The way in which a client resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeOutcome {
    /// A full snapshot, for this reason.
    Full(&'static str),
    /// A full snapshot, because the client's position belongs to another history. The snapshot's
    /// position may be lower than the client's.
    AnotherHistory(&'static str),
    /// A delta: everything after this sequence, for this reason.
    Delta(Sequence, &'static str),
    /// A wait, because the client is ahead of this journal. It must ask again once the head has
    /// reached this position.
    Wait(Lsn),
}

/// The place of a position in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PositionFloor {
    /// The last entry of the newest transaction at or before the position, with the transaction's
    /// mark. The mark is `None` if the transaction is no longer kept. The mark of a span has no
    /// transaction ID.
    Commit(Sequence, Option<CommitMark>),
    /// A place inside a span, which became visible in one step.
    InsideSpan,
    /// A place older than everything that is kept.
    Pruned,
}

pub(super) struct ResumeFacts<'a> {
    pub(super) instance: &'a str,
    pub(super) earlier: &'a [EarlierInstance],
    pub(super) predecessor: Option<&'a PredecessorJournal>,
    pub(super) head: Head,
    pub(super) pruned: TransactionBoundary,
    /// The highest position that may belong to a history that the database has abandoned.
    pub(super) abandoned: Lsn,
    /// True if the request's mark is inside a span or at its end.
    pub(super) has_mark_in_span: bool,
    pub(super) gaps: &'a SequenceGaps,
    pub(super) definitions: &'a DefinitionHistory,
}

impl ResumeFacts<'_> {
    /// Returns the last sequence up to which an instance's entries are this journal's. Returns
    /// `None` for an instance of another journal.
    fn reach_of_instance(&self, instance: &str) -> Option<Sequence> {
        if instance == self.instance {
            return Some(self.head.sequence);
        }
        self.earlier.iter().find(|earlier| earlier.id.0 == instance).map(|earlier| earlier.last)
    }

    /// Returns the reach of the instance that issued a snapshot, and the snapshot's own sequence.
    fn reach_of_snapshot(&self, snapshot_id: &str) -> Option<(Sequence, u64)> {
        let (instance, at) = InstanceId::parse_snapshot_id(snapshot_id)?;
        Some((self.reach_of_instance(instance)?, at.0))
    }

    /// Returns true if the client's rows are this journal's.
    pub(super) fn is_own(&self, request: &ResumeRequest) -> bool {
        self.reach_of_instance(&request.instance).is_some() || self.reach_of_snapshot(&request.snapshot_id).is_some()
    }

    /// Returns true if the client has the rows of the snapshot with which this journal begins. It
    /// followed the journal that issued the snapshot, and no further than the snapshot.
    pub(super) fn has_rows_of_snapshot(&self, request: &ResumeRequest, position: Lsn) -> bool {
        let issuer = InstanceId::parse_snapshot_id(&request.snapshot_id).map(|(instance, _)| instance);
        self.predecessor.is_some_and(|predecessor| {
            let instance = predecessor.instance.0.as_str();
            let is_of_it = request.instance == instance || (request.instance.is_empty() && issuer == Some(instance));
            is_of_it && position >= predecessor.unchanged_since && position <= predecessor.position
        })
    }
}

/// Resolves a request. The first rule that matches decides.
///
/// 1. The request names this journal, and its position fits its sequence: a delta from exactly
///    there. The journal must reach the sequence, which excludes sequences that were lost in a
///    crash.
/// 2. The request has a position: a delta from the newest commit at or before it. If the position
///    is above the head: a wait. If it belongs to another history, is inside a span, is pruned, or
///    has rows of another definition: a full snapshot.
/// 3. The request names a snapshot of this journal, and a sequence not below the snapshot's own: a
///    delta from exactly there.
/// 4. Otherwise a full snapshot. A delta never begins at sequence 0, nor at a sequence that may
///    belong to another journal.
pub(super) fn resolve(
    request: &ResumeRequest,
    facts: &ResumeFacts<'_>,
    floor: impl Fn(Lsn) -> PositionFloor,
    is_commit: impl Fn(Sequence) -> bool,
) -> ResumeOutcome {
    let reached = |sequence: Sequence, reach: Sequence| {
        sequence.0 > 0
            && sequence >= facts.pruned.sequence
            && sequence <= facts.head.sequence.min(reach)
            && !facts.gaps.contain(sequence)
            && (!request.whole_transactions || is_commit(sequence))
    };
    if let Some(reach) = facts.reach_of_instance(&request.instance)
        && reached(request.sequence, reach)
        && belongs_to_sequence(request, facts, &floor, &is_commit)
    {
        return ResumeOutcome::Delta(request.sequence, "sequence of this instance");
    }
    if let Some(position) = request.position {
        return resolve_by_position(request, facts, position, &floor);
    }
    let Some((reach, at)) = facts.reach_of_snapshot(&request.snapshot_id) else {
        return ResumeOutcome::Full(if request.snapshot_id.is_empty() {
            "fresh client"
        } else {
            "snapshot of another instance"
        });
    };
    if request.sequence.0 >= at && reached(request.sequence, reach) {
        return ResumeOutcome::Delta(request.sequence, "sequence after a snapshot of this instance");
    }
    ResumeOutcome::Full("the sequence is not in the journal, or lies before its snapshot")
}

/// Returns true if a request's position and mark belong to its sequence.
fn belongs_to_sequence(
    request: &ResumeRequest,
    facts: &ResumeFacts<'_>,
    floor: &impl Fn(Lsn) -> PositionFloor,
    is_commit: &impl Fn(Sequence) -> bool,
) -> bool {
    let Some(position) = request.position else { return true };
    if judge_mark(request, facts, position, floor) == MarkVerdict::Other {
        return false;
    }
    if position > facts.head.position {
        return request.sequence == facts.head.sequence;
    }
    match floor(position) {
        PositionFloor::Commit(sequence, _) if sequence == request.sequence => true,
        // A client that was cut inside a transaction has a position before the transaction's end.
        PositionFloor::Commit(sequence, _) => sequence < request.sequence && !is_commit(request.sequence),
        PositionFloor::InsideSpan | PositionFloor::Pruned => false,
    }
}

fn resolve_by_position(
    request: &ResumeRequest,
    facts: &ResumeFacts<'_>,
    position: Lsn,
    floor: &impl Fn(Lsn) -> PositionFloor,
) -> ResumeOutcome {
    if let Err(reason) = check_history(request, facts, position, floor) {
        return ResumeOutcome::AnotherHistory(reason);
    }
    if position > facts.head.position {
        return ResumeOutcome::Wait(position);
    }
    match floor(position) {
        PositionFloor::Commit(_, _) if let Err(reason) = definitions::check_definition(request, facts, position) => {
            ResumeOutcome::Full(reason)
        }
        PositionFloor::Commit(sequence, _) => ResumeOutcome::Delta(sequence, BY_POSITION),
        PositionFloor::InsideSpan => ResumeOutcome::Full("source position inside a new copy of the table"),
        PositionFloor::Pruned => ResumeOutcome::Full("source position older than the journal"),
    }
}

/// Checks that a position is part of this journal's history. A commit that both know proves it.
/// Without such a commit, the timeline and the names of journals decide.
///
/// # Errors
/// The reason for which the position is not part of the history.
fn check_history(
    request: &ResumeRequest,
    facts: &ResumeFacts<'_>,
    position: Lsn,
    floor: &impl Fn(Lsn) -> PositionFloor,
) -> Result<(), &'static str> {
    let ours = &request.own_source;
    if request.source.as_ref().is_some_and(|theirs| !ours.is_same_database(theirs)) {
        return Err("source position of another database");
    }
    match judge_mark(request, facts, position, floor) {
        MarkVerdict::Same => return Ok(()),
        MarkVerdict::Other => return Err("commit of another history of the database"),
        MarkVerdict::Unknown => {}
    }
    // For clients that followed this journal its own order is right, even if the database has
    // forked.
    if facts.is_own(request) {
        return request.source.as_ref().map_or(Ok(()), |theirs| check_timeline(ours, theirs.timeline, position));
    }
    if request.is_stranger {
        return Err("snapshot of a journal of another history");
    }
    let named = [&request.instance, &request.snapshot_id].into_iter().find_map(|id| InstanceId::timeline_of(id));
    match request.source.as_ref().map(|theirs| theirs.timeline).or(named) {
        Some(theirs) => check_timeline(ours, theirs, position)?,
        None if ours.history.last().is_some_and(|switch| position > switch.position) => {
            return Err("source position beyond a fork, of an unknown timeline");
        }
        None => {}
    }
    if position <= facts.abandoned {
        return Err("source position that may be of an abandoned history");
    }
    Ok(())
}

/// Returns true if a position is known to be part of this journal's history: by its mark, or
/// because the client followed this journal.
pub(super) fn is_proven(
    request: &ResumeRequest,
    facts: &ResumeFacts<'_>,
    position: Lsn,
    floor: &dyn Fn(Lsn) -> PositionFloor,
) -> bool {
    let floor = |position| floor(position);
    let is_known = facts.is_own(request) || judge_mark(request, facts, position, &floor) == MarkVerdict::Same;
    is_known && check_history(request, facts, position, &floor).is_ok()
}

/// Checks that a position on the timeline `theirs` is part of our own history.
fn check_timeline(ours: &SourceIdentity, theirs: u32, position: Lsn) -> Result<(), &'static str> {
    if theirs == ours.timeline {
        return Ok(());
    }
    match ours.left_at(theirs) {
        None => Err("source position of a timeline that this server's history lacks"),
        Some(left) if position <= left => Ok(()),
        Some(_) => Err("source position beyond the fork of its timeline"),
    }
}

/// Compares a request's mark with what the journal and the source know. The mark is the newest
/// commit that the client knows at or before its position.
fn judge_mark(
    request: &ResumeRequest,
    facts: &ResumeFacts<'_>,
    position: Lsn,
    floor: &impl Fn(Lsn) -> PositionFloor,
) -> MarkVerdict {
    let Some(ScopedMark { commit: mark, scope }) = request.mark.known_at(position) else { return MarkVerdict::Unknown };
    let kept = |position: Lsn| match (position <= facts.head.position).then(|| floor(position)) {
        Some(PositionFloor::Commit(_, kept)) => kept.and_then(CommitMark::known),
        Some(PositionFloor::InsideSpan | PositionFloor::Pruned) | None => None,
    };
    // The client knows no commit between its mark and its position.
    if kept(position).is_some_and(|kept| kept.end > mark.end) {
        return MarkVerdict::Other;
    }
    match kept(mark.end).filter(|kept| kept.end == mark.end) {
        Some(kept) if kept == mark => return MarkVerdict::Same,
        Some(_) => return MarkVerdict::Other,
        None => {}
    }
    let is_covered = mark.end > facts.pruned.position && mark.end <= facts.head.position && !facts.has_mark_in_span;
    match request.verdict {
        // The journal has all commits of the table in this range, and not this one.
        MarkVerdict::Unknown if scope == 0 && is_covered => MarkVerdict::Other,
        verdict => verdict,
    }
}

/// The commit that a position is floored to, or the segments that must be read to find it. Segments
/// are read after the lock of the journal is released.
pub(super) enum FloorLookup {
    Known(PositionFloor),
    /// The last commit in this segment at or before the position. If there is none, the one before
    /// the segment.
    Within(Box<Segment>, PrecedingCommit),
    Before(PrecedingCommit),
}

/// The last commit before a segment.
pub(super) enum PrecedingCommit {
    /// The end of the newest transaction that is no longer kept.
    Pruned(Sequence),
    EndOf(Box<Segment>),
}

impl PrecedingCommit {
    /// Returns the floor. Blocks if the segment is in a file.
    fn read_floor(&self) -> PositionFloor {
        match self {
            PrecedingCommit::Pruned(sequence) => PositionFloor::Commit(*sequence, None),
            PrecedingCommit::EndOf(segment) => {
                PositionFloor::Commit(segment.last, segment.last_commit(|_, _| true).map(|(_, mark)| mark))
            }
        }
    }
}

/// The answer to the question if a transaction ends at a sequence, or the segment that must be read
/// to find it.
pub(super) enum CommitLookup {
    Known(bool),
    Within(Box<Segment>),
}

impl FloorLookup {
    /// Returns the floor of `position`. Blocks if a segment is in a file.
    pub(super) fn read_floor(&self, position: Lsn) -> PositionFloor {
        match self {
            FloorLookup::Known(floor) => *floor,
            FloorLookup::Before(before) => before.read_floor(),
            FloorLookup::Within(segment, before) => match segment.last_commit(|seen, _| seen <= position) {
                Some((sequence, mark)) => PositionFloor::Commit(sequence, Some(mark)),
                None => before.read_floor(),
            },
        }
    }
}

impl CommitLookup {
    /// Returns true if a transaction ends at `sequence`. Blocks if the segment is in a file.
    pub(super) fn is_commit(&self, sequence: Sequence) -> bool {
        match self {
            CommitLookup::Known(known) => *known,
            CommitLookup::Within(segment) => {
                segment.last_commit(|_, last| last <= sequence).is_some_and(|(last, _)| last == sequence)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laredo_core::TimelineSwitch;

    fn identity(timeline: u32) -> SourceIdentity {
        let switch = |(timeline, end)| TimelineSwitch { timeline, position: Lsn(end) };
        let history = [(1, 100), (2, 200)].map(switch).into_iter().filter(|left| left.timeline < timeline).collect();
        SourceIdentity { system_identifier: "s".to_owned(), database: "d".to_owned(), timeline, history }
    }

    fn resolve_position(ours: SourceIdentity, theirs: Option<SourceIdentity>, position: u64) -> ResumeOutcome {
        let request = ResumeRequest {
            position: Some(Lsn(position)),
            source: theirs,
            own_source: Arc::new(ours),
            ..ResumeRequest::default()
        };
        let gaps = SequenceGaps::default();
        resolve(&request, &facts(&gaps, &[]), |_| PositionFloor::Commit(Sequence(5), None), |_| true)
    }

    /// Returns the facts of a journal that has everything after position 0, up to position 1000.
    fn facts<'a>(gaps: &'a SequenceGaps, earlier: &'a [EarlierInstance]) -> ResumeFacts<'a> {
        static DEFINITIONS: DefinitionHistory = DefinitionHistory::none();
        let committed_at = laredo_core::CommitTime(0);
        let (sequence, mark) = (Sequence(9), CommitMark::default());
        let head = Head { sequence, position: Lsn(1000), committed_at, mark, checksum: None };
        let pruned = TransactionBoundary { sequence: Sequence(1), position: Lsn::ZERO };
        let (abandoned, has_mark_in_span) = (Lsn::ZERO, false);
        let (predecessor, definitions) = (None, &DEFINITIONS);
        ResumeFacts {
            instance: "j",
            earlier,
            predecessor,
            head,
            pruned,
            abandoned,
            has_mark_in_span,
            gaps,
            definitions,
        }
    }

    fn mark(end: u64, xid: u64) -> CommitMark {
        CommitMark { end: Lsn(end), xid: laredo_core::Xid(xid), committed_at: laredo_core::CommitTime(3) }
    }

    /// Returns the floor of a position in a journal with commits at 100, 200, …, 900, which have
    /// the sequences 1 to 9. The commit at 500 is a span.
    fn floor(position: Lsn) -> PositionFloor {
        let number = (position.0 / 100).min(9);
        let xid = if number == 5 { 0 } else { number };
        PositionFloor::Commit(Sequence(number), Some(mark(number * 100, xid)))
    }

    #[test]
    fn a_history_is_proven_by_a_commit_or_by_the_journal_that_was_followed() {
        let gaps = SequenceGaps::default();
        let none = CommitMark::default();
        let table = [
            ("j", none, 350, None, true, "this journal"),
            ("", mark(300, 3), 350, None, true, "a commit that is known"),
            ("", none, 350, None, false, "nothing is known"),
            ("", mark(300, 4), 350, None, false, "another commit"),
            ("j", mark(300, 4), 350, None, false, "another commit, of this journal"),
            ("j", none, 150, Some(identity(1)), false, "beyond the fork of its timeline"),
        ];
        for (instance, mark, position, source, expected, what) in table {
            let (mark, position) = (ScopedMark { commit: mark, scope: 0 }, Lsn(position));
            let (instance, own_source) = (instance.to_owned(), Arc::new(identity(3)));
            let request = ResumeRequest { instance, mark, source, own_source, ..ResumeRequest::default() };
            let request = ResumeRequest { position: Some(position), ..request };
            assert_eq!(is_proven(&request, &facts(&gaps, &[]), position, &floor), expected, "{what}");
        }
    }

    #[test]
    fn a_position_counts_on_the_line_of_history_that_leads_here_only() {
        let continues = ResumeOutcome::Delta(Sequence(5), BY_POSITION);
        let with = |change: fn(&mut SourceIdentity)| {
            let mut theirs = identity(3);
            change(&mut theirs);
            Some(theirs)
        };
        let elsewhere = "source position of another database";
        let beyond = "source position beyond the fork of its timeline";
        let unknown = "source position of a timeline that this server's history lacks";
        let table = [
            (3, None, 50, Ok(()), "a client that does not say"),
            (3, Some(identity(3)), 250, Ok(()), "the same timeline"),
            (3, with(|source| source.system_identifier = "t".to_owned()), 50, Err(elsewhere), "another system"),
            (3, with(|source| source.database = "e".to_owned()), 50, Err(elsewhere), "another database"),
            (3, Some(identity(1)), 99, Ok(()), "an older timeline, before its fork"),
            (3, Some(identity(1)), 100, Ok(()), "at its fork"),
            (3, Some(identity(1)), 101, Err(beyond), "beyond its fork"),
            (3, Some(identity(1)), 150, Err(beyond), "beyond its fork, though not beyond the next"),
            (3, Some(identity(2)), 200, Ok(()), "the one before, at its fork"),
            (3, Some(identity(2)), 201, Err(beyond), "the one before, beyond it"),
            (2, Some(identity(3)), 50, Err(unknown), "a newer timeline than ours"),
            (2, Some(identity(3)), 5000, Err(unknown), "and nobody waits for it"),
        ];
        for (ours, theirs, position, expected, what) in table {
            let expected = expected.map_or_else(ResumeOutcome::AnotherHistory, |()| continues);
            assert_eq!(resolve_position(identity(ours), theirs, position), expected, "{what}");
        }
    }

    /// Resolves a request with a mark and a position against the journal of [`floor`].
    fn present(
        marked: CommitMark,
        scope: u64,
        position: u64,
        change: impl Fn(&mut ResumeFacts<'_>, &mut ResumeRequest),
    ) -> ResumeOutcome {
        let gaps = SequenceGaps::default();
        let (mut facts, mark) = (facts(&gaps, &[]), ScopedMark { commit: marked, scope });
        let (position, own_source) = (Some(Lsn(position)), Arc::new(identity(1)));
        let mut request = ResumeRequest { position, mark, own_source, ..ResumeRequest::default() };
        change(&mut facts, &mut request);
        resolve(&request, &facts, floor, |_| true)
    }

    #[test]
    fn a_commit_that_both_know_proves_a_position_and_another_one_refutes_it() {
        let other = ResumeOutcome::AnotherHistory("commit of another history of the database");
        let delta = |at| ResumeOutcome::Delta(Sequence(at), BY_POSITION);
        let unchanged = |_: &mut ResumeFacts<'_>, _: &mut ResumeRequest| {};
        let table: [(CommitMark, u64, u64, bool, u64, &str); 12] = [
            (mark(300, 3), 0, 300, true, 3, "at the commit"),
            (mark(300, 3), 0, 399, true, 3, "nothing was committed since"),
            (mark(300, 4), 0, 300, false, 3, "another transaction at the same end"),
            (CommitMark { committed_at: laredo_core::CommitTime(4), ..mark(300, 3) }, 0, 300, false, 3, "another time"),
            (mark(300, 3), 0, 400, false, 4, "a commit that the client should know of"),
            (mark(350, 3), 0, 360, false, 3, "a commit of the table that the journal lacks"),
            (mark(350, 3), 7, 360, true, 3, "a commit of another table, unknown here"),
            (mark(650, 3), 7, 660, true, 6, "the same"),
            (mark(500, 9), 0, 500, true, 5, "a commit that is in a span here"),
            (mark(300, 0), 0, 450, true, 4, "a mark without a transaction says nothing"),
            (mark(500, 3), 0, 400, true, 4, "a mark beyond the position says nothing"),
            (mark(499, 9), 0, 550, false, 5, "a commit before a span that the journal lacks"),
        ];
        for (marked, scope, position, is_ours, at, what) in table {
            let in_span =
                |facts: &mut ResumeFacts<'_>, _: &mut ResumeRequest| facts.has_mark_in_span = marked.end == Lsn(500);
            let found = present(marked, scope, position, in_span);
            let expected = if is_ours { delta(at) } else { other };
            assert_eq!(found, expected, "{what}");
        }
        // The source knows the commits of all its tables.
        let verdict = |verdict| move |_: &mut ResumeFacts<'_>, request: &mut ResumeRequest| request.verdict = verdict;
        assert_eq!(present(mark(350, 3), 7, 360, verdict(MarkVerdict::Other)), other);
        assert_eq!(present(mark(350, 3), 7, 360, verdict(MarkVerdict::Same)), delta(3));
        assert_eq!(present(mark(1100, 11), 0, 1100, verdict(MarkVerdict::Other)), other);
        assert_eq!(present(mark(1100, 11), 0, 1100, unchanged), ResumeOutcome::Wait(Lsn(1100)));
        // A pruned range cannot refute a mark.
        let pruned = |facts: &mut ResumeFacts<'_>, _: &mut ResumeRequest| facts.pruned.position = Lsn(360);
        assert_eq!(present(mark(350, 3), 0, 365, pruned), delta(3));
    }

    #[test]
    fn a_proven_commit_counts_more_than_timelines_and_forks() {
        let from = |timeline, marked: CommitMark| {
            present(marked, 0, 350, move |facts, request| {
                facts.abandoned = Lsn(500);
                (request.own_source, request.source) = (Arc::new(identity(2)), Some(identity(timeline)));
            })
        };
        assert_eq!(from(1, mark(300, 3)), ResumeOutcome::Delta(Sequence(3), BY_POSITION));
        let beyond = ResumeOutcome::AnotherHistory("source position beyond the fork of its timeline");
        assert_eq!(from(1, CommitMark::default()), beyond);
        let abandoned = ResumeOutcome::AnotherHistory("source position that may be of an abandoned history");
        assert_eq!(from(2, CommitMark::default()), abandoned);
    }

    #[test]
    fn without_a_commit_the_name_of_a_journal_distinguishes_histories() {
        let delta = ResumeOutcome::Delta(Sequence(3), BY_POSITION);
        let abandoned = ResumeOutcome::AnotherHistory("source position that may be of an abandoned history");
        let beyond = ResumeOutcome::AnotherHistory("source position beyond the fork of its timeline");
        let unknown = ResumeOutcome::AnotherHistory("source position beyond a fork, of an unknown timeline");
        let table = [
            (1, 0, "", false, delta, "nothing has ever forked"),
            (
                1,
                0,
                "other-5",
                true,
                ResumeOutcome::AnotherHistory("snapshot of a journal of another history"),
                "a stranger",
            ),
            (1, 349, "", false, delta, "beyond what was abandoned"),
            (1, 350, "", false, abandoned, "at the end of what was abandoned"),
            (1, 350, "other.1-5", false, abandoned, "another server's journal"),
            (1, 350, "j-5", true, delta, "this journal's own"),
            (2, 0, "j-5", false, delta, "this journal's own, after a promotion"),
            (2, 0, "other.2-5", false, delta, "a journal of this timeline"),
            (2, 0, "other.1-5", false, beyond, "a journal of the timeline before"),
            (2, 0, "other-5", false, unknown, "a journal that does not say"),
            (2, 0, "", false, unknown, "a client that names none"),
        ];
        for (timeline, abandoned, snapshot_id, is_stranger, expected, what) in table {
            let found = present(CommitMark::default(), 0, 350, |facts, request| {
                facts.abandoned = Lsn(abandoned);
                request.own_source = Arc::new(identity(timeline));
                (request.snapshot_id, request.is_stranger) = (snapshot_id.to_owned(), is_stranger);
            });
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn a_sequence_counts_only_where_the_position_is_its_own() {
        let gaps = SequenceGaps::default();
        let earlier = [EarlierInstance { id: InstanceId("before".to_owned()), last: Sequence(6) }];
        let own = ResumeOutcome::Delta(Sequence(5), "sequence of this instance");
        let ask = |instance: &str, sequence, position: Option<u64>, marked, whole_transactions| {
            let request = ResumeRequest {
                instance: instance.to_owned(),
                sequence: Sequence(sequence),
                position: position.map(Lsn),
                mark: ScopedMark { commit: marked, scope: 0 },
                own_source: Arc::new(identity(1)),
                whole_transactions,
                ..ResumeRequest::default()
            };
            resolve(&request, &facts(&gaps, &earlier), floor, |sequence| sequence != Sequence(7))
        };
        let none = CommitMark::default();
        assert_eq!(ask("j", 5, None, none, true), own);
        assert_eq!(ask("j", 5, Some(599), none, true), own);
        assert_eq!(
            ask("j", 5, Some(600), none, true),
            ResumeOutcome::Delta(Sequence(6), BY_POSITION),
            "of another entry"
        );
        assert_eq!(ask("before", 5, Some(500), none, true), own, "an earlier run's name for it");
        let beyond = ask("before", 8, Some(800), none, true);
        assert_eq!(
            beyond,
            ResumeOutcome::Delta(Sequence(8), BY_POSITION),
            "what an earlier run had is known no further"
        );
        let other = ResumeOutcome::AnotherHistory("commit of another history of the database");
        assert_eq!(ask("j", 4, Some(400), mark(400, 9), true), other, "a commit that is not the sequence's");
        let inside = ask("j", 7, Some(650), none, false);
        assert_eq!(inside, ResumeOutcome::Delta(Sequence(7), "sequence of this instance"), "cut inside a transaction");
        let ahead = ask("j", 9, Some(2000), none, true);
        assert_eq!(ahead, ResumeOutcome::Delta(Sequence(9), "sequence of this instance"), "told more than was kept");
        assert_eq!(ask("j", 5, Some(2000), none, true), ResumeOutcome::Wait(Lsn(2000)));
    }
}
