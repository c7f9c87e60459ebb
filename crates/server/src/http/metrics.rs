//! Metrics for Prometheus. The values are read from their owners at each scrape, so metrics cost
//! the data path nothing.

use std::sync::Arc;

use laredo_core::CommitTime;
use laredo_engine::TablePhase;
use laredo_engine::retention::WalStatus;
use laredo_engine::source::SourceState;
use metrics::{counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::report::lag_ms;
use crate::accept::waiting_ports;
use crate::options::ServedSource;
use crate::problems::{ProblemKind, TableProblem};
use crate::server_state::ServerState;
use crate::table::{DRAINED, ServedTable};

/// The metrics of one server. They have a recorder of their own, so that two servers in one process
/// do not mix.
pub(super) struct ServerMetrics {
    shared: Arc<ServerState>,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl ServerMetrics {
    pub(super) fn new(shared: Arc<ServerState>) -> ServerMetrics {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        with_local_recorder(&recorder, describe);
        ServerMetrics { shared, recorder, handle }
    }

    pub(super) fn render(&self) -> String {
        with_local_recorder(&self.recorder, || {
            let now = self.shared.clock.as_ref()();
            self.shared.tables.iter().for_each(|table| {
                read_table(table, now);
                read_journal(table);
                read_snapshots(table, now);
                read_verifications(table, now);
                read_clients(table);
            });
            let snapshots = self.shared.admission.usage();
            gauge!("laredo_snapshot_sends").set(float(snapshots.granted as u64));
            gauge!("laredo_snapshot_sends_max").set(float(snapshots.granted_max as u64));
            gauge!("laredo_snapshot_waits").set(float(snapshots.waiting as u64));
            gauge!("laredo_ports_waiting").set(float(waiting_ports() as u64));
            self.shared.sources.iter().for_each(|source| read_source(source, now));
            gauge!("process_resident_memory_bytes").set(float(resident_bytes().unwrap_or(0)));
        });
        self.handle.render()
    }
}

#[expect(clippy::cast_precision_loss, reason = "what Prometheus stores is a double")]
fn float(number: u64) -> f64 {
    number as f64
}

fn read_table(table: &ServedTable, now: CommitTime) {
    let name = || [("table", table.name().to_string())];
    let status = table.handle().status();
    gauge!("laredo_rows", &name()).set(float(status.rows));
    gauge!("laredo_row_bytes", &name()).set(float(status.row_bytes));
    gauge!("laredo_position_bytes", &name()).set(float(status.position.0));
    let lag_ms = lag_ms(&status, table.handle().source_time(now)).and_then(|ms| u64::try_from(ms).ok());
    gauge!("laredo_lag_ms", &name()).set(float(lag_ms.unwrap_or(0)));
    gauge!("laredo_table_ready", &name()).set(float(table.is_ready(now).into()));
    // The value is not zero before the first check, because zero would mean that all is well.
    let verified_age = table.handle().definition().verified_age;
    let verified_age_ms = verified_age.map_or(f64::NAN, |age| age.as_secs_f64() * 1000.0);
    gauge!("laredo_definition_verified_age_ms", &name()).set(verified_age_ms);
    let state = table.state_name(&status.phase);
    for known in TablePhase::NAMES.into_iter().chain([DRAINED]) {
        let labels = [("table", table.name().to_string()), ("state", known.to_owned())];
        gauge!("laredo_table_state", &labels).set(float((known == state).into()));
    }
    let problems = TableProblem::find_all(table, now);
    for kind in ProblemKind::ALL {
        let labels = [("table", table.name().to_string()), ("reason", kind.name().to_owned())];
        let is_there = problems.iter().any(|problem| problem.kind == kind);
        gauge!("laredo_table_problem", &labels).set(float(is_there.into()));
    }
    gauge!("laredo_held_bytes", &name()).set(float(status.held_bytes));
    gauge!("laredo_copy_rows", &name()).set(float(status.copy.map_or(0, |copy| copy.rows)));
    let copy_seconds = status.copy.map_or(0.0, |copy| copy.started_at.elapsed().as_secs_f64());
    gauge!("laredo_copy_seconds", &name()).set(copy_seconds);
    counter!("laredo_copies_total", &name()).absolute(status.copies);
    let changes = [
        ("insert", status.inserts),
        ("update", status.updates),
        ("delete", status.deletes),
        ("truncate", status.truncates),
    ];
    for (action, count) in changes {
        let labels = [("table", table.name().to_string()), ("action", action.to_owned())];
        counter!("laredo_changes_total", &labels).absolute(count);
    }
}

/// Reads the metrics of a source. An unknown value becomes NaN: zero would mean that all is well,
/// and the last value would be outdated.
fn read_source(source: &ServedSource, now: laredo_core::CommitTime) {
    let retention = source.engine.retention();
    let standing = retention.standing;
    let told = |name: &'static str, number: Option<f64>| {
        gauge!(name, &[("source", source.id.clone())]).set(number.unwrap_or(f64::NAN));
    };
    told("laredo_source_lag_ms", source.lag_ms(now).map(float));
    told("laredo_slot_lag_bytes", standing.map(|standing| float(standing.lag_bytes)));
    told("laredo_slot_retained_bytes", standing.map(|standing| float(standing.retained_bytes)));
    told("laredo_slot_safe_bytes", standing.and_then(|standing| standing.safe_bytes).map(float));
    told("laredo_slot_left_seconds", standing.and_then(|standing| standing.left).map(|left| left.as_secs_f64()));
    for status in WalStatus::ALL {
        let labels = [("source", source.id.clone()), ("status", status.name().to_owned())];
        let is = standing.is_some_and(|standing| standing.wal_status == status);
        gauge!("laredo_slot_wal_status", &labels).set(float(is.into()));
    }
    let copies = source.engine.copies();
    told("laredo_copies_running", Some(float(copies.running as u64)));
    told("laredo_copies_waiting", Some(float(copies.waiting as u64)));
    told("laredo_copies_max", Some(float(copies.max as u64)));
    told("laredo_connections_max", Some(float(source.engine.connections_max() as u64)));
    let state = source.engine.source_status().state;
    for name in SourceState::NAMES {
        let labels = [("source", source.id.clone()), ("state", name.to_owned())];
        gauge!("laredo_source_state", &labels).set(float((state.name() == name).into()));
    }
    counter!("laredo_slot_losses_total", &[("source", source.id.clone())]).absolute(retention.losses);
    counter!("laredo_history_forks_total", &[("source", source.id.clone())]).absolute(retention.forks);
}

fn read_journal(table: &ServedTable) {
    let Some(journal) = table.handle().journal() else { return };
    let name = || [("table", table.name().to_string())];
    let info = journal.info();
    gauge!("laredo_journal_sequence", &name()).set(float(info.head.sequence.0));
    gauge!("laredo_journal_entries", &name()).set(float(info.entries));
    gauge!("laredo_journal_bytes", &name()).set(float(info.bytes));
    gauge!("laredo_journal_memory_bytes", &name()).set(float(info.memory_bytes));
    gauge!("laredo_base_rows", &name()).set(float(info.base_rows));
    counter!("laredo_bases_total", &name()).absolute(info.bases);
    if let Some(store) = journal.store_status() {
        gauge!("laredo_journal_disk_bytes", &name()).set(float(store.journal_bytes));
        gauge!("laredo_durable_position_bytes", &name()).set(float(store.durable.position().0));
        counter!("laredo_journal_syncs_total", &name()).absolute(store.syncs);
    }
    counter!("laredo_encoded_entries_total", &name()).absolute(info.encoded_entries);
    let (as_structs, filtered) = table.views().projected_entries();
    for (kind, count) in [("struct", as_structs), ("filtered", filtered)] {
        let labels = [("table", table.name().to_string()), ("kind", kind.to_owned())];
        counter!("laredo_projected_entries_total", &labels).absolute(count);
    }
    counter!("laredo_hex_cells_total", &name()).absolute(table.views().hex_cells().count());
    gauge!("laredo_projection_bytes", &name()).set(float(table.views().bytes()));
}

fn read_snapshots(table: &ServedTable, now: CommitTime) {
    let Some(snapshots) = table.handle().snapshots() else { return };
    let name = || [("table", table.name().to_string())];
    let (list, status) = (snapshots.list(), snapshots.status());
    gauge!("laredo_stored_snapshots", &name()).set(float(list.len() as u64));
    gauge!("laredo_stored_snapshot_bytes", &name()).set(float(list.iter().map(|info| info.size_bytes).sum()));
    if let Some(newest) = list.first() {
        let age_us = u64::try_from(now.0.saturating_sub(newest.taken_at.0)).unwrap_or(0);
        gauge!("laredo_stored_snapshot_age_ms", &name()).set(float(age_us / 1000));
        gauge!("laredo_stored_snapshot_position_bytes", &name()).set(float(newest.position.0));
    }
    counter!("laredo_stored_snapshot_writes_total", &name()).absolute(status.writes);
    counter!("laredo_stored_snapshot_errors_total", &name()).absolute(status.errors);
}

fn read_verifications(table: &ServedTable, now: CommitTime) {
    let name = || [("table", table.name().to_string())];
    let verify = table.handle().status().verify;
    let now = table.handle().source_time(now);
    counter!("laredo_verifications_total", &name()).absolute(verify.passes);
    counter!("laredo_verification_failures_total", &name()).absolute(verify.failures);
    counter!("laredo_verified_rows_total", &name()).absolute(verify.rows);
    counter!("laredo_verify_differences_total", &name()).absolute(verify.differences);
    if let Some(last) = verify.last {
        let age_us = u64::try_from(now.0.saturating_sub(last.finished_at.0)).unwrap_or(0);
        gauge!("laredo_verified_age_ms", &name()).set(float(age_us / 1000));
    }
}

fn read_clients(table: &ServedTable) {
    let name = || [("table", table.name().to_string())];
    let counts = table.counters().read();
    gauge!("laredo_clients", &name()).set(float(table.clients() as u64));
    counter!("laredo_sent_bytes_total", &name()).absolute(counts.bytes_sent);
    counter!("laredo_deltas_total", &name()).absolute(counts.deltas);
    counter!("laredo_clients_cut_total", &name()).absolute(counts.clients_cut);
    counter!("laredo_clients_refused_total", &name()).absolute(counts.clients_refused);
    counter!("laredo_clients_differing_total", &name()).absolute(table.roster().differing());
    for (reason, count) in counts.snapshots {
        let labels = [("table", table.name().to_string()), ("reason", reason.to_owned())];
        counter!("laredo_snapshots_total", &labels).absolute(count);
    }
}

fn describe() {
    describe_gauge!("laredo_rows", "Rows of the source table.");
    describe_gauge!("laredo_row_bytes", "Bytes of their cells.");
    describe_gauge!("laredo_position_bytes", "WAL position up to which every commit is applied.");
    describe_gauge!("laredo_lag_ms", "Milliseconds since the newest applied commit.");
    describe_gauge!(
        "laredo_table_ready",
        "1 where the table is served: it has not failed, is not drained, and its definition was seen lately."
    );
    describe_gauge!(
        "laredo_definition_verified_age_ms",
        "Milliseconds since the table's definition was last seen in the catalog; NaN before the first look."
    );
    describe_gauge!("laredo_table_state", "1 for the state of the table.");
    describe_gauge!("laredo_table_problem", "1 for each problem that the table has.");
    describe_gauge!("laredo_held_bytes", "Bytes of transactions held while the table is copied.");
    describe_gauge!("laredo_copy_rows", "Rows so far of the copy that is under way.");
    describe_gauge!("laredo_copy_seconds", "Seconds for which the running copy has held its lock and its snapshot.");
    describe_gauge!("laredo_copies_running", "Copies of the source's tables that have a session of the database.");
    describe_gauge!("laredo_copies_waiting", "Tables of the source that wait for their turn to be copied.");
    describe_gauge!("laredo_copies_max", "Copies of the source's tables that may run at the same time.");
    describe_gauge!("laredo_connections_max", "Connections of the database that the source takes at most.");
    describe_slot();
    describe_gauge!(
        "laredo_source_lag_ms",
        "Milliseconds since the last of the source's tables had all that was committed."
    );
    describe_counter!("laredo_copies_total", "Copies of the table completed.");
    describe_counter!("laredo_changes_total", "Changes applied.");
    describe_gauge!("laredo_journal_sequence", "Sequence of the newest entry.");
    describe_gauge!("laredo_journal_entries", "Entries kept.");
    describe_gauge!("laredo_journal_bytes", "Bytes kept, in memory and in files.");
    describe_gauge!("laredo_journal_memory_bytes", "Bytes of them in memory.");
    describe_gauge!("laredo_journal_disk_bytes", "Bytes of the files of a journal that is kept.");
    describe_gauge!("laredo_durable_position_bytes", "WAL position up to which a restart needs nothing of PostgreSQL.");
    describe_counter!("laredo_journal_syncs_total", "Times that the journal's files were synced to disk.");
    describe_gauge!("laredo_base_rows", "Rows of the newest base snapshot.");
    describe_counter!(
        "laredo_bases_total",
        "Base snapshots since the start: each is encoded once, however many clients."
    );
    describe_counter!("laredo_encoded_entries_total", "Entries encoded: each once, however many clients.");
    describe_counter!(
        "laredo_projected_entries_total",
        "Entries and rows projected for a group of clients: once a group."
    );
    describe_counter!("laredo_hex_cells_total", "Values sent in hex, because they do not have the form of their type.");
    describe_gauge!("laredo_projection_bytes", "Bytes of projections kept for other clients.");
    describe_gauge!("laredo_stored_snapshots", "Snapshots in the table's store.");
    describe_gauge!("laredo_stored_snapshot_bytes", "Bytes of their files.");
    describe_gauge!("laredo_stored_snapshot_age_ms", "Milliseconds since the newest of them was written.");
    describe_gauge!("laredo_stored_snapshot_position_bytes", "WAL position of the newest of them.");
    describe_counter!("laredo_stored_snapshot_writes_total", "Snapshots written into the store.");
    describe_counter!("laredo_stored_snapshot_errors_total", "Snapshots that could not be written, read or removed.");
    describe_counter!("laredo_verifications_total", "Complete comparisons of the table with the database.");
    describe_counter!("laredo_verification_failures_total", "Comparisons that could not be completed.");
    describe_counter!("laredo_verified_rows_total", "Rows compared with the database.");
    describe_counter!("laredo_verify_differences_total", "Rows found to differ from the database.");
    describe_gauge!("laredo_verified_age_ms", "Milliseconds since the last complete comparison with the database.");
    describe_gauge!("laredo_clients", "Streams open.");
    describe_gauge!("laredo_ports_waiting", "Ports on which connections wait for a file descriptor.");
    describe_counter!("laredo_sent_bytes_total", "Bytes handed to connections.");
    describe_counter!("laredo_deltas_total", "Streams that went on where the client was.");
    describe_counter!("laredo_snapshots_total", "Streams that began with a full snapshot.");
    describe_counter!("laredo_clients_cut_total", "Streams ended because the client was too far behind.");
    describe_counter!("laredo_clients_refused_total", "Streams refused because the table had its clients.");
    describe_counter!("laredo_clients_differing_total", "Clients whose rows differed when an operator compared them.");
    describe_gauge!("laredo_snapshot_sends", "Clients that are being sent a snapshot.");
    describe_gauge!("laredo_snapshot_sends_max", "The most that were at one time since the start.");
    describe_gauge!("laredo_snapshot_waits", "Clients that wait in line for one.");
    describe_gauge!("process_resident_memory_bytes", "Resident memory of this process.");
}

fn describe_slot() {
    describe_gauge!("laredo_source_state", "1 for the state of the source.");
    describe_gauge!("laredo_slot_lag_bytes", "Bytes of WAL that PostgreSQL has not been told to forget.");
    describe_gauge!("laredo_slot_retained_bytes", "Bytes of WAL on PostgreSQL's disk that are kept for the slot.");
    describe_gauge!(
        "laredo_slot_safe_bytes",
        "Bytes of WAL until the slot is lost; NaN without max_slot_wal_keep_size."
    );
    describe_gauge!(
        "laredo_slot_left_seconds",
        "Estimate of the time until then if nothing more were acknowledged, or NaN."
    );
    describe_gauge!("laredo_slot_wal_status", "1 for what becomes of the WAL that the slot needs.");
    describe_counter!(
        "laredo_slot_losses_total",
        "Slots that could not be gone on with: every table was copied again."
    );
    describe_counter!(
        "laredo_history_forks_total",
        "Times that the database turned out to have another history: every table was copied again."
    );
}

/// Returns the resident memory in bytes, or `None` without /proc.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
