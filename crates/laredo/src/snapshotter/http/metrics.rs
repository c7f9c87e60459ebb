//! Metrics for Prometheus, read from the tables' status at each request.

use laredo_archive::WriterStatus;
use laredo_server::ServerTls;
use metrics::{counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::super::table::{ArchiveTaskHandles, ArchiveTaskState, SnapshotterTable};
use super::report::seconds_behind;
use crate::program::dropped_log_lines;

/// The program's metrics and their recorder.
pub(super) struct SnapshotterMetrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    certificates: Vec<ServerTls>,
}

impl SnapshotterMetrics {
    pub(super) fn new(certificates: Vec<ServerTls>) -> SnapshotterMetrics {
        let recorder = PrometheusBuilder::new().build_recorder();
        let (handle, process) = (recorder.handle(), metrics_process::Collector::default());
        with_local_recorder(&recorder, || {
            describe();
            process.describe();
        });
        SnapshotterMetrics { recorder, handle, process, certificates }
    }

    pub(super) fn render(&self, tables: &[SnapshotterTable]) -> String {
        with_local_recorder(&self.recorder, || {
            tables.iter().for_each(read_table);
            for certificate in &self.certificates {
                let name = [("file", certificate.name().to_owned())];
                gauge!("laredo_tls_certificate_not_after_seconds", &name).set(seconds(certificate.not_after()));
            }
            gauge!("laredo_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
            counter!("snapshotter_log_lines_dropped_total").absolute(dropped_log_lines());
            self.process.collect();
        });
        self.handle.render()
    }
}

fn read_table(table: &SnapshotterTable) {
    let name = || [("table", table.name())];
    let (is_failed, running) = match table.state() {
        ArchiveTaskState::Opening => (false, None),
        ArchiveTaskState::Running(running) => (false, Some(running)),
        ArchiveTaskState::Failed { last, .. } => (true, last),
    };
    gauge!("snapshotter_failed", &name()).set(f64::from(u8::from(is_failed)));
    let status = table.status();
    gauge!("snapshotter_opening", &name()).set(f64::from(u8::from(matches!(table.state(), ArchiveTaskState::Opening))));
    read_destinations(table, &status);
    let Some(running) = running else { return };
    gauge!("snapshotter_epoch", &name()).set(float(status.epoch));
    gauge!("snapshotter_buffer_depth", &name()).set(float(status.buffer_depth));
    gauge!("snapshotter_chain_diffs", &name()).set(float(status.progress.diffs));
    gauge!("snapshotter_manifest_bytes", &name()).set(float(status.manifest_bytes));
    gauge!("snapshotter_churn_records", &name()).set(float(status.progress.churn_records));
    let age = status.progress.since_base.map_or(f64::NAN, |age| age.as_secs_f64());
    gauge!("snapshotter_snapshot_age_seconds", &name()).set(age);
    gauge!("snapshotter_seconds_behind", &name()).set(seconds_behind(&status).unwrap_or(f64::NAN));
    gauge!("snapshotter_head_position_bytes", &name()).set(float(status.head_position.unwrap_or_default().0));
    gauge!("snapshotter_position_bytes", &name()).set(float(status.position.unwrap_or_default().0));
    counter!("snapshotter_cas_conflicts_total", &name()).absolute(status.conflicts);
    counter!("snapshotter_hex_cells_total", &name()).absolute(status.hex_cells);
    read_rest(table, &running);
}

fn read_destinations(table: &SnapshotterTable, status: &WriterStatus) {
    for at in &status.destinations {
        let labels = [("table", table.name()), ("destination", at.name.clone())];
        counter!("snapshotter_objects_total", &labels).absolute(at.objects);
        counter!("snapshotter_bytes_total", &labels).absolute(at.bytes);
        counter!("snapshotter_destination_errors_total", &labels).absolute(at.errors);
        gauge!("snapshotter_destination_behind", &labels).set(f64::from(u8::from(at.is_behind)));
    }
}

fn read_rest(table: &SnapshotterTable, running: &ArchiveTaskHandles) {
    let name = [("table", table.name())];
    let stream = running.stream.current();
    gauge!("snapshotter_connected", &name).set(f64::from(u8::from(stream.connected)));
    counter!("snapshotter_connects_total", &name).absolute(stream.connects);
    counter!("snapshotter_full_snapshots_total", &name).absolute(stream.full_snapshots);
    counter!("snapshotter_checksum_mismatches_total", &name).absolute(stream.checksum_mismatches);
    for sink in running.sinks() {
        let labels = [("table", table.name()), ("sink", sink.sink)];
        counter!("snapshotter_events_sent_total", &labels).absolute(sink.sent);
        counter!("snapshotter_event_errors_total", &labels).absolute(sink.failed);
        counter!("snapshotter_events_dropped_total", &labels).absolute(sink.dropped);
        gauge!("snapshotter_events_waiting", &labels).set(float(sink.waiting));
    }
}

#[expect(clippy::cast_precision_loss, reason = "what Prometheus stores is a double")]
fn float(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "what Prometheus stores is a double")]
fn seconds(time: i64) -> f64 {
    time as f64
}

