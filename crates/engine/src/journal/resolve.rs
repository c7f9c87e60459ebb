//! Where a request goes on: one pure function.

use laredo_core::{DefinitionVersion, Lsn, Sequence};

use super::definitions::{self, Definitions};
use super::gaps::Gaps;
use super::segment::Segment;
use super::{Boundary, Head, Inner};
use crate::source::SourceIdentity;

/// What a client says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResumeRequest {
    /// The journal whose sequence it holds; empty when it does not say.
    pub instance: String,
    /// The last sequence it has; zero for none.
    pub sequence: Sequence,
    /// The snapshot it has loaded; empty for none.
    pub snapshot_id: String,
    /// The position it has applied everything up to.
    pub position: Option<Lsn>,
    /// The source that its position belongs to, when it says so.
    pub source: Option<SourceIdentity>,
    /// The source of this journal.
    pub own_source: SourceIdentity,
    /// The definition that its rows are of, when it says so.
    pub definition: DefinitionVersion,
    /// Whether it takes whole transactions only, so that it cannot go on inside one.
    pub whole_transactions: bool,
}

/// The reason of a [`Resolution::Delta`] from a position: what comes first may be a repeat.
pub const BY_POSITION: &str = "source position";

/// How it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// With a snapshot, because of this.
    Full(&'static str),
    /// With everything after a sequence, because of this.
    Delta(Sequence, &'static str),
    /// It is ahead of this journal: wait until the head is past this position, then ask again.
    Wait(Lsn),
}

/// What a position is in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Floor {
    /// After this entry, the last of the newest transaction at or before the position.
    Commit(Sequence),
    /// Inside a span that became visible in one step.
    InsideSpan,
    /// Older than what is kept.
    Pruned,
}

pub(super) struct Facts<'a> {
    pub(super) instance: &'a str,
    pub(super) head: Head,
    pub(super) pruned: Boundary,
    pub(super) gaps: &'a Gaps,
    pub(super) definitions: &'a Definitions,
}

/// Resolves a request; the first rule that matches decides.
///
/// 1. It names this journal, and the journal reaches its sequence: exactly there. One that was lost with a crash is not reached.
/// 2. A position: the newest commit at or before it. Above the head: wait. Inside a span, pruned, of another history, or with rows
///    of another definition: a full snapshot.
/// 3. A snapshot of this journal and a sequence not below the snapshot's own: exactly there.
/// 4. Otherwise a full snapshot; never a delta from sequence 0, nor from a sequence that may be somebody else's.
pub(super) fn resolve(
    request: &ResumeRequest,
    facts: &Facts<'_>,
    floor: impl Fn(Lsn) -> Floor,
    is_commit: impl Fn(Sequence) -> bool,
) -> Resolution {
    let reached = |sequence: Sequence| {
        sequence.0 > 0
            && sequence >= facts.pruned.sequence
            && sequence <= facts.head.sequence
            && !facts.gaps.contain(sequence)
            && (!request.whole_transactions || is_commit(sequence))
    };
    if request.instance == facts.instance && reached(request.sequence) {
        return Resolution::Delta(request.sequence, "sequence of this instance");
    }
    if let Some(position) = request.position {
        return match history(request, position) {
            Err(reason) => Resolution::Full(reason),
            Ok(()) if position > facts.head.position => Resolution::Wait(position),
            Ok(()) => match floor(position) {
                Floor::Commit(_)
                    if let Err(reason) = definitions::check(request, facts.instance, facts.definitions, position) =>
                {
                    Resolution::Full(reason)
                }
                Floor::Commit(sequence) => Resolution::Delta(sequence, BY_POSITION),
                Floor::InsideSpan => Resolution::Full("source position inside a new copy of the table"),
                Floor::Pruned => Resolution::Full("source position older than the journal"),
            },
        };
    }
    let Some(at) = definitions::issued_sequence(facts.instance, &request.snapshot_id) else {
        return Resolution::Full(if request.snapshot_id.is_empty() {
            "fresh client"
        } else {
            "snapshot of another instance"
        });
    };
    if request.sequence >= at && reached(request.sequence) {
        return Resolution::Delta(request.sequence, "sequence after a snapshot of this instance");
    }
    Resolution::Full("the sequence is not in the journal, or lies before its snapshot")
}

/// Whether a position of the client's source is one of ours: an LSN says nothing of its timeline.
fn history(request: &ResumeRequest, position: Lsn) -> Result<(), &'static str> {
    let Some(theirs) = &request.source else { return Ok(()) };
    let ours = &request.own_source;
    if theirs.system_identifier != ours.system_identifier || theirs.database != ours.database {
        return Err("source position of another database");
    }
    if theirs.timeline == ours.timeline {
        return Ok(());
    }
    let left_at = ours.history.iter().find(|(timeline, _)| *timeline == theirs.timeline).map(|(_, lsn)| *lsn);
    match left_at {
        Some(lsn) if position <= lsn => Ok(()),
        Some(_) => Err("source position beyond the fork of its timeline"),
        None => Err("source position of a timeline that this server's history lacks"),
    }
}

