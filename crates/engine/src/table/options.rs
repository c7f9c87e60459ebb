//! The configuration of a table, and the state that it shares with its handles.

use std::path::PathBuf;
use std::sync::Arc;

use laredo_core::{Sequence, TableName};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::Span;

use crate::head::InstanceId;
use crate::journal::{Journal, JournalOptions};
use crate::pipeline::PipelineOptions;
use crate::snapshots::{SnapshotFolder, SnapshotOptions};
use crate::source::TableRequest;
use crate::status::{CommitXids, TableStatus};
use crate::store::RowDefinition;
use crate::verify::VerifySchedule;

/// Returns a span of the table. Lines of the log have its field `table`.
pub(crate) fn table_span(table: &TableName) -> Span {
    // A span of this level is there at every level of the log.
    tracing::error_span!("table", %table)
}

/// The configuration of a table.
#[derive(Clone, Debug)]
pub struct TableOptions {
    /// The name of the table, and the columns that identify its rows.
    pub request: TableRequest,
    /// The filters and transforms between the table and its readers.
    pub pipeline: PipelineOptions,
    /// The options of the journal, which limit how much of the past is kept.
    pub journal: JournalOptions,
    /// The number of bytes of transactions that are held during a copy before the stream is no
    /// longer read.
    pub held_bytes_max: u64,
    /// The name of the journal.
    pub instance: InstanceId,
    /// The first sequence of the journal. It is a random number below 2^52, so that a sequence of
    /// another journal is never mistaken for one of this journal.
    pub first_sequence: Sequence,
    /// The folder for temporary files.
    pub folder: PathBuf,
    /// The folder that keeps the journal for the next start, and contains nothing else. `None`
    /// keeps the journal in memory and temporary files.
    pub store: Option<PathBuf>,
    /// The options of the snapshots; `None` if none are written.
    pub snapshots: Option<SnapshotOptions>,
    /// The schedule of verifications in the background; `None` if there are none.
    pub verify: Option<VerifySchedule>,
}

impl TableOptions {
    /// Returns the definition of a copy's rows. `source` is the definition that the source gave.
    pub(super) fn row_definition(&self, source: String) -> RowDefinition {
        let pipeline = &self.pipeline;
        RowDefinition { is_whole: pipeline.is_plain(), source, pipeline: pipeline.description() }
    }
}

/// The state that a table shares with its handles.
#[derive(Debug, Default)]
pub(crate) struct SharedTableState {
    pub(crate) status: Arc<Mutex<TableStatus>>,
    pub(crate) commits: Arc<Mutex<CommitXids>>,
    pub(crate) journal: watch::Sender<Option<Journal>>,
    /// The snapshots, once their folder is open.
    pub(crate) snapshots: watch::Sender<Option<Arc<SnapshotFolder>>>,
}
