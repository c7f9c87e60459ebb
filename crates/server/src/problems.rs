//! The reasons why tables are not served, or not as they should be.

use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::TablePhase;

use crate::table::ServedTable;

/// The age of a table's rows beyond which they are stale.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// A kind of problem of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProblemKind {
    /// The table cannot be followed until an operator acts.
    Failed,
    /// The last attempt to copy or follow the table failed, and another one is scheduled.
    Retrying,
    /// The table has no rows of the database's present history yet.
    Copying,
    /// An operator has drained the table, or the server is about to stop.
    Drained,
    /// The definition was not verified in the catalog for too long.
    DefinitionUnverified,
    /// The rows are older than [`STALE_AFTER`].
    Stale,
    /// The journal cannot be written to its disk.
    JournalNotKept,
}

/// A problem of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableProblem {
    pub(crate) kind: ProblemKind,
    /// A description of the problem, with the necessary action if an operator has to act.
    pub(crate) detail: String,
}

impl ProblemKind {
    pub(crate) const ALL: [ProblemKind; 7] = [
        ProblemKind::Failed,
        ProblemKind::Retrying,
        ProblemKind::Copying,
        ProblemKind::Drained,
        ProblemKind::DefinitionUnverified,
        ProblemKind::Stale,
        ProblemKind::JournalNotKept,
    ];

    /// Returns the kind's name in health and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ProblemKind::Failed => "failed",
            ProblemKind::Retrying => "retrying",
            ProblemKind::Copying => "copying",
            ProblemKind::Drained => "drained",
            ProblemKind::DefinitionUnverified => "definition_unverified",
            ProblemKind::Stale => "stale",
            ProblemKind::JournalNotKept => "journal_not_kept",
        }
    }
}

impl TableProblem {
    /// Returns all problems of a table.
    pub(crate) fn find_all(table: &ServedTable, now: CommitTime) -> Vec<TableProblem> {
        let status = table.handle().status();
        let journal = table.handle().journal().filter(|journal| !journal.is_parted());
        let mut problems = Vec::new();
        let mut add = |kind, detail| problems.push(TableProblem { kind, detail });
        match &status.phase {
            TablePhase::Failed { error } => add(ProblemKind::Failed, error.clone()),
            TablePhase::Retrying { error, .. } => add(ProblemKind::Retrying, error.clone()),
            TablePhase::Copying { .. } | TablePhase::Live => {}
        }
        if table.drain().has_begun() {
            add(ProblemKind::Drained, "draining".to_owned());
        }
        if journal.is_none() && status.phase.error().is_none() {
            add(
                ProblemKind::Copying,
                "it has no rows of the database's present history until its copy is complete".to_owned(),
            );
        }
        if let Some(age) = table.unverified(now) {
            let detail = format!("its definition was not verified for {} s", age.as_secs());
            add(ProblemKind::DefinitionUnverified, detail);
        }
        let lag_us = u64::try_from(now.0.saturating_sub(status.current_at.0)).unwrap_or(0);
        if status.position > Lsn::ZERO && Duration::from_micros(lag_us) > STALE_AFTER {
            add(ProblemKind::Stale, format!("its rows are {} s old", lag_us / 1_000_000));
        }
        let store = journal.and_then(|journal| journal.store_status());
        if let Some(error) = store.and_then(|store| store.failed.or(store.stalled)) {
            add(ProblemKind::JournalNotKept, error);
        }
        problems
    }
}
