//! The states of a table, each with what a table has in it.

use laredo_core::{CommitTime, Lsn};

use super::TableCommit;
use super::apply::ApplyError;
use super::copy::OngoingCopy;
use super::published::{PublishedTable, RowOrigin, TableChangeCounts};
use super::redefinition::{OwedCopy, Redefinition};
use super::server_run::ServerRun;
use super::verification::{Verification, VerifyPartError};
use crate::source::{TablePart, TablePartEvent};
use crate::verify::{VerifyReport, VerifyTerms};

/// The state of a table.
#[derive(Debug)]
pub(super) enum TableLifecycle {
    /// The table is being copied, or waits for the next attempt at a copy.
    Copying {
        copy: Box<OngoingCopy>,
        /// The table as readers know it; `None` before the first copy.
        served: Option<PublishedTable>,
        /// The copy that was requested while this one was being made.
        owed: Option<OwedCopy>,
    },
    /// The table follows its source.
    Live(LiveTable),
    /// The table is not followed. Transactions are only remembered, because the next copy has to
    /// see them. The status says whether another attempt is scheduled.
    Stopped {
        /// The table as readers know it; `None` before the first copy.
        served: Option<PublishedTable>,
        /// The copy that was requested before the table stopped.
        owed: Option<OwedCopy>,
    },
}

/// A table that follows its source.
#[derive(Debug)]
pub(super) struct LiveTable {
    pub(super) served: PublishedTable,
    /// The time of the newest commit applied since the last [`LiveTable::take_newest_commit`].
    newest_commit: Option<CommitTime>,
    copy_due: Option<DueCopy>,
    /// A definition that the rows will have once the stream reaches its position.
    definition_due: Option<Redefinition>,
    /// The verification pass that is running.
    verification: Option<Box<Verification>>,
}

/// A copy that begins once the stream has reached a position.
#[derive(Debug)]
struct DueCopy {
    at: Lsn,
    /// The reason, for the log.
    reason: String,
}

impl TableLifecycle {
    /// Returns the state before the first copy.
    pub(super) fn new() -> TableLifecycle {
        TableLifecycle::Copying { copy: Box::new(OngoingCopy::first()), served: None, owed: None }
    }

    /// Returns the table as readers know it; `None` before the first copy.
    pub(super) fn served(&self) -> Option<&PublishedTable> {
        match self {
            TableLifecycle::Copying { served, .. } | TableLifecycle::Stopped { served, .. } => served.as_ref(),
            TableLifecycle::Live(live) => Some(&live.served),
        }
    }

    /// Returns the same as [`TableLifecycle::served`], to be changed.
    pub(super) fn served_mut(&mut self) -> Option<&mut PublishedTable> {
        match self {
            TableLifecycle::Copying { served, .. } | TableLifecycle::Stopped { served, .. } => served.as_mut(),
            TableLifecycle::Live(live) => Some(&mut live.served),
        }
    }

    /// Returns the copy under way.
    pub(super) fn copy(&self) -> Option<&OngoingCopy> {
        match self {
            TableLifecycle::Copying { copy, .. } => Some(copy),
            TableLifecycle::Live(_) | TableLifecycle::Stopped { .. } => None,
        }
    }

    /// Returns the same as [`TableLifecycle::copy`], to be changed.
    pub(super) fn copy_mut(&mut self) -> Option<&mut OngoingCopy> {
        match self {
            TableLifecycle::Copying { copy, .. } => Some(copy),
            TableLifecycle::Live(_) | TableLifecycle::Stopped { .. } => None,
        }
    }

    /// Returns the table if it follows its source.
    pub(super) fn live(&self) -> Option<&LiveTable> {
        match self {
            TableLifecycle::Live(live) => Some(live),
            TableLifecycle::Copying { .. } | TableLifecycle::Stopped { .. } => None,
        }
    }

    /// Returns the same as [`TableLifecycle::live`], to be changed.
    pub(super) fn live_mut(&mut self) -> Option<&mut LiveTable> {
        match self {
            TableLifecycle::Live(live) => Some(live),
            TableLifecycle::Copying { .. } | TableLifecycle::Stopped { .. } => None,
        }
    }

    /// Begins a copy. Readers keep the rows that they have.
    pub(super) fn begin_copying(&mut self, copy: OngoingCopy) {
        let (served, owed) = self.take_served();
        *self = TableLifecycle::Copying { copy: Box::new(copy), served, owed };
    }

    /// Stops following the source. Readers keep the rows that they have.
    pub(super) fn stop(&mut self) {
        let (served, owed) = self.take_served();
        *self = TableLifecycle::Stopped { served, owed };
    }

