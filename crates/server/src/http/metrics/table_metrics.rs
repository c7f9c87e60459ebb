//! The metrics of tables.

use std::sync::Arc;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::journal::JournalInfo;
use laredo_engine::{SnapshotInfo, SnapshotStatus, StoreStatus, TablePhase, TableStatus};

use super::{count, one_of};
use crate::http::report::lag_ms;
use crate::metrics_page::{
    MetricDefinition, counter, flag, float, gauge, histogram, labeled_counter, labeled_gauge, number, time_counter,
};
use crate::problems::{ProblemKind, TableProblem};
use crate::query_state::{QueryState, QueryTable};
use crate::table::{DRAINED, ServedTable, TableCounts};

/// A table at the time of a scrape.
pub(super) struct TableSample {
    table: Arc<ServedTable>,
    now: CommitTime,
    status: TableStatus,
    counts: TableCounts,
    /// The journal, once the first copy is complete.
    journal: Option<JournalInfo>,
    /// The files of the journal, if it has any.
    store: Option<StoreStatus>,
    snapshots: Option<StoredSnapshots>,
}

/// The snapshots of a table with a snapshot store, newest first.
struct StoredSnapshots {
    list: Vec<SnapshotInfo>,
    status: SnapshotStatus,
}

impl TableSample {
    pub(super) fn new(table: &Arc<ServedTable>, now: CommitTime) -> TableSample {
        let journal = table.handle().journal();
        let snapshots = table.handle().snapshots();
        TableSample {
            table: table.clone(),
            now,
            status: table.handle().status(),
            counts: table.counters().read(),
            journal: journal.as_ref().map(|journal| journal.info()),
            store: journal.and_then(|journal| journal.store_status()),
            snapshots: snapshots.map(|folder| StoredSnapshots { list: folder.list(), status: folder.status() }),
        }
    }

    /// Returns a value of the journal, or `None` before the first copy.
    fn journal<T>(&self, read: impl FnOnce(&JournalInfo) -> T) -> Option<T> {
        self.journal.as_ref().map(read)
    }

    /// Returns a value of the journal's files, or `None` if there are none.
    fn store<T>(&self, read: impl FnOnce(&StoreStatus) -> T) -> Option<T> {
        self.store.as_ref().map(read)
    }

    /// Returns a value of the stored snapshots, or `None` without a snapshot store.
    fn snapshots<T>(&self, read: impl FnOnce(&StoredSnapshots) -> T) -> Option<T> {
        self.snapshots.as_ref().map(read)
    }

    fn newest_snapshot(&self) -> Option<&SnapshotInfo> {
        self.snapshots.as_ref()?.list.first()
    }

    /// Returns a value of the rows, or `None` while the table has none, not even an empty set.
    fn rows<T>(&self, read: impl FnOnce(&TableStatus) -> T) -> Option<T> {
        (self.status.position > Lsn::ZERO).then(|| read(&self.status))
    }

    /// Returns a value of the rows for queries, or `None` while there are none.
    fn query<T>(&self, read: impl FnOnce(&QueryState) -> T) -> Option<T> {
        self.table.query().and_then(QueryTable::newest).map(|state| read(&state))
    }

    /// Returns the time on the database's clock.
    fn source_now(&self) -> CommitTime {
        self.table.handle().source_time(self.now)
    }
}

/// Returns the seconds since `then`, or zero if it is in the future.
fn age(now: CommitTime, then: CommitTime) -> f64 {
    float(u64::try_from(now.0.saturating_sub(then.0)).unwrap_or(0)) / 1e6
}

