//! The definitions of a journal's rows, and the positions from which they apply.

use std::collections::VecDeque;

use laredo_core::{DefinitionVersion, Lsn};

use super::resolve::{ResumeFacts, ResumeRequest};
use crate::head::InstanceId;

/// The definitions of a journal, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct DefinitionHistory {
    points: VecDeque<DefinitionPoint>,
}

#[derive(Clone, Copy, Debug)]
struct DefinitionPoint {
    /// The first position at which the rows have this definition.
    since: Lsn,
    version: DefinitionVersion,
    /// True if rows of the previous definition are also rows of this one.
    keeps_rows: bool,
}

/// The effect of a change of the definition on the rows at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefinitionChange {
    /// No effect: the stream has contained every change of the rows.
    KeepsRows,
    /// A change of some rows that the stream did not contain.
    ChangesRows,
}

impl DefinitionHistory {
    /// Returns the definitions of a journal that knows none.
    #[cfg(test)]
    pub(super) const fn none() -> DefinitionHistory {
        DefinitionHistory { points: VecDeque::new() }
    }

    /// Creates the list with the definition of the rows at a position.
    pub(crate) fn new(position: Lsn, version: DefinitionVersion) -> DefinitionHistory {
        DefinitionHistory { points: [DefinitionPoint { since: position, version, keeps_rows: false }].into() }
    }

    /// Notes that the rows have a definition from `since` on. `since` must not be below any
    /// position noted so far.
    pub(crate) fn push(&mut self, since: Lsn, version: DefinitionVersion, change: DefinitionChange) {
        if self.newest() == version && !self.points.is_empty() {
            return;
        }
        let mut keeps_rows = change == DefinitionChange::KeepsRows;
        while let Some(replaced) = self.points.pop_back_if(|point| point.since >= since) {
            keeps_rows &= replaced.keeps_rows;
        }
        if self.points.is_empty() || self.newest() != version || !keeps_rows {
            self.points.push_back(DefinitionPoint { since, version, keeps_rows });
        }
    }

    /// Returns the newest definition.
    pub(crate) fn newest(&self) -> DefinitionVersion {
        self.points.back().map_or(DefinitionVersion::UNKNOWN, |point| point.version)
    }

    /// Returns the position from which on the newest definition applies.
    pub(super) fn newest_since(&self) -> Lsn {
        self.points.back().map_or(Lsn::ZERO, |point| point.since)
    }

    /// Returns the definition at a position; unknown before the first one that is kept.
    pub(crate) fn version_at(&self, position: Lsn) -> DefinitionVersion {
        let point = self.index_at(position).and_then(|index| self.points.get(index));
        point.map_or(DefinitionVersion::UNKNOWN, |point| point.version)
    }

    fn index_at(&self, position: Lsn) -> Option<usize> {
        self.points.partition_point(|point| point.since <= position).checked_sub(1)
    }

    /// Returns true if rows of a definition at a position are the rows of this journal there.
    ///
    /// That is the case if it is the definition at the position, or if no row changed between the
    /// two definitions. Servers notice such changes at different positions.
    fn has_rows_of(&self, version: DefinitionVersion, position: Lsn) -> bool {
        let Some(index) = self.index_at(position) else { return false };
        let first = self.points.range(..=index).rposition(|point| !point.keeps_rows).unwrap_or(0);
        let later = self.points.range(index + 1..).take_while(|point| point.keeps_rows).count();
        self.points.range(first..=index + later).any(|point| point.version == version)
    }

    /// Returns true if a change of the definition has changed rows after a position.
    pub(super) fn change_rows_after(&self, position: Lsn) -> bool {
        self.points.iter().any(|point| point.since > position && !point.keeps_rows)
    }

    /// Removes the definitions that no position from this one on needs.
    pub(super) fn forget_before(&mut self, position: Lsn) {
        while self.points.get(1).is_some_and(|point| point.since <= position) {
            self.points.pop_front();
        }
    }
}

/// The reason of a full snapshot if the client's rows have a different definition at their
/// position.
pub const DEFINITION_DIFFERS: &str = "definition differs";

