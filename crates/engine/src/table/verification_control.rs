//! The table's side of verification: passes begin, receive events and end here.

use std::sync::Arc;

use laredo_core::{Cell, Lsn, Schema};
use laredo_values::{Value, project_cell};

use super::verification::{Verification, VerifyPartError};
use super::{FollowUpAction, RowOrigin, Table, TableError, TableLifecycle};
use crate::source::{TablePart, TablePartEvent};
use crate::status::TablePhase;
use crate::verify::{RowDifference, VerifyError, VerifyReport, VerifySchedule, VerifyTerms};

/// The number of differences that are logged one by one.
const LOGGED_MAX: usize = 20;

impl Table {
    /// Returns true if a pass may begin: the rows are the source's, and the table follows it.
    pub(super) fn can_verify(&self) -> bool {
        let is_known = self.live.as_ref().is_some_and(|live| live.known == RowOrigin::Source);
        is_known && matches!(self.phase, TableLifecycle::Live) && self.copy_due.is_none()
    }

    /// Returns the schedule of the table's verifications in the background.
    pub(super) fn verify_schedule(&self) -> Option<VerifySchedule> {
        self.options.verify.clone()
    }

    /// Returns the error of a table that has failed until an operator acts.
    pub(super) fn failure(&self) -> Option<String> {
        match &self.status.lock().phase {
            TablePhase::Failed { error } => Some(error.clone()),
            TablePhase::Copying { .. } | TablePhase::Live | TablePhase::Retrying { .. } => None,
        }
    }

    /// Returns the pass that is running.
    pub(super) fn verification(&self) -> Option<&Verification> {
        self.verification.as_deref()
    }

    pub(super) fn begin_verification(&mut self, terms: &VerifyTerms) {
        let rows = self.live.as_ref().map_or(0, |live| live.state.len());
        self.verification = Some(Box::new(Verification::new(terms, rows)));
        self.report_verification();
    }

    /// Ends the pass that is running without a result.
    pub(super) fn drop_verification(&mut self) {
        self.verification = None;
        self.report_verification();
    }

    /// Begins the next part of the pass.
    pub(super) fn begin_part(&mut self) -> Option<TablePart> {
        self.verification.as_mut()?.begin_part()
    }

    /// Gives up the part that is being read.
    pub(super) fn drop_part(&mut self) {
        self.verification.iter_mut().for_each(|verification| verification.drop_part());
    }

    /// Returns true if every commit up to a position is applied.
    pub(super) fn has_reached(&self, position: Lsn) -> bool {
        self.live.as_ref().is_some_and(|live| live.writer.committed().position >= position)
    }

    /// Handles an event of the part.
    pub(super) fn on_part(&mut self, event: TablePartEvent) -> Result<(), VerifyPartError> {
        if let TablePartEvent::Begin { snapshot, .. } = &event {
            self.recent.forget_below(snapshot.xmin);
        }
        let (Some(verification), Some(live)) = (&mut self.verification, &self.live) else { return Ok(()) };
        verification.on_part(event, live)?;
        self.report_verification();
        Ok(())
    }

    /// Searches the next buckets of the state for rows that were not seen.
    pub(super) fn sweep_some(&mut self) {
        if let (Some(verification), Some(live)) = (&mut self.verification, &self.live) {
            verification.sweep_some(live);
        }
    }

    /// Ends the pass that is done, and begins a copy if the pass requires one.
    pub(super) fn end_verification(&mut self) -> Result<(Option<Arc<VerifyReport>>, FollowUpAction), TableError> {
        let (Some(verification), Some(live)) = (self.verification.take(), &self.live) else {
            return Ok((None, FollowUpAction::Nothing));
        };
        let report = Arc::new(verification.into_report(live, (self.clock.0)()));
        self.log_report(&report);
        {
            let verify = &mut self.status.lock().verify;
            (verify.running, verify.error) = (None, None);
            verify.passes += 1;
            verify.rows += report.rows;
            verify.differences += report.differing;
            verify.last = Some(report.clone());
        }
        let wants = match report.heals {
            true => self.copy_again(&format!("verification found {} rows that differ", report.differing))?,
            false => FollowUpAction::Nothing,
        };
        Ok((Some(report), wants))
    }

    /// Notes that a pass has no result.
    pub(super) fn fail_verification(&mut self, error: &VerifyError) {
        self.drop_verification();
        let mut status = self.status.lock();
        status.verify.failures += 1;
        status.verify.error = Some(error.to_string());
        drop(status);
        tracing::warn!(table = %self.name(), %error, "the table was not verified");
    }

    fn report_verification(&self) {
        self.status.lock().verify.running = self.verification.as_ref().map(|running| running.progress().clone());
    }

    fn log_report(&self, report: &VerifyReport) {
        let VerifyReport { rows, bytes, differing, unverified, is_cut, heals, .. } = *report;
        let (table, position) = (self.name(), report.position);
        if differing == 0 {
            tracing::info!(%table, rows, bytes, unverified, %position, "verified: the table is the database's");
            return;
        }
        for difference in report.differences.iter().take(LOGGED_MAX) {
            let (kind, columns) = (difference.kind(), difference.columns.join(", "));
            let key = key_text(&report.schema, difference);
            tracing::error!(%table, kind, key, columns, "verification found a row that differs from the database's");
        }
        tracing::error!(
            %table, differing, is_cut, rows, bytes, unverified, %position, heals,
            "verification found rows that differ from the database's; report this"
        );
    }
}

/// Returns a difference's key as text for people: `id=7, lang=en`.
fn key_text(schema: &Schema, difference: &RowDifference) -> String {
    let cell = |(at, cell): (&usize, Cell<'_>)| {
        let name = schema.columns().get(*at).map_or("", |column| column.name.as_str());
        let value = project_cell(schema, *at, cell).map_or_else(
            |error| error.to_string(),
            |value| match value {
                Value::String(text) => text,
                other => other.to_json().to_string(),
            },
        );
        format!("{name}={value}")
    };
    let cells = difference.key.as_ref().cells();
    schema.key().columns().iter().zip(cells).map(cell).collect::<Vec<_>>().join(", ")
}
