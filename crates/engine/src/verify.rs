//! Verification: the comparison of a table's rows with those of the database.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, Key, Lsn, Schema, Tuple};
use tokio::time::Instant;

/// The schedule of a table's verifications in the background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifySchedule {
    /// The time from the end of one pass to the next. The first pass begins a tenth of it after the
    /// start.
    pub interval: Duration,
    /// The terms of each pass.
    pub terms: VerifyTerms,
}

/// The terms of one pass over a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyTerms {
    /// The maximum number of bytes of rows per second; `None` for as fast as the database reads.
    pub bytes_per_second: Option<u64>,
    /// True if the table is copied again when rows differ.
    pub heals: bool,
}

/// The progress of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// The number of rows compared so far.
    pub rows: u64,
    /// The number of bytes in their cells.
    pub bytes: u64,
    /// The number of blocks of the table's file that were read.
    pub blocks: u64,
    /// The total number of blocks; zero until the first part is read.
    pub blocks_total: u64,
    /// The start of the pass.
    pub started_at: Instant,
}

/// The verifications of a table since the server started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyStatus {
    /// The pass that is running.
    pub running: Option<VerifyProgress>,
    /// The last complete pass.
    pub last: Option<Arc<VerifyReport>>,
    /// The reason why the last pass did not complete, unless one has completed since.
    pub error: Option<String>,
    /// Complete passes.
    pub passes: u64,
    /// Passes that did not complete.
    pub failures: u64,
    /// Rows compared.
    pub rows: u64,
    /// Rows found to differ.
    pub differences: u64,
}

impl VerifyStatus {
    /// Counts a complete pass.
    pub(crate) fn count_pass(&mut self, report: Arc<VerifyReport>) {
        (self.running, self.error) = (None, None);
        self.passes += 1;
        self.rows += report.rows;
        self.differences += report.differing;
        self.last = Some(report);
    }

    /// Counts a pass that did not complete.
    pub(crate) fn count_failure(&mut self, error: &VerifyError) {
        self.running = None;
        self.failures += 1;
        self.error = Some(error.to_string());
    }
}

/// The result of a complete pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// The time at which the pass ended.
    pub finished_at: CommitTime,
    /// The position that the table had reached then.
    pub position: Lsn,
    /// Rows compared.
    pub rows: u64,
    /// Bytes of their cells.
    pub bytes: u64,
    /// The number of rows that differ. If `is_cut`, there may be more.
    pub differing: u64,
    /// True if so many rows differ that the pass ended before the end of the table.
    pub is_cut: bool,
    /// The number of rows that differed when the scan read them, before they were looked up. A row
    /// that the lookup does not confirm does not differ.
    pub suspects: u64,
    /// The number of rows that the scan did not see, and that were too many to be looked up. They
    /// were not compared.
    pub unverified: u64,
    /// The first rows that differ, at most [`VerifyReport::DIFFERENCES_MAX`], after the transforms.
    pub differences: Vec<RowDifference>,
    /// The schema of those rows.
    pub schema: Arc<Schema>,
    /// True if the table is copied again because of the differences.
    pub heals: bool,
}

impl VerifyReport {
    /// The most differences that a report names.
    pub const DIFFERENCES_MAX: usize = 100;
}

/// A row that differs between the database and the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowDifference {
    /// The row's key.
    pub key: Key,
    /// The names of the columns that differ; empty if one side lacks the row.
    pub columns: Vec<String>,
    /// The server's row; `None` if the server lacks it.
    pub held: Option<Tuple>,
    /// The database's row; `None` if the database lacks it.
    pub stored: Option<Tuple>,
}

impl RowDifference {
    /// Returns the kind of the difference in one word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (&self.held, &self.stored) {
            (None, _) => "missing",
            (Some(_), None) => "extra",
            (Some(_), Some(_)) => "different",
        }
    }
}

/// The reason why a pass has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Another pass was requested before.
    #[error("a verification of the table is running already")]
    Busy,
    /// The table has failed.
    #[error("the table cannot be verified because it has failed: {0}")]
    Failed(String),
    /// The pass could not be completed.
    #[error("the verification could not be completed: {0}")]
    GivenUp(String),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}
