//! The database histories that an archive's positions belong to, and the selection of the artifact
//! for a position.
//!
//! A position means something only within one history. Epochs that continue each other are of one
//! history. A later history cuts off everything beyond its fork: only older positions up to the
//! fork are the database's past. If the fork is unknown, no older position is. The rule is pure: it
//! depends only on the manifest.

#[cfg(all(test, feature = "writer"))]
mod tests;

use std::ops::{Range, RangeInclusive};

use laredo_core::{CommitMark, Lsn, ScopedMark, SourceIdentity};
use serde::{Deserialize, Serialize};

use super::{Artifact, ArtifactKind, Manifest};

/// The history that an epoch's positions belong to, as its writer knew it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochHistory {
    /// The number of the epoch with which the history began in this archive.
    pub id: u64,
    /// The newest position up to which a history and the one before it are known to be the same.
    /// Only a history's first epoch has it; `None` if no such position is known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "super::position")]
    pub shared_until: Option<Lsn>,
    /// The database, and its timeline when the epoch began; `None` if the writer did not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceIdentity>,
}

/// The consecutive epochs of one history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedHistory {
    /// The number of the history: that of the epoch with which it began.
    pub id: u64,
    /// The numbers of its oldest epoch that the archive still has, and of its newest one.
    pub epochs: RangeInclusive<u64>,
    /// The indexes of its artifacts in the manifest.
    pub artifacts: Range<usize>,
    /// The newest position up to which it and the history before it are known to be the same; zero
    /// if none is known.
    pub shared_until: Lsn,
    /// The newest position up to which it is part of the newest history's past. The newest history
    /// has no bound.
    pub valid_until: Lsn,
    /// The database, with the timeline of the newest epoch, if they are known.
    pub source: Option<SourceIdentity>,
}

/// The reason why no artifact has the requested state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocateError {
    /// The archive has no state that old.
    TooEarly,
    /// Only a history that is not part of the newest one's past has a state there: `history`, with
    /// the artifact at index `number`.
    OtherHistory { history: u64, number: usize, newest: u64 },
}

impl Manifest {
    /// Returns the histories that the archive has, oldest first.
    ///
    /// Epochs without an entry about their history continue the epoch before them. If their
    /// positions go back, they begin another history, about which nothing more is known.
    #[must_use]
    pub fn histories(&self) -> Vec<ArchivedHistory> {
        let mut histories: Vec<ArchivedHistory> = Vec::new();
        let mut end: Option<Lsn> = None;
        for (number, artifact) in self.artifacts.iter().enumerate() {
            let said = artifact.history.as_deref();
            let current = histories.last_mut().filter(|current| match (artifact.kind, said) {
                (ArtifactKind::Diff, _) => true,
                (ArtifactKind::Snapshot, Some(said)) => said.id == current.id,
                (ArtifactKind::Snapshot, None) => {
                    !matches!((artifact.to_position, end), (Some(to), Some(end)) if to < end)
                }
            });
            match current {
                Some(current) => {
                    current.artifacts.end = number + 1;
                    current.epochs = *current.epochs.start()..=artifact.epoch;
                    if let Some(source) = said.and_then(|said| said.source.clone()) {
                        current.source = Some(source);
                    }
                }
                None => histories.push(ArchivedHistory {
                    id: said.map_or(artifact.epoch, |said| said.id),
                    epochs: artifact.epoch..=artifact.epoch,
                    artifacts: number..number + 1,
                    shared_until: said.and_then(|said| said.shared_until).unwrap_or_default(),
                    valid_until: Lsn(u64::MAX),
                    source: said.and_then(|said| said.source.clone()),
                }),
            }
            end = artifact.to_position.or(end);
        }
        let mut bound = Lsn(u64::MAX);
        for history in histories.iter_mut().rev() {
            history.valid_until = bound;
            bound = bound.min(history.shared_until);
        }
        histories
    }

    /// Returns the number of the history that an epoch's positions belong to.
    pub(crate) fn history_of(&self, epoch: u64) -> u64 {
        let histories = self.histories();
        let number = self.artifacts.iter().rposition(|artifact| artifact.epoch == epoch);
        let of = histories.iter().find(|history| number.is_some_and(|number| history.artifacts.contains(&number)));
        of.map_or(epoch, |history| history.id)
    }