    /// Forgets the copy and the definition that the table waits for.
    pub(super) fn forget_due(&mut self) {
        match self {
            TableLifecycle::Copying { owed, .. } | TableLifecycle::Stopped { owed, .. } => *owed = None,
            TableLifecycle::Live(live) => (live.copy_due, live.definition_due) = (None, None),
        }
    }

    /// Takes what the next state keeps. The caller must set that state.
    fn take_served(&mut self) -> (Option<PublishedTable>, Option<OwedCopy>) {
        match std::mem::replace(self, TableLifecycle::Stopped { served: None, owed: None }) {
            TableLifecycle::Copying { served, owed, .. } | TableLifecycle::Stopped { served, owed } => (served, owed),
            TableLifecycle::Live(live) => (Some(live.served), None),
        }
    }
}

impl LiveTable {
    pub(super) fn new(served: PublishedTable) -> LiveTable {
        LiveTable { served, newest_commit: None, copy_due: None, definition_due: None, verification: None }
    }

    /// Applies a transaction, and writes it to the journal.
    pub(super) fn apply(&mut self, commit: &mut TableCommit) -> Result<TableChangeCounts, ApplyError> {
        let counts = self.served.apply(commit, self.verification.as_deref_mut())?;
        self.newest_commit = Some(commit.committed_at);
        Ok(counts)
    }

    /// Returns the time of the newest commit that was applied since the last call.
    pub(super) fn take_newest_commit(&mut self) -> Option<CommitTime> {
        self.newest_commit.take()
    }

    /// Makes a copy due once the stream has reached a position.
    pub(super) fn set_copy_due(&mut self, at: Lsn, reason: String) {
        self.copy_due = Some(DueCopy { at, reason });
    }

    /// Returns the reason of the copy that is due, if the stream has come so far.
    pub(super) fn take_due_copy(&mut self) -> Option<String> {
        let reached = self.served.position();
        self.copy_due.take_if(|due| due.at <= reached).map(|due| due.reason)
    }

    /// Notes a definition that the rows have once the stream reaches its position.
    ///
    /// A definition that still waits is not written, but its check of the rows is still made.
    pub(super) fn set_definition_due(&mut self, mut redefinition: Redefinition) {
        let mut earlier = self.definition_due.take().map(|due| due.values).unwrap_or_default();
        earlier.retain(|values| !redefinition.values.iter().any(|newer| newer.column == values.column));
        redefinition.values.append(&mut earlier);
        self.definition_due = Some(redefinition);
    }

    /// Returns the definition that is due, if the stream has come so far.
    pub(super) fn take_due_definition(&mut self) -> Option<Redefinition> {
        let reached = self.served.position();
        self.definition_due.take_if(|due| due.from <= reached)
    }

    /// Returns true if every row is checked when the definition that waits for the stream is due.
    pub(super) fn has_rows_to_check(&self) -> bool {
        self.definition_due.as_ref().is_some_and(|due| !due.values.is_empty())
    }

    /// Returns true if a verification pass may begin: the rows are the source's, and stay known.
    pub(super) fn can_verify(&self) -> bool {
        self.served.origin == RowOrigin::Source && self.copy_due.is_none()
    }

    /// Returns the verification pass that is running.
    pub(super) fn verification(&self) -> Option<&Verification> {
        self.verification.as_deref()
    }

    pub(super) fn begin_verification(&mut self, terms: &VerifyTerms) {
        self.verification = Some(Box::new(Verification::new(terms, self.served.rows())));
    }

    /// Ends the pass that is running without a result.
    pub(super) fn drop_verification(&mut self) {
        self.verification = None;
    }

    /// Begins the next part of the pass.
    pub(super) fn begin_part(&mut self) -> Option<TablePart> {
        self.verification.as_mut()?.begin_part()
    }

    /// Gives up the part that is being read.
    pub(super) fn drop_part(&mut self) {
        self.verification.iter_mut().for_each(|verification| verification.drop_part());
    }

    /// Has a part read again that was read in another run of PostgreSQL.
    pub(super) fn check_part(&mut self, run: &ServerRun) {
        self.verification.iter_mut().for_each(|verification| verification.check_part(run));
    }

    /// Handles an event of the part.
    pub(super) fn on_part(&mut self, event: TablePartEvent) -> Result<(), VerifyPartError> {
        match &mut self.verification {
            Some(verification) => verification.on_part(event, &self.served),
            None => Ok(()),
        }
    }

    /// Searches the next buckets of the state for rows that were not seen.
    pub(super) fn sweep_some(&mut self) {
        self.verification.iter_mut().for_each(|verification| verification.sweep_some(&self.served));
    }

    /// Ends the pass that is done, and returns its result.
    pub(super) fn end_verification(&mut self, finished_at: CommitTime) -> Option<VerifyReport> {
        self.verification.take().map(|verification| verification.into_report(&self.served, finished_at))
    }
}
