//! The report to which all parts of a writer contribute.

use std::sync::Arc;
use std::time::Duration;

use laredo_values::HexCells;

use super::status::{DestinationStatus, SharedWriterStatus, WriterStatus};
use crate::destination::{Destination, DestinationError};
use crate::layout::ArtifactKind;

/// The size in bytes from which a manifest takes longer to write than most diffs.
const MANIFEST_BYTES_LARGE: u64 = 1 << 20;

/// The current status of a writer. Errors are also logged.
#[derive(Clone, Debug)]
pub(crate) struct WriterReport {
    table: Arc<str>,
    status: SharedWriterStatus,
}

impl WriterReport {
    pub(crate) fn new(table: &str, status: SharedWriterStatus, destinations: &[Arc<dyn Destination>]) -> WriterReport {
        let named = |destination: &Arc<dyn Destination>| DestinationStatus {
            name: destination.name().to_owned(),
            ..DestinationStatus::default()
        };
        let destinations = destinations.iter().map(named).collect();
        status.update(|status| *status = WriterStatus { destinations, ..WriterStatus::default() });
        WriterReport { table: table.into(), status }
    }

    pub(crate) fn status(&self) -> &SharedWriterStatus {
        &self.status
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut WriterStatus)) {
        self.status.update(change);
    }

    /// Reports an error after which the operation is retried.
    pub(crate) fn retried(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(
            event = "archive_operation_failed", table = %self.table, %error,
            "an operation failed, and will be retried"
        );
        self.record_error(error);
    }

    /// Records the newest error.
    pub(crate) fn record_error(&self, error: &dyn std::fmt::Display) {
        let now = tokio::time::Instant::now().into_std();
        self.update(|status| (status.last_error, status.last_error_at) = (Some(error.to_string()), Some(now)));
    }

    /// Reports a failed call to a destination, which is retried.
    pub(crate) fn report_failed_call(&self, number: usize, error: &DestinationError) {
        self.retried(error);
        self.update_destination(number, |destination| destination.errors += 1);
    }

    pub(crate) fn count_object(&self, number: usize, bytes: u64) {
        self.update_destination(number, |destination| {
            destination.objects += 1;
            destination.bytes += bytes;
        });
    }

    pub(crate) fn set_behind(&self, number: usize, is_behind: bool) {
        self.update_destination(number, |destination| destination.is_behind = is_behind);
    }

    /// Reports the cells that an artifact has in hex.
    pub(crate) fn hex_cells(&self, hex: &HexCells) {
        let Some(error) = hex.first() else { return };
        tracing::warn!(
            event = "archived_values_in_hex",
            table = %self.table, cells = hex.count(), %error, "values that do not fit their type are written in hex"
        );
        self.update(|status| status.hex_cells += hex.count());
    }

    /// Reports the time that writing an artifact took.
    pub(crate) fn wrote_artifact(&self, kind: ArtifactKind, took: Duration) {
        self.update(|status| match kind {
            ArtifactKind::Snapshot => status.snapshot_times.observe(took),
            ArtifactKind::Diff => status.diff_times.observe(took),
        });
    }

    /// Reports the size in bytes of the manifest that was published.
    pub(crate) fn manifest_bytes(&self, bytes: u64) {
        let before = self.status.update(|status| std::mem::replace(&mut status.manifest_bytes, bytes));
        if before < MANIFEST_BYTES_LARGE && bytes >= MANIFEST_BYTES_LARGE {
            tracing::warn!(
                event = "manifest_large",
                table = %self.table, bytes,
                "the manifest is large, and is written again with each artifact; \
                 lower snapshot.max_diffs or snapshot.min_interval, or lengthen diff.interval"
            );
        }
    }

    pub(crate) fn conflict(&self) {
        self.update(|status| status.conflicts += 1);
    }

    fn update_destination(&self, number: usize, change: impl FnOnce(&mut DestinationStatus)) {
        self.update(|status| {
            if let Some(destination) = status.destinations.get_mut(number) {
                change(destination);
            }
        });
    }
}