    /// Returns the manifest as it would be if a history had no later ones. It has the history's own
    /// artifacts, and the artifacts of older histories that are part of its past. Returns `None` if
    /// the archive has no such history.
    #[must_use]
    pub fn of_history(&self, id: u64) -> Option<Manifest> {
        let histories = self.histories();
        let end = histories.iter().rfind(|history| history.id == id)?.artifacts.end;
        let mut line = self.clone();
        line.artifacts.truncate(end);
        let mut is_past = line.past().into_iter();
        line.artifacts.retain(|_| is_past.next().unwrap_or(false));
        let newest = line.artifacts.last()?;
        (line.epoch, line.head_position) = (newest.epoch, newest.to_position);
        Some(line)
    }

    /// Returns, for each artifact, true if its end is part of the newest history's past.
    pub(crate) fn past(&self) -> Vec<bool> {
        let mut past = vec![false; self.artifacts.len()];
        for history in self.histories() {
            for number in history.artifacts {
                let is_valid = history.valid_until == Lsn(u64::MAX)
                    || self.end_of(number).is_some_and(|end| end <= history.valid_until);
                past.get_mut(number).into_iter().for_each(|is_past| *is_past = is_valid);
            }
        }
        past
    }

    /// Returns the index of the newest artifact in the newest history that ends at or before a
    /// position.
    ///
    /// # Errors
    /// [`LocateError::TooEarly`] if no history has a boundary at or before the position.
    /// [`LocateError::OtherHistory`] if another history has a boundary closer to the position, and
    /// the position is not within an epoch of the newest history.
    pub(crate) fn locate(&self, at: Lsn) -> Result<usize, LocateError> {
        let past = self.past();
        let is_before = |artifact: &Artifact| artifact.to_position.is_some_and(|to| to <= at);
        let newest = |is_wanted: bool| {
            let mut artifacts = self.artifacts.iter().zip(&past).enumerate().rev();
            artifacts
                .find(|(_, (artifact, is_past))| **is_past == is_wanted && is_before(artifact))
                .map(|(number, _)| number)
        };
        let found = newest(true);
        let Some(other) = newest(false) else {
            return found.ok_or(LocateError::TooEarly);
        };
        let end = |number: usize| self.artifacts.get(number).and_then(|artifact| artifact.to_position);
        // Between two boundaries of one epoch, the newest history has the position.
        let is_inside = |number: usize| {
            let next = self.artifacts.get(number + 1).zip(past.get(number + 1));
            next.is_some_and(|(next, is_past)| next.kind == ArtifactKind::Diff && *is_past)
        };
        match found {
            Some(number) if is_inside(number) || end(number) >= end(other) => Ok(number),
            Some(_) | None => Err(self.other_history(other)),
        }
    }

    /// Returns the index of the newest artifact for which `holds` returns true, whatever its
    /// position.
    ///
    /// # Errors
    /// If there is no such artifact, or if it is not part of the newest history's past.
    pub(crate) fn locate_where(&self, holds: impl Fn(&Artifact) -> bool) -> Result<usize, LocateError> {
        let number = self.artifacts.iter().rposition(holds).ok_or(LocateError::TooEarly)?;
        match self.past().get(number) {
            Some(true) => Ok(number),
            Some(false) | None => Err(self.other_history(number)),
        }
    }

    /// Returns the position that an artifact leads to. If another writer left out that of a
    /// snapshot, it is where the diff after it begins.
    fn end_of(&self, number: usize) -> Option<Lsn> {
        let artifact = self.artifacts.get(number)?;
        let next = || self.artifacts.get(number + 1).filter(|next| next.epoch == artifact.epoch)?.from_position;
        artifact.to_position.or_else(next)
    }

    fn other_history(&self, number: usize) -> LocateError {
        let histories = self.histories();
        let of = histories.iter().find(|history| history.artifacts.contains(&number));
        let id = |history: Option<&ArchivedHistory>| history.map_or(0, |history| history.id);
        LocateError::OtherHistory { history: id(of), number, newest: id(histories.last()) }
    }

