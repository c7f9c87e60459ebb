//! Metrics for Prometheus, read from the tables' status at each request. `docs/metrics.md` is
//! generated from the definitions.

use laredo_archive::{DestinationStatus, SinkCounts, WriterStatus};
use laredo_client::ReplicaStatus;
use laredo_server::metrics_page::{
    MetricDefinition, MetricsPage, counter, flag, float, gauge, labeled_gauge, labeled_histogram, number,
    reference_table,
};
use laredo_server::{CERTIFICATE_METRICS, ServerTls};

use super::super::table::{ArchiveTaskState, SnapshotterTable};
use super::report::seconds_behind;
use crate::program::dropped_log_lines;

/// The metrics of the program.
const PROGRAM_METRICS: &[MetricDefinition<()>] = &[
    counter(
        "snapshotter_log_lines_dropped_total",
        "Log lines that are missing, because the log was not written in time.",
        |()| Some(dropped_log_lines()),
    ),
    labeled_gauge("laredo_build_info", "version", "1 for the version of laredo-snapshotter.", |()| {
        vec![(env!("CARGO_PKG_VERSION"), 1.0)]
    }),
];

/// The metrics of each table, in every state.
const STATE_METRICS: &[MetricDefinition<ArchiveTaskState>] = &[
    gauge("snapshotter_opening", "1 while the first destination has not answered yet.", |state| {
        flag(matches!(state, ArchiveTaskState::Opening))
    }),
    gauge("snapshotter_failed", "1 if the archive is not written any more.", |state| {
        flag(matches!(state, ArchiveTaskState::Failed { .. }))
    }),
];

/// The metrics of each archive that is open.
const ARCHIVE_METRICS: &[MetricDefinition<WriterStatus>] = &[
    gauge("snapshotter_epoch", "Epoch of the newest base; 0 if there is no base.", |status| number(status.epoch)),
    gauge("snapshotter_buffer_depth", "Keys that were changed since the archive's head.", |status| {
        number(status.buffer_depth)
    }),
    gauge("snapshotter_chain_diffs", "Diffs since the newest base.", |status| number(status.progress.diffs)),
    gauge(
        "snapshotter_manifest_bytes",
        "Size of the manifest, which is written again with each artifact; absent before the first one.",
        |status| (status.manifest_bytes > 0).then(|| float(status.manifest_bytes)),
    ),
    gauge("snapshotter_churn_records", "Rows that were changed since the newest base.", |status| {
        number(status.progress.churn_records)
    }),
    gauge("snapshotter_snapshot_age_seconds", "Age of the newest base; NaN before the first.", |status| {
        Some(status.progress.since_base.map_or(f64::NAN, |age| age.as_secs_f64()))
    }),
    gauge(
        "snapshotter_lag_seconds",
        "Time since the writer last had all changes of the source; NaN if it never had them.",
        |status| Some(seconds_behind(status).unwrap_or(f64::NAN)),
    ),
    gauge("snapshotter_head_position_bytes", "WAL position of the state that the archive rebuilds.", |status| {
        status.head_position.map(|position| float(position.0))
    }),
    gauge("snapshotter_position_bytes", "WAL position up to which the writer has received all changes.", |status| {
        status.position.map(|position| float(position.0))
    }),
    labeled_histogram(
        "snapshotter_artifact_write_seconds",
        "kind",
        "Time that an artifact took: encoding, storing at the destinations, and publishing in the manifest.",
        |status| vec![("snapshot", status.snapshot_times), ("diff", status.diff_times)],
    ),
    counter("snapshotter_cas_conflicts_total", "Times that the manifest was not the expected one.", |status| {
        Some(status.conflicts)
    }),
    counter(
        "snapshotter_hex_cells_total",
        "Values written in hex, because they do not have the form of their type.",
        |status| Some(status.hex_cells),
    ),
];

