//! A fork of the database's history, as a table handles it: noted on disk first, then followed by a
//! copy into a new journal.

use laredo_core::Sequence;

use super::recent_transactions::RecentTransactions;
use super::{FollowUpAction, OngoingCopy, Table, TableError, copy};
use crate::durable::DurablePosition;
use crate::source::Fork;
use crate::source::SourceIdentity;
use crate::store::{ForkLog, JournalManifest, RowDefinition, SKIPPED};

/// A fork that could not be noted on disk.
#[derive(Debug)]
pub(super) struct UnnotedFork {
    /// The present identity of the database; `None` if the history may still be the same.
    identity: Option<SourceIdentity>,
    fork: Fork,
    reason: String,
}

impl Table {
    /// Notes a fork on disk, or remembers that it has to be noted before the table is followed
    /// again.
    pub(super) fn note_or_owe_fork(
        &mut self,
        identity: Option<&SourceIdentity>,
        fork: &Fork,
        reason: &str,
    ) -> Result<(), TableError> {
        // Each later fork is of the history that an earlier one has left.
        let noted = self.note_due_forks().and_then(|_| self.note_fork(fork, reason));
        if noted.is_err() {
            let (identity, fork, reason) = (identity.cloned(), fork.clone(), reason.to_owned());
            self.forks_due.push(UnnotedFork { identity, fork, reason });
        }
        noted
    }

    /// Notes the forks that could not be noted before, and begins the copy that they require.
    /// Returns `None` if there are none.
    pub(super) fn note_due_forks(&mut self) -> Result<Option<FollowUpAction>, TableError> {
        let mut action = None;
        let mut due = std::mem::take(&mut self.forks_due).into_iter();
        while let Some(UnnotedFork { identity, fork, reason }) = due.next() {
            let noted = match identity {
                Some(identity) => self.on_forked(identity, &fork, &reason),
                None => self.on_restarted(&reason, Some(&fork)),
            };
            // A fork that still cannot be noted is due again, before those after it.
            action = Some(noted.inspect_err(|_| self.forks_due.extend(due.by_ref()))?);
        }
        Ok(action)
    }

    /// Notes on disk that the database's history has forked, or may have.
    pub(super) fn note_fork(&mut self, fork: &Fork, reason: &str) -> Result<(), TableError> {
        self.open_missing_folders()?;
        self.abandoned = self.abandoned.max(fork.abandoned);
        self.abandoned_journals.iter_mut().for_each(|(_, common)| *common = fork.common.min(*common));
        if let Some(journal) = &*self.journal.borrow() {
            let is_noted = self.abandoned_journals.iter().any(|(instance, _)| instance == journal.instance());
            if !is_noted {
                self.abandoned_journals.push((journal.instance().clone(), fork.common));
            }
        }
        // This must be first: no snapshot of the other history may be mistaken for one of this
        // history.
        if let Some(journal) = self.journal.borrow().as_ref().filter(|_| fork.is_certain) {
            journal.mark_parted();
        }
        if let Some((store, _)) = &self.bases.store {
            ForkLog::note(store.folder(), fork, reason)?;
        }
        if let Some(snapshots) = self.snapshots() {
            snapshots.note_fork(fork, reason)?;
        }
        if let Some(journal) = &*self.journal.borrow() {
            journal.abandon_up_to(self.abandoned);
        }
        Ok(())
    }

    /// Handles a fork: the database no longer contains what the rows were made of. Once the fork is
    /// noted, the table begins again with a copy and a new journal. Readers keep their rows until
    /// then.
    ///
    /// # Errors
    /// When the fork cannot be noted.
    pub(crate) fn on_forked(
        &mut self,
        identity: SourceIdentity,
        fork: &Fork,
        reason: &str,
    ) -> Result<FollowUpAction, TableError> {
        self.note_or_owe_fork(Some(&identity), fork, reason)?;
        self.status.lock().forks += 1;
        self.identify(identity);
        // Transactions of another history will never be visible in this one.
        self.recent = RecentTransactions::default();
        self.is_forked = true;
        (self.copy_due, self.definition_due, self.owes_copy) = (None, None, None);
        if self.store_failure().is_some() {
            return Ok(FollowUpAction::Nothing);
        }
        tracing::warn!(table = %self.name(), reason, "the table is copied into a new journal");
        if let Some(live) = &mut self.live {
            live.writer.publish()?;
            self.first_sequence = Sequence(live.writer.committed().sequence.0 + SKIPPED);
        }
        let instance = self.options.instance.on_timeline(self.identity.timeline, self.status.lock().forks);
        self.bases.store = self.bases.store.take().map(|(store, _)| (store, instance));
        self.begin_copying(OngoingCopy::after_fork(), reason);
        self.status.lock().releasable = Some(DurablePosition::default());
        Ok(FollowUpAction::Copy)
    }

    /// Handles a new timeline of the database, which contains everything that was followed.
    ///
    /// # Errors
    /// When the timeline cannot be noted on disk.
    pub(crate) fn on_promoted(&mut self, identity: SourceIdentity) -> Result<FollowUpAction, TableError> {
        if let Some((store, _)) = &self.bases.store
            && let Some(mut manifest) = JournalManifest::read(store)?
        {
            manifest.promote(&identity);
            manifest.write(store)?;
        }
        self.identify(identity);
        Ok(FollowUpAction::Nothing)
    }

    fn identify(&mut self, identity: SourceIdentity) {
        if let Some(snapshots) = self.snapshots() {
            snapshots.identify(identity.clone());
        }
        self.identity = identity;
    }

    /// Replaces the journal of another history with a new one.
    pub(super) fn replace_journal(
        &mut self,
        done: copy::CompleteCopy,
        definition: RowDefinition,
    ) -> Result<(), TableError> {
        // The files of the old journal are removed, so nothing may write to them any more.
        drop(self.live.take());
        if let Some((store, _)) = &self.bases.store {
            store.forget_failure();
        }
        let before = self.journal.borrow().clone();
        self.live = Some(self.begin_journal(done, definition, None)?);
        self.is_forked = false;
        if let Some(before) = before {
            before.close();
        }
        Ok(())
    }
}