    /// Returns the history of a new epoch's positions. `shared_until` is the newest position up to
    /// which that history and the one of the archive's head are known to be the same.
    #[cfg(feature = "writer")]
    pub(crate) fn next_history(
        &self,
        epoch: u64,
        to: Lsn,
        shared_until: Lsn,
        source: Option<SourceIdentity>,
    ) -> EpochHistory {
        let histories = self.histories();
        let head = self.head_position;
        let is_same_database = |newest: &&ArchivedHistory| match (&newest.source, &source) {
            (Some(one), Some(other)) => one.is_same_database(other),
            (_, _) => true,
        };
        let Some(newest) = histories.last().filter(is_same_database) else {
            return EpochHistory { id: epoch, shared_until: None, source };
        };
        if head.is_some_and(|head| head <= shared_until.min(to)) {
            return EpochHistory { id: newest.id, shared_until: None, source };
        }
        let shared = shared_until.min(to);
        EpochHistory { id: epoch, shared_until: (shared > Lsn::ZERO).then_some(shared), source }
    }
}

/// A contradiction between a manifest's entries about histories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HistoryFault {
    /// The index of the artifact in the manifest.
    pub(crate) number: usize,
    pub(crate) reason: String,
}

impl Manifest {
    /// Returns the contradictions in the entries about histories and marks.
    pub(crate) fn history_faults(&self) -> Vec<HistoryFault> {
        let mut faults = Vec::new();
        let mut fault = |number, reason| faults.push(HistoryFault { number, reason });
        let mut newest_id: Option<u64> = None;
        for history in self.histories() {
            if let Some(newest_id) = newest_id.filter(|newest_id| history.id <= *newest_id) {
                fault(history.artifacts.start, format!("history {} comes after history {newest_id}", history.id));
            }
            newest_id = newest_id.max(Some(history.id));
            self.check_history(&history, &mut fault);
        }
        faults
    }

    fn check_history(&self, history: &ArchivedHistory, fault: &mut impl FnMut(usize, String)) {
        let (mut before, mut mark): (Option<&Artifact>, Option<ScopedMark>) = (None, None);
        let mut source: Option<&SourceIdentity> = None;
        for (number, artifact) in
            self.artifacts.iter().enumerate().take(history.artifacts.end).skip(history.artifacts.start)
        {
            let said = artifact.history.as_deref();
            if artifact.epoch < history.id {
                fault(number, format!("it names history {}, which begins with a later epoch", history.id));
            }
            if artifact.kind == ArtifactKind::Diff && said.is_some() {
                fault(number, "a diff names a history".to_owned());
            }
            if let (Some(before), ArtifactKind::Snapshot) = (before, artifact.kind) {
                if artifact.to_position < before.to_position && artifact.to_position.is_some() {
                    fault(number, format!("its positions go back within history {}", history.id));
                }
                if said.is_some_and(|said| said.shared_until.is_some()) {
                    fault(number, format!("history {} forks in its middle", history.id));
                }
            }
            let (earlier, theirs) = (source, said.and_then(|said| said.source.as_ref()));
            if let (Some(earlier), Some(theirs)) = (earlier, theirs)
                && (!earlier.is_same_database(theirs) || theirs.timeline < earlier.timeline)
            {
                fault(
                    number,
                    format!("history {} continues in another database or on an earlier timeline", history.id),
                );
            }
            if let Some(newer) = artifact.mark {
                let is_wrong = mark.is_some_and(|older: ScopedMark| is_contradicted(older.commit, newer.commit));
                if is_wrong || artifact.to_position.is_some_and(|to| newer.commit.end > to) {
                    fault(
                        number,
                        format!("its commit mark at {} contradicts its position or an earlier mark", newer.commit.end),
                    );
                }
            }
            (before, mark, source) = (Some(artifact), artifact.mark.or(mark), theirs.or(source));
        }
    }
}

/// Returns true if two marks, the older one first, cannot be of one history. Ends never go back,
/// and one end belongs to one commit.
fn is_contradicted(older: CommitMark, newer: CommitMark) -> bool {
    newer.end < older.end || (newer.end == older.end && newer != older)
}