/// Where a position is floored to; what has to be read for it is taken along.
pub(super) enum FloorAt {
    Known(Floor),
    /// To a commit in this segment, or if there is none before the position, to this one.
    Within(Box<Segment>, Sequence),
}

/// Whether a transaction ends somewhere; what has to be read for it is taken along.
pub(super) enum CommitAt {
    Known(bool),
    Within(Box<Segment>),
}

impl FloorAt {
    /// Blocks where the segment is in a file.
    pub(super) fn read(&self, position: Lsn) -> Floor {
        match self {
            FloorAt::Known(floor) => *floor,
            FloorAt::Within(segment, before) => {
                Floor::Commit(segment.last_commit(|seen, _| seen <= position).unwrap_or(*before))
            }
        }
    }
}

impl CommitAt {
    /// Blocks where the segment is in a file.
    pub(super) fn read(&self, sequence: Sequence) -> bool {
        match self {
            CommitAt::Known(known) => *known,
            CommitAt::Within(segment) => segment.last_commit(|_, last| last <= sequence) == Some(sequence),
        }
    }
}

impl Inner {
    /// Floors a position, at or below the head, to a commit.
    pub(super) fn floor_at(&self, position: Lsn) -> FloorAt {
        if position < self.pruned.position {
            return FloorAt::Known(Floor::Pruned);
        }
        if self.spans.iter().any(|(from, to)| *from < position && position < *to) {
            return FloorAt::Known(Floor::InsideSpan);
        }
        let index = self.segments.partition_point(|segment| segment.position <= position);
        let before = match index.checked_sub(1).and_then(|i| self.segments.get(i)) {
            Some(segment) => segment.last,
            None => self.pruned.sequence,
        };
        match self.segments.get(index) {
            Some(segment) => FloorAt::Within(Box::new(segment.clone()), before),
            None => FloorAt::Known(Floor::Commit(before)),
        }
    }

    /// Whether a transaction ends with this sequence.
    pub(super) fn commit_at(&self, sequence: Sequence, head: Sequence) -> CommitAt {
        if sequence == self.pruned.sequence || sequence == head {
            return CommitAt::Known(true);
        }
        let index = self.segments.partition_point(|segment| segment.last < sequence);
        match self.segments.get(index) {
            Some(segment) => CommitAt::Within(Box::new(segment.clone())),
            None => CommitAt::Known(false),
        }
    }
}

impl Segment {
    /// The last sequence of the newest transaction in here of which `wanted` (its position and last sequence) holds.
    fn last_commit(&self, wanted: impl Fn(Lsn, Sequence) -> bool) -> Option<Sequence> {
        // An unreadable file is as good as a pruned one here: the reader meets the error when it reads.
        let bytes = self.data.read_frames().ok()?;
        super::frames(bytes)
            .filter(|frame| frame.header.ends)
            .take_while(|frame| wanted(frame.header.position, frame.header.last_sequence))
            .map(|frame| frame.header.last_sequence)
            .last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(timeline: u32) -> SourceIdentity {
        let history = [(1, Lsn(100)), (2, Lsn(200))].into_iter().filter(|(left, _)| *left < timeline).collect();
        let (system_identifier, database) = ("s".to_owned(), "d".to_owned());
        SourceIdentity { system_identifier, database, timeline, history, written: Lsn(5000) }
    }

    fn ask(ours: SourceIdentity, theirs: Option<SourceIdentity>, position: u64) -> Resolution {
        let request = ResumeRequest {
            position: Some(Lsn(position)),
            source: theirs,
            own_source: ours,
            ..ResumeRequest::default()
        };
        let head = Head { sequence: Sequence(9), position: Lsn(1000), committed_at: laredo_core::CommitTime(0) };
        let pruned = Boundary { sequence: Sequence(1), position: Lsn::ZERO };
        let definitions = &Definitions::default();
        let facts = Facts { instance: "j", head, pruned, gaps: &Gaps::default(), definitions };
        resolve(&request, &facts, |_| Floor::Commit(Sequence(5)), |_| true)
    }

    #[test]
    fn a_position_counts_on_the_line_of_history_that_leads_here_only() {
        let goes_on = Resolution::Delta(Sequence(5), BY_POSITION);
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
            let expected = expected.map_or_else(Resolution::Full, |()| goes_on);
            assert_eq!(ask(identity(ours), theirs, position), expected, "{what}");
        }
    }
}
