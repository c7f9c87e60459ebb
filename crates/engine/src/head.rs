//! The names of journals, and the states that their readers may see.

use laredo_core::{Checksum, CommitMark, CommitTime, DefinitionVersion, Lsn, Sequence};

/// The separator before the definition in a snapshot ID. A sequence has only decimal digits.
const DEFINITION_MARK: &str = "-d";

/// The name of one journal. Sequences mean something only together with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId(pub String);

impl InstanceId {
    /// Returns the ID of a journal that begins on `timeline` after `forks` forks in this run.
    #[must_use]
    pub(crate) fn on_timeline(&self, timeline: u32, forks: u64) -> InstanceId {
        match forks {
            0 => InstanceId(format!("{}.{timeline}", self.0)),
            forks => InstanceId(format!("{}.{timeline}.{forks}", self.0)),
        }
    }

    /// Returns the timeline on which a journal began, from its ID or the ID of one of its
    /// snapshots.
    pub(crate) fn timeline_of(id: &str) -> Option<u32> {
        id.split('-').next()?.split('.').nth(1)?.parse().ok()
    }

    /// Returns the ID of the snapshot that this journal issues at a sequence.
    #[must_use]
    pub fn snapshot_id(&self, sequence: Sequence) -> String {
        format!("{}-{sequence}", self.0)
    }

    /// Returns the ID of the snapshot that this journal issues at a sequence, including the
    /// definition of its rows. The client sends the ID back, to this server or another one.
    #[must_use]
    pub fn snapshot_id_under(&self, sequence: Sequence, definition: DefinitionVersion) -> String {
        let id = self.snapshot_id(sequence);
        if definition.is_known() { format!("{id}{DEFINITION_MARK}{definition}") } else { id }
    }

    /// Returns the sequence of a snapshot that this journal issued. Returns `None` for another ID.
    #[must_use]
    pub fn issued_sequence(&self, snapshot_id: &str) -> Option<Sequence> {
        let (instance, sequence) = InstanceId::parse_snapshot_id(snapshot_id)?;
        (instance == self.0).then_some(sequence)
    }

    /// Returns the instance that issued a snapshot ID, and the snapshot's sequence. Returns `None`
    /// for an invalid ID.
    #[must_use]
    pub fn parse_snapshot_id(snapshot_id: &str) -> Option<(&str, Sequence)> {
        let issued = snapshot_id.rsplit_once(DEFINITION_MARK).map_or(snapshot_id, |(issued, _)| issued);
        let (instance, sequence) = issued.rsplit_once('-')?;
        Some((instance, Sequence(sequence.parse().ok()?)))
    }

    /// Returns the definition in a snapshot ID of any journal; unknown if the ID has none.
    pub(crate) fn definition_in(snapshot_id: &str) -> DefinitionVersion {
        let version = snapshot_id.rsplit_once(DEFINITION_MARK).and_then(|(_, version)| version.parse().ok());
        version.unwrap_or_default()
    }
}

/// The newest state that readers may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The sequence of the last visible entry.
    pub sequence: Sequence,
    /// The position up to which every commit of the table is visible.
    pub position: Lsn,
    /// The time when the newest visible transaction committed.
    pub committed_at: CommitTime,
    /// The newest commit of any of the source's tables at or before the position; all zeros if
    /// unknown.
    pub mark: CommitMark,
    /// The checksum of the visible rows; `None` if unknown.
    pub checksum: Option<Checksum>,
}

/// A name that a journal had in an earlier run. Its sequences are this journal's up to `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EarlierInstance {
    pub(crate) id: InstanceId,
    /// The last entry that is known to be the same under that name.
    pub(crate) last: Sequence,
}

/// The point between two transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransactionBoundary {
    pub(crate) sequence: Sequence,
    pub(crate) position: Lsn,
}