/// Checks that the rows of a client of another journal have this journal's definition at their
/// position.
///
/// A server notices some changes of a definition only some time later, and then copies the table
/// again. Until then, its clients have different rows at the same position than those of a server
/// that has done so. A client with rows of this journal always resumes: the journal contains the
/// difference. A client that sends only a position does not say where its rows are from, and is
/// trusted.
///
/// # Errors
/// The reason for which the client needs a snapshot.
pub(super) fn check_definition(
    request: &ResumeRequest,
    facts: &ResumeFacts<'_>,
    position: Lsn,
) -> Result<(), &'static str> {
    let ours = facts.definitions;
    if facts.is_own(request) || facts.has_rows_of_snapshot(request, position) || !ours.version_at(position).is_known() {
        return Ok(());
    }
    let theirs = match request.definition.is_known() {
        true => request.definition,
        false => InstanceId::definition_in(&request.snapshot_id),
    };
    let is_silent = request.instance.is_empty() && request.snapshot_id.is_empty();
    match theirs.is_known() {
        true if ours.has_rows_of(theirs, position) => Ok(()),
        true => Err(DEFINITION_DIFFERS),
        false if is_silent => Ok(()),
        false => Err("definition unknown"),
    }
}

#[cfg(test)]
mod tests {
    use laredo_core::{CommitMark, CommitTime, Sequence};

    use super::DefinitionChange::{ChangesRows, KeepsRows};
    use super::*;
    use crate::head::{Head, TransactionBoundary};
    use crate::journal::SequenceGaps;

    const OLD: DefinitionVersion = DefinitionVersion(1);
    const NEW: DefinitionVersion = DefinitionVersion(2);

    #[test]
    fn each_definition_holds_from_its_position_on() {
        let mut definitions = DefinitionHistory::new(Lsn(100), OLD);
        definitions.push(Lsn(150), OLD, ChangesRows);
        definitions.push(Lsn(200), NEW, ChangesRows);
        definitions.push(Lsn(300), OLD, KeepsRows);
        let at = |definitions: &DefinitionHistory| {
            [99, 100, 199, 200, 299, 300, 400].map(|at| definitions.version_at(Lsn(at)).0)
        };
        assert_eq!(at(&definitions), [0, 1, 1, 2, 2, 1, 1]);
        definitions.push(Lsn(300), NEW, KeepsRows);
        assert_eq!(at(&definitions), [0, 1, 1, 2, 2, 2, 2], "the last one that a position gets");
        assert_eq!(definitions.points.len(), 2, "and it holds from where it held before");
        definitions.forget_before(Lsn(199));
        assert_eq!(definitions.version_at(Lsn(150)), OLD, "it is needed still");
        definitions.forget_before(Lsn(200));
        assert_eq!(at(&definitions), [0, 0, 0, 2, 2, 2, 2]);
    }

    #[test]
    fn definitions_between_which_no_row_changed_are_as_good_as_one() {
        let mut definitions = DefinitionHistory::new(Lsn(100), DefinitionVersion(1));
        definitions.push(Lsn(200), DefinitionVersion(2), KeepsRows);
        definitions.push(Lsn(300), DefinitionVersion(3), ChangesRows);
        definitions.push(Lsn(400), DefinitionVersion(4), KeepsRows);
        definitions.push(Lsn(500), DefinitionVersion(5), KeepsRows);
        for (position, good) in [(99, &[][..]), (100, &[1, 2]), (299, &[1, 2]), (300, &[3, 4, 5]), (600, &[3, 4, 5])] {
            for version in 1..=6 {
                let is_good = definitions.has_rows_of(DefinitionVersion(version), Lsn(position));
                assert_eq!(is_good, good.contains(&version), "{version} at {position}");
            }
        }
        assert!(definitions.change_rows_after(Lsn(299)) && !definitions.change_rows_after(Lsn(300)));
        // Two changes at one position count as one.
        definitions.push(Lsn(700), DefinitionVersion(7), ChangesRows);
        definitions.push(Lsn(700), DefinitionVersion(8), KeepsRows);
        assert!(!definitions.has_rows_of(DefinitionVersion(5), Lsn(700)));
        definitions.push(Lsn(700), DefinitionVersion(5), KeepsRows);
        assert!(!definitions.has_rows_of(DefinitionVersion(4), Lsn(700)) && definitions.change_rows_after(Lsn(600)));
    }