pub(super) const TABLE_METRICS: &[MetricDefinition<TableSample>] = &[
    // The rows and their state.
    gauge("laredo_rows", "Rows of the table.", |sample| sample.rows(|status| float(status.rows))),
    gauge("laredo_row_bytes", "Bytes in the cells of the table's rows.", |sample| {
        sample.rows(|status| float(status.row_bytes))
    }),
    gauge("laredo_position_bytes", "WAL position up to which every commit is applied.", |sample| {
        sample.rows(|status| float(status.position.0))
    }),
    gauge(
        "laredo_lag_seconds",
        "Time since the table was last known to have all commits; NaN before the first copy.",
        |sample| {
            let lag_ms = lag_ms(&sample.status, sample.source_now()).and_then(|ms| u64::try_from(ms).ok());
            Some(lag_ms.map_or(f64::NAN, |ms| float(ms) / 1000.0))
        },
    ),
    histogram(
        "laredo_commit_visible_seconds",
        "Time from a commit until clients could be sent it, for the newest commit of each burst; not for those in a copy.",
        |sample| Some(sample.status.visible_times),
    ),
    gauge(
        "laredo_table_ready",
        "1 if the table is served: it has not failed, is not drained, and its definition was verified recently.",
        |sample| flag(sample.table.is_ready(sample.now)),
    ),
    gauge(
        "laredo_definition_verified_age_seconds",
        "Time since the table's definition was last read from the catalog; NaN before the first read.",
        // The value is not zero before the first read, because zero would mean that all is well.
        |sample| {
            let verified_age = sample.table.handle().definition().verified_age;
            Some(verified_age.map_or(f64::NAN, |age| age.as_secs_f64()))
        },
    ),
    labeled_gauge("laredo_table_state", "state", "1 for the state of the table.", |sample| {
        let state = sample.table.state_name(&sample.status.phase);
        let [copying, live, retrying, failed] = TablePhase::NAMES;
        one_of([copying, live, retrying, failed, DRAINED], |name| name == state)
    }),
    labeled_gauge("laredo_table_problem", "reason", "1 for each problem that the table has.", |sample| {
        let problems = TableProblem::find_all(&sample.table, sample.now);
        let is_there = |name: &str| problems.iter().any(|problem| problem.kind.name() == name);
        one_of(ProblemKind::ALL.map(ProblemKind::name), is_there)
    }),
    labeled_counter("laredo_changes_total", "action", "Changes applied.", |sample| {
        let TableStatus { inserts, updates, deletes, truncates, .. } = sample.status;
        vec![("insert", inserts), ("update", updates), ("delete", deletes), ("truncate", truncates)]
    }),
    // Copies.
    gauge("laredo_held_bytes", "Bytes of transactions that are held while the table is copied.", |sample| {
        number(sample.status.held_bytes)
    }),
    gauge("laredo_copy_rows", "Rows received so far by the running copy; absent without one.", |sample| {
        sample.status.copy.map(|copy| float(copy.rows))
    }),
    gauge(
        "laredo_copy_seconds",
        "Time for which the running copy has held its lock and its snapshot; absent without one.",
        |sample| sample.status.copy.map(|copy| copy.started_at.elapsed().as_secs_f64()),
    ),
    histogram("laredo_copy_duration_seconds", "Time that completed copies took, from the lock on.", |sample| {
        Some(sample.status.copy_times)
    }),
    counter("laredo_copies_total", "Copies of the table completed.", |sample| Some(sample.status.copies)),
    // The journal and its bases.
    gauge("laredo_journal_sequence", "Sequence of the journal's newest entry.", |sample| {
        sample.journal(|journal| float(journal.head.sequence.0))
    }),
    gauge("laredo_journal_entries", "Entries in the journal.", |sample| {
        sample.journal(|journal| float(journal.entries))
    }),
    gauge("laredo_journal_bytes", "Bytes of the journal, in memory and in files.", |sample| {
        sample.journal(|journal| float(journal.bytes))
    }),
    gauge("laredo_journal_memory_bytes", "Bytes of the journal in memory.", |sample| {
        sample.journal(|journal| float(journal.memory_bytes))
    }),
    gauge("laredo_journal_disk_bytes", "Bytes of the files of a journal with a store.", |sample| {
        sample.store(|store| float(store.journal_bytes))
    }),
    gauge(
        "laredo_durable_position_bytes",
        "WAL position up to which a restart needs nothing from PostgreSQL.",
        |sample| {
            sample.store.as_ref().map(|store| store.durable.position().0).filter(|position| *position > 0).map(float)
        },
    ),
    counter("laredo_journal_syncs_total", "Times that the journal's files were synced to disk.", |sample| {
        sample.store(|store| store.syncs)
    }),
    histogram("laredo_journal_sync_seconds", "Time that an fsync of the journal's files took.", |sample| {
        sample.store(|store| store.sync_times)
    }),
    time_counter("laredo_slow_down_seconds_total", "Time for which the source waited for slow clients.", |sample| {
        sample.journal(|journal| journal.slowed_down)
    }),
    counter("laredo_encoded_entries_total", "Entries encoded: each once for all clients.", |sample| {
        sample.journal(|journal| journal.encoded_entries)
    }),
    gauge("laredo_base_rows", "Rows of the newest base.", |sample| sample.journal(|journal| float(journal.base_rows))),
    counter("laredo_bases_total", "Bases made since the start: each is encoded once for all clients.", |sample| {
        sample.journal(|journal| journal.bases)
    }),
    // Projections of the journal.
    labeled_counter(
        "laredo_projected_entries_total",
        "kind",
        "Entries and rows projected, once for all clients with the same projection.",
        |sample| {
            let (as_structs, filtered) = sample.table.views().projected_entries();
            let is_served = sample.journal.is_some();
            if is_served { vec![("struct", as_structs), ("filtered", filtered)] } else { Vec::new() }
        },
    ),
    counter(
        "laredo_hex_cells_total",
        "Values sent in hex, because they do not have the form of their type.",
        |sample| sample.journal(|_| sample.table.views().hex_cells().count()),
    ),
    gauge("laredo_projection_bytes", "Bytes of cached projections.", |sample| {
        sample.journal(|_| float(sample.table.views().bytes()))
    }),
    // Stored snapshots.
    gauge("laredo_stored_snapshots", "Snapshots in the table's store.", |sample| {
        sample.snapshots(|snapshots| float(snapshots.list.len() as u64))
    }),
    gauge("laredo_stored_snapshot_bytes", "Bytes of the files of stored snapshots.", |sample| {
        sample.snapshots(|snapshots| float(snapshots.list.iter().map(|info| info.size_bytes).sum()))
    }),
    gauge("laredo_stored_snapshot_age_seconds", "Time since the newest stored snapshot was written.", |sample| {
        sample.newest_snapshot().map(|newest| age(sample.now, newest.taken_at))
    }),
    gauge("laredo_stored_snapshot_position_bytes", "WAL position of the newest stored snapshot.", |sample| {
        sample.newest_snapshot().map(|newest| float(newest.position.0))
    }),
    counter("laredo_stored_snapshot_writes_total", "Snapshots written into the store.", |sample| {
        sample.snapshots(|snapshots| snapshots.status.writes)
    }),
    histogram("laredo_stored_snapshot_write_seconds", "Time that writing a snapshot into the store took.", |sample| {
        sample.snapshots(|snapshots| snapshots.status.write_times)
    }),
    counter("laredo_stored_snapshot_errors_total", "Snapshots that could not be written, read or removed.", |sample| {
        sample.snapshots(|snapshots| snapshots.status.errors)
    }),
    // Queries.
    gauge("laredo_query_rows", "Rows that queries read; absent while the table answers none.", |sample| {
        sample.query(|state| float(state.rows.len() as u64))
    }),
    gauge(
        "laredo_query_row_bytes",
        "Bytes in the cells of the rows that queries read, without their maps.",
        |sample| sample.query(|state| float(state.rows.row_bytes())),
    ),
    gauge(
        "laredo_query_lag_bytes",
        "WAL between the newest rows that clients can be sent and those that queries read.",
        |sample| {
            let head = sample.journal(|journal| journal.head.position.0)?;
            sample.query(|state| float(head.saturating_sub(state.position.0)))
        },
    ),
    counter("laredo_query_fills_total", "Times that all rows for queries were read again.", |sample| {
        sample.table.query().map(QueryTable::fills)
    }),
    gauge("laredo_query_listings", "States of the rows that are kept for the next pages of listings.", |sample| {
        sample.table.query().and_then(|query| count(query.listings()))
    }),
    labeled_counter(
        "laredo_query_requests_total",
        "method",
        "Requests of the Query service that were admitted.",
        |sample| sample.table.query().map(QueryTable::requests).unwrap_or_default(),
    ),
    // Verification.
    counter("laredo_verifications_total", "Complete comparisons of the table with the database.", |sample| {
        Some(sample.status.verify.passes)
    }),
    counter("laredo_verification_failures_total", "Comparisons that could not be completed.", |sample| {
        Some(sample.status.verify.failures)
    }),
    counter("laredo_verified_rows_total", "Rows compared with the database.", |sample| Some(sample.status.verify.rows)),
    counter("laredo_verify_differences_total", "Rows that differed from the database.", |sample| {
        Some(sample.status.verify.differences)
    }),
    gauge(
        "laredo_verified_age_seconds",
        "Time since the last complete comparison with the database; absent before the first.",
        |sample| sample.status.verify.last.as_ref().map(|last| age(sample.source_now(), last.finished_at)),
    ),
    // Clients.
    gauge("laredo_clients", "Open streams.", |sample| count(sample.table.clients())),
    counter("laredo_sent_bytes_total", "Bytes passed to connections.", |sample| Some(sample.counts.bytes_sent)),
    counter("laredo_deltas_total", "Streams that began without a snapshot, where the client was.", |sample| {
        Some(sample.counts.deltas)
    }),
    labeled_counter("laredo_snapshots_total", "reason", "Streams that began with a full snapshot.", |sample| {
        sample.counts.snapshots.iter().map(|(reason, count)| (*reason, *count)).collect()
    }),
    counter(
        "laredo_clients_cut_total",
        "Streams that the server ended because the client was too far behind.",
        |sample| Some(sample.counts.clients_cut),
    ),
    counter(
        "laredo_clients_refused_total",
        "Streams refused because the table had the maximum number of clients.",
        |sample| Some(sample.counts.clients_refused),
    ),
    counter(
        "laredo_clients_differing_total",
        "Clients whose rows differed when an operator compared them.",
        |sample| Some(sample.table.roster().differing()),
    ),
];