/// The metrics of the stream of each archive that is open.
const STREAM_METRICS: &[MetricDefinition<ReplicaStatus>] = &[
    gauge("snapshotter_connected", "1 while the table's stream is open.", |stream| flag(stream.connected)),
    counter("snapshotter_connects_total", "Streams opened.", |stream| Some(stream.connects)),
    counter("snapshotter_full_snapshots_total", "Streams that began with all rows.", |stream| {
        Some(stream.full_snapshots)
    }),
    counter(
        "snapshotter_checksum_mismatches_total",
        "Times that the rows did not have the server's checksum.",
        |stream| Some(stream.checksum_mismatches),
    ),
];

/// The metrics of each destination.
const DESTINATION_METRICS: &[MetricDefinition<DestinationStatus>] = &[
    counter("snapshotter_objects_total", "Objects written to a destination.", |at| Some(at.objects)),
    counter("snapshotter_bytes_total", "Bytes written to a destination.", |at| Some(at.bytes)),
    counter("snapshotter_destination_errors_total", "Calls to a destination that failed.", |at| Some(at.errors)),
    gauge(
        "snapshotter_destination_behind",
        "1 if the destination lacks objects that the first destination has.",
        |at| flag(at.is_behind),
    ),
];

/// The metrics of each event sink.
const SINK_METRICS: &[MetricDefinition<SinkCounts>] = &[
    counter("snapshotter_events_sent_total", "Events delivered.", |sink| Some(sink.sent)),
    counter("snapshotter_event_errors_total", "Attempts to send an event that failed.", |sink| Some(sink.failed)),
    counter("snapshotter_events_dropped_total", "Events dropped.", |sink| Some(sink.dropped)),
    gauge("snapshotter_events_waiting", "Events that wait to be sent.", |sink| number(sink.waiting)),
];

/// Returns the text of a scrape.
pub(super) fn render_metrics(tables: &[SnapshotterTable], certificates: &[ServerTls]) -> String {
    let mut page = MetricsPage::default();
    page.add(PROGRAM_METRICS, &(), &[]);
    tables.iter().for_each(|table| add_table(&mut page, table));
    for certificate in certificates {
        page.add(CERTIFICATE_METRICS, certificate, &[("file", certificate.name().to_owned())]);
    }
    page.render()
}

fn add_table(page: &mut MetricsPage, table: &SnapshotterTable) {
    let name = ("table", table.name());
    let (state, status) = (table.state(), table.status());
    page.add(STATE_METRICS, &state, std::slice::from_ref(&name));
    for at in &status.destinations {
        page.add(DESTINATION_METRICS, at, &[name.clone(), ("destination", at.name.clone())]);
    }
    let running = match state {
        ArchiveTaskState::Opening => None,
        ArchiveTaskState::Running(running) => Some(running),
        ArchiveTaskState::Failed { last, .. } => last,
    };
    let Some(running) = running else { return };
    page.add(ARCHIVE_METRICS, &status, std::slice::from_ref(&name));
    page.add(STREAM_METRICS, &running.stream.current(), std::slice::from_ref(&name));
    for sink in running.sinks() {
        page.add(SINK_METRICS, &sink, &[name.clone(), ("sink", sink.sink.clone())]);
    }
}

/// Returns the reference of all metrics of the snapshotter, in Markdown.
#[must_use]
pub fn metrics_reference() -> String {
    let sections = [
        ("States of tables", reference_table(STATE_METRICS, &["table"])),
        ("Archives", reference_table(ARCHIVE_METRICS, &["table"])),
        ("Streams of archives", reference_table(STREAM_METRICS, &["table"])),
        ("Destinations of archives", reference_table(DESTINATION_METRICS, &["table", "destination"])),
        ("Events of archives", reference_table(SINK_METRICS, &["table", "sink"])),
        ("The snapshotter", reference_table(PROGRAM_METRICS, &[])),
        ("Certificates of the snapshotter", reference_table(CERTIFICATE_METRICS, &["file"])),
    ];
    sections.map(|(title, table)| format!("### {title}\n\n{table}")).join("\n")
}