    fn snapshot(id: &str) -> ResumeRequest {
        ResumeRequest { snapshot_id: id.to_owned(), ..ResumeRequest::default() }
    }

    #[test]
    fn rows_of_another_definition_are_not_continued() {
        let (differs, unknown) = ("definition differs", "definition unknown");
        let binary = |instance: &str, definition| ResumeRequest {
            instance: instance.to_owned(),
            definition,
            ..ResumeRequest::default()
        };
        let (own, other) = (InstanceId("own".to_owned()), InstanceId("other".to_owned()));
        let named = |instance: &InstanceId, version| snapshot(&instance.snapshot_id_under(Sequence(7), version));
        let nothing = DefinitionVersion::UNKNOWN;
        let table = [
            (NEW, binary("", NEW), Ok(()), "the same, from anywhere"),
            (NEW, binary("other", NEW), Ok(()), "the same, from another server"),
            (NEW, binary("other", OLD), Err(differs), "a server that had not noticed"),
            (OLD, binary("other", NEW), Err(differs), "a server that noticed before this one"),
            (NEW, binary("", OLD), Err(differs), "an archive that was left behind"),
            (NEW, binary("own", OLD), Ok(()), "rows of this journal, which holds the difference"),
            (NEW, binary("own", nothing), Ok(()), "a client that knows of none, of this journal"),
            (NEW, binary("other", nothing), Err(unknown), "and of another one"),
            (NEW, named(&own, OLD), Ok(()), "rows of this journal, whose snapshot was older"),
            (NEW, named(&own, nothing), Ok(()), "an id without a definition"),
            (NEW, named(&other, NEW), Ok(()), "a Struct client of another server"),
            (NEW, named(&other, OLD), Err(differs), "of a server that had not noticed"),
            (OLD, named(&other, NEW), Err(differs), "of a server that had noticed already"),
            (NEW, named(&other, nothing), Err(unknown), "of a server that knows of none"),
            (NEW, snapshot("garbage"), Err(unknown), "an id of some other program"),
            (NEW, snapshot(""), Ok(()), "a position alone cannot say more"),
            (nothing, binary("other", OLD), Ok(()), "a source that names no definitions"),
        ];
        for (ours, request, expected, what) in table {
            let (definitions, gaps) = (&DefinitionHistory::new(Lsn(100), ours), &SequenceGaps::default());
            let (sequence, position, mark) = (Sequence(9), Lsn(1000), CommitMark::default());
            let facts = ResumeFacts {
                instance: "own",
                earlier: &[],
                predecessor: None,
                head: Head { sequence, position, committed_at: CommitTime(0), mark, checksum: None },
                pruned: TransactionBoundary { sequence: Sequence(1), position: Lsn::ZERO },
                abandoned: Lsn::ZERO,
                has_mark_in_span: false,
                gaps,
                definitions,
            };
            assert_eq!(check_definition(&request, &facts, Lsn(200)), expected, "{what}");
        }
    }

    #[test]
    fn snapshot_ids_are_read_with_and_without_a_definition() {
        let own = InstanceId("0d-1".to_owned());
        for version in [DefinitionVersion(0), OLD, DefinitionVersion(u64::MAX)] {
            let id = own.snapshot_id_under(Sequence(42), version);
            assert_eq!(
                (own.issued_sequence(&id), InstanceId::definition_in(&id)),
                (Some(Sequence(42)), version),
                "{id}"
            );
        }
        assert_eq!(own.snapshot_id_under(Sequence(42), DefinitionVersion(0)), own.snapshot_id(Sequence(42)));
        for id in ["", "0d-1", "0d-1-", "0d-1-x", "0d-12-5", "-d", "0d-1-d0000000000000001"] {
            assert_eq!(own.issued_sequence(id), None, "{id}");
        }
        for id in ["", "0d-1-42", "a-d12", "a-dx-4503599627370496"] {
            assert!(!InstanceId::definition_in(id).is_known(), "{id}");
        }
    }
}
