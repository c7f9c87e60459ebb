//! The contents that a journal begins with.

use std::collections::VecDeque;
use std::sync::Arc;

use laredo_core::{Lsn, Schema, Sequence};

use super::definitions::DefinitionHistory;
use super::gaps::SequenceGaps;
use crate::base::Base;
use crate::head::{EarlierInstance, Head, InstanceId, TransactionBoundary};
use crate::segment::Segment;
use crate::store::RowDefinition;

/// The journal of an earlier run that issued the snapshot with which this journal begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PredecessorJournal {
    pub(crate) instance: InstanceId,
    /// The snapshot's position.
    pub(crate) position: Lsn,
    /// The first position from which on the table did not change until the snapshot's position.
    pub(crate) unchanged_since: Lsn,
}

/// The contents that a journal begins with: a base alone, or what an earlier journal left.
#[derive(Debug)]
pub(crate) struct JournalBeginning {
    pub(crate) instance: InstanceId,
    pub(crate) earlier: Vec<EarlierInstance>,
    pub(crate) predecessor: Option<PredecessorJournal>,
    pub(crate) abandoned: Lsn,
    /// The journals of abandoned histories. Each has the newest position that its history is known
    /// to share with this one.
    pub(crate) abandoned_journals: Vec<(InstanceId, Lsn)>,
    pub(crate) base: Arc<Base>,
    pub(crate) schema: Arc<Schema>,
    pub(crate) definition: RowDefinition,
    pub(crate) definitions: DefinitionHistory,
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) spans: Vec<(Lsn, Lsn)>,
    pub(crate) gaps: SequenceGaps,
    pub(crate) pruned: TransactionBoundary,
    pub(crate) head: Head,
    /// The last sequence that may have been assigned.
    pub(crate) assigned: Sequence,
}

impl JournalBeginning {
    /// Returns the beginning of a journal that has only a base.
    pub(crate) fn from_base(instance: InstanceId, base: Arc<Base>, definition: RowDefinition) -> JournalBeginning {
        let head = base.head();
        let Head { sequence, position, .. } = head;
        JournalBeginning {
            instance,
            earlier: Vec::new(),
            predecessor: None,
            abandoned: Lsn::ZERO,
            abandoned_journals: Vec::new(),
            schema: base.schema().clone(),
            base,
            definitions: DefinitionHistory::new(position, definition.version()),
            definition,
            segments: VecDeque::new(),
            spans: Vec::new(),
            gaps: SequenceGaps::default(),
            pruned: TransactionBoundary { sequence, position },
            head,
            assigned: sequence,
        }
    }

    /// Lets readers resume from every position at which the table was the same as in the snapshot.
    pub(crate) fn set_predecessor(&mut self, predecessor: PredecessorJournal) {
        let since = predecessor.unchanged_since.min(self.pruned.position);
        self.pruned.position = since;
        self.definitions = DefinitionHistory::new(since, self.definition.version());
        self.predecessor = Some(predecessor);
    }
}
