//! The readiness endpoint's report on each table and each source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::{CopyProgress, CopySession, TablePhase, TableStatus, VerifyReport, VerifyStatus};
use serde::Serialize;
use tokio::time::Instant;

use crate::options::ServedSource;
use crate::problems::TableProblem;
use crate::server_state::ServerState;
use crate::table::ServedTable;

/// The report on the whole server.
#[derive(Debug, Serialize)]
pub(super) struct ReadinessReport {
    ready: bool,
    /// The sources that are not followed. Empty once the first copies are over.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    waiting_for: BTreeMap<String, String>,
    /// The tables that are not served, each with the reason.
    not_served: Vec<String>,
    tables: Vec<TableReport>,
    sources: Vec<SourceReport>,
}

/// The state of a source, with the WAL that the database keeps for it. It does not decide
/// readiness, because clients are served whatever the slot's state is.
#[derive(Debug, Serialize)]
struct SourceReport {
    source: String,
    /// `connecting`, `following`, `paused`, `standby`, `retrying` or `refused`.
    state: &'static str,
    /// The reason for the state; absent while connecting and following.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The milliseconds since the state began.
    state_age_ms: u64,
    /// The milliseconds until the next attempt to follow the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_ms: Option<u64>,
    paused: bool,
    slot: String,
    /// `trigger` if an event trigger writes changes of definitions into the stream, otherwise
    /// `poll`.
    ddl_watch: &'static str,
    /// The milliseconds since every table of the source was known to have all commits.
    lag_ms: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`. Absent, like the following fields, while it
    /// is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    wal_status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retained_bytes: Option<u64>,
    /// Absent if there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    safe_bytes: Option<u64>,
    /// An estimate of the time until the slot is lost if nothing more is acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_ms: Option<u64>,
    /// The number of times since the start that a slot could not be continued.
    losses: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_loss: Option<String>,
    /// The number of times since the start that the database had another history.
    #[serde(skip_serializing_if = "is_zero")]
    forks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_fork: Option<String>,
    /// The copies that have a database session, the tables that wait for one, and the maximum
    /// number of concurrent copies.
    copies_running: usize,
    copies_waiting: usize,
    copies_max: usize,
    /// The maximum number of database connections of the source.
    connections_max: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Serialize)]
struct TableReport {
    schema: String,
    table: String,
    /// `copying`, `live`, `retrying`, `failed` or `drained`.
    state: &'static str,
    ready: bool,
    rows: u64,
    /// The position up to which every commit is applied.
    position: String,
    /// The milliseconds since the table was last known to have everything that the source has.
    lag_ms: Option<i64>,
    clients: usize,
    /// The reason why the table is being copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The milliseconds until the next attempt of a table that is retrying.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_ms: Option<u64>,
    /// All problems of the table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<ProblemReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<CopyReport>,
    /// The milliseconds for which the table's copy has waited for a database session.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_waiting_ms: Option<u64>,
    /// The milliseconds for which the copy has had its database session.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_session_ms: Option<u64>,
    /// The reason why there is no newer snapshot. The table is served nevertheless.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_error: Option<String>,
    /// The milliseconds since the definition was last seen in the catalog. Absent before the first
    /// check.
    #[serde(skip_serializing_if = "Option::is_none")]
    definition_verified_age_ms: Option<u64>,
    /// The reason why the last check of the definition failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    definition_error: Option<String>,
    verify: VerificationReport,
}

/// A problem of a table.
#[derive(Debug, Serialize)]
struct ProblemReport {
    reason: &'static str,
    detail: String,
}

/// The table's verification. It does not decide readiness.
#[derive(Debug, Serialize)]
struct VerificationReport {
    /// The milliseconds since the last complete verification.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    /// The number of rows that differed in the last complete verification.
    #[serde(skip_serializing_if = "Option::is_none")]
    differing: Option<u64>,
    /// The number of rows that differed in all verifications since the start.
    differences: u64,
    /// The number of rows that the current verification has compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    running_rows: Option<u64>,
    /// The reason why the last verification did not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct CopyReport {
    rows: u64,
    bytes: u64,
    rows_estimated: u64,
    bytes_estimated: u64,
    elapsed_ms: u64,
    /// Absent while there is no basis for an estimate.
    left_ms: Option<u64>,
}

impl ReadinessReport {
    /// Returns the report on these tables and their sources.
    pub(super) fn new(shared: &ServerState, tables: &[Arc<ServedTable>], ready: bool) -> ReadinessReport {
        let now = shared.clock.as_ref()();
        let is_asked_for = |source: &&ServedSource| {
            tables.len() == shared.tables().len() || tables.iter().any(|table| table.source_id() == source.id)
        };
        ReadinessReport {
            ready,
            waiting_for: if shared.is_started() { BTreeMap::new() } else { shared.waiting_for() },
            not_served: tables.iter().filter_map(|table| not_served(table, now)).collect(),
            tables: tables.iter().map(|table| table_report(table, now)).collect(),
            sources: shared.sources.iter().filter(is_asked_for).map(|source| source_report(source, now)).collect(),
        }
    }
}

/// Returns the reason why a table is not served, or `None` if it is.
pub(crate) fn not_served(table: &ServedTable, now: CommitTime) -> Option<String> {
    if table.is_ready(now) {
        return None;
    }
    let details: Vec<String> = TableProblem::find_all(table, now).into_iter().map(|problem| problem.detail).collect();
    Some(format!("{}: {}", table.name(), details.join("; ")))
}

fn source_report(source: &ServedSource, now: CommitTime) -> SourceReport {
    let (retention, copies) = (source.engine.retention(), source.engine.copies());
    let standing = retention.standing;
    let status = source.engine.source_status();
    let until = |moment: Instant| ms(moment.saturating_duration_since(Instant::now()));
    SourceReport {
        source: source.id.clone(),
        state: status.state.name(),
        reason: status.state.reason().map(str::to_owned),
        state_age_ms: ms(status.since.elapsed()),
        next_attempt_ms: status.state.next_attempt().map(until),
        paused: source.engine.is_paused(),
        slot: retention.slot,
        ddl_watch: source.ddl_watch(),
        lag_ms: source.lag_ms(now),
        wal_status: standing.map(|standing| standing.wal_status.name()),
        lag_bytes: standing.map(|standing| standing.lag_bytes),
        retained_bytes: standing.map(|standing| standing.retained_bytes),
        safe_bytes: standing.and_then(|standing| standing.safe_bytes),
        left_ms: standing.and_then(|standing| standing.left).map(ms),
        losses: retention.losses,
        last_loss: retention.last_loss,
        forks: retention.forks,
        last_fork: retention.last_fork,
        copies_running: copies.running,
        copies_waiting: copies.waiting,
        copies_max: copies.max,
        connections_max: source.engine.connections_max(),
    }
}

fn table_report(table: &ServedTable, now: CommitTime) -> TableReport {
    let status = table.handle().status();
    let source_now = table.handle().source_time(now);
    let (lag_ms, definition) = (lag_ms(&status, source_now), table.handle().definition());
    let error = status.phase.error().map(str::to_owned);
    let (state, next_attempt_ms) = (table.state_name(&status.phase), status.phase.next_attempt_in().map(ms));
    let reason = match status.phase {
        TablePhase::Copying { reason } => Some(reason),
        TablePhase::Live | TablePhase::Retrying { .. } | TablePhase::Failed { .. } => None,
    };
    let problems = TableProblem::find_all(table, now).into_iter();
    let problems = problems.map(|problem| ProblemReport { reason: problem.kind.name(), detail: problem.detail });
    TableReport {
        schema: table.name().schema.clone(),
        table: table.name().table.clone(),
        state,
        ready: table.is_ready(now),
        rows: status.rows,
        position: status.position.to_string(),
        lag_ms,
        clients: table.clients(),
        reason,
        error,
        next_attempt_ms,
        problems: problems.collect(),
        copy: status.copy.map(|copy| copy_report(&copy)),
        copy_waiting_ms: session_ms(status.copy_session, true),
        copy_session_ms: session_ms(status.copy_session, false),
        snapshot_error: table.snapshot_error(),
        definition_verified_age_ms: definition.verified_age.map(ms),
        definition_error: definition.error,
        verify: verification_report(&status.verify, source_now),
    }
}

/// Returns the milliseconds that a copy has waited for its session, or has had it.
fn session_ms(session: Option<CopySession>, is_waiting: bool) -> Option<u64> {
    session.filter(|session| session.is_waiting == is_waiting).map(|session| ms(session.since.elapsed()))
}

fn verification_report(verify: &VerifyStatus, now: CommitTime) -> VerificationReport {
    let age_us = |last: &Arc<VerifyReport>| u64::try_from(now.0.saturating_sub(last.finished_at.0)).unwrap_or(0);
    VerificationReport {
        age_ms: verify.last.as_ref().map(|last| age_us(last) / 1000),
        differing: verify.last.as_ref().map(|last| last.differing),
        differences: verify.differences,
        running_rows: verify.running.as_ref().map(|running| running.rows),
        error: verify.error.clone(),
    }
}

/// Returns the milliseconds since the table was last known to have everything that the source has,
/// or `None` before the first copy. `now` is the time on the database's clock.
pub(super) fn lag_ms(status: &TableStatus, now: CommitTime) -> Option<i64> {
    (status.position > Lsn::ZERO).then(|| (now.0.saturating_sub(status.current_at.0) / 1000).max(0))
}

fn copy_report(copy: &CopyProgress) -> CopyReport {
    CopyReport {
        rows: copy.rows,
        bytes: copy.bytes,
        rows_estimated: copy.rows_estimated,
        bytes_estimated: copy.bytes_estimated,
        elapsed_ms: ms(copy.started_at.elapsed()),
        left_ms: copy.left().map(ms),
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
