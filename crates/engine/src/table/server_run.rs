//! The run of PostgreSQL that the stream comes from.
//!
//! The storage of a running server is not put back to an earlier state, and no other server takes
//! its place. A new run may lack commits that an earlier run had. The stream proves that the new
//! run contains everything that was sent. No proof covers what a copy, or a part of a verification,
//! has seen beyond that. So their rows are used only with a stream of the same run.

use super::{FollowUpAction, Table, TableLifecycle};
use crate::source::TransactionSnapshot;

const RESTARTED: &str = "PostgreSQL was restarted after the rows were read, or the stream has not connected again";

/// A run of PostgreSQL, by the time at which the server was started.
#[derive(Debug, Default)]
pub(super) struct ServerRun {
    /// `None` before the stream's first connection.
    started: Option<String>,
}

impl ServerRun {
    /// Checks that rows under this snapshot were read in this run.
    ///
    /// # Errors
    /// Returns the reason why the rows cannot be used.
    pub(super) fn check(&self, snapshot: &TransactionSnapshot) -> Result<(), &'static str> {
        match &self.started {
            Some(started) if *started != snapshot.server_started => Err(RESTARTED),
            Some(_) | None => Ok(()),
        }
    }
}

impl Table {
    /// Handles a new connection of the stream, to the server that was started at this time. Rows of
    /// an earlier run are read again.
    pub(crate) fn on_connected(&mut self, server_started: String) -> FollowUpAction {
        self.server_run.started = Some(server_started);
        match &mut self.lifecycle {
            TableLifecycle::Copying { copy, .. } => {
                let Some(Err(reason)) = copy.snapshot().map(|snapshot| self.server_run.check(snapshot)) else {
                    return FollowUpAction::Nothing;
                };
                tracing::info!(
                    event = "table_copied_again", table = %self.options.request.name, reason,
                    "the table is copied again"
                );
                copy.start_over();
                FollowUpAction::Copy
            }
            TableLifecycle::Live(live) => {
                live.check_part(&self.server_run);
                FollowUpAction::Nothing
            }
            TableLifecycle::Stopped { .. } => FollowUpAction::Nothing,
        }
    }
}