fn describe() {
    describe_gauge!(
        "laredo_tls_certificate_not_after_seconds",
        "Time when the certificate of the port expires, in seconds since 1970"
    );
    describe_gauge!("laredo_build_info", "1 for the version of laredo-snapshotter");
    describe_counter!("snapshotter_log_lines_dropped_total", "Log lines that were not written in time, or at all");
    describe_gauge!("snapshotter_epoch", "The newest base's epoch; 0 before the first");
    describe_gauge!("snapshotter_buffer_depth", "Keys that were changed since the archive's head");
    describe_gauge!("snapshotter_chain_diffs", "Diffs since the newest base");
    describe_gauge!("snapshotter_manifest_bytes", "Size of the manifest, which is written again with each artifact");
    describe_gauge!("snapshotter_churn_records", "Rows that were changed since the newest base");
    describe_gauge!("snapshotter_snapshot_age_seconds", "Age of the newest base");
    describe_gauge!("snapshotter_seconds_behind", "Seconds since the writer last had all changes of the source");
    describe_gauge!(
        "snapshotter_head_position_bytes",
        "The newest position that the archive rebuilds, as a position in the WAL"
    );
    describe_gauge!(
        "snapshotter_position_bytes",
        "The newest position that the writer has received, as a position in the WAL"
    );
    describe_gauge!("snapshotter_opening", "1 while the first destination has not answered yet");
    describe_gauge!("snapshotter_failed", "1 if the archive is not written any more");
    describe_gauge!("snapshotter_connected", "1 while the table's stream is open");
    describe_counter!("snapshotter_connects_total", "Streams that were opened");
    describe_counter!("snapshotter_full_snapshots_total", "Streams among them that began with all rows");
    describe_counter!(
        "snapshotter_checksum_mismatches_total",
        "Times that the rows did not have the server's checksum"
    );
    describe_counter!("snapshotter_cas_conflicts_total", "Times that the manifest was not the expected one");
    describe_counter!(
        "snapshotter_hex_cells_total",
        "Values that were written in hex, because they do not have the form of their type"
    );
    describe_counter!("snapshotter_objects_total", "Objects that were written to a destination");
    describe_counter!("snapshotter_bytes_total", "Bytes that were written to a destination");
    describe_counter!("snapshotter_destination_errors_total", "Calls to a destination that failed");
    describe_gauge!(
        "snapshotter_destination_behind",
        "1 if the destination lacks objects that the first destination has"
    );
    describe_counter!("snapshotter_events_sent_total", "Events that were delivered");
    describe_counter!("snapshotter_event_errors_total", "Attempts to send an event that failed");
    describe_counter!("snapshotter_events_dropped_total", "Events that were dropped");
    describe_gauge!("snapshotter_events_waiting", "Events that wait to be sent");
}
