//! What the readiness endpoint says of each table and each source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::{CopyProgress, CopySession, TablePhase, TableStatus, VerifyReport, VerifyStatus};
use serde::Serialize;
use tokio::time::Instant;

use crate::options::ServedSource;
use crate::shared::Shared;
use crate::table::Served;

/// The whole server.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    ready: bool,
    /// The sources that are not followed, before the first copies are over.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    waiting_for: BTreeMap<String, String>,
    /// The tables that are not served, each with the reason.
    not_served: Vec<String>,
    tables: Vec<TableReport>,
    sources: Vec<SourceReport>,
}

/// What the database keeps for a source. It does not decide readiness: clients are served whatever becomes of the slot.
#[derive(Debug, Serialize)]
struct SourceReport {
    source: String,
    /// `connecting`, `following`, `paused`, `standby`, `retrying` or `refused`.
    state: &'static str,
    /// The reason for the state; absent while connecting and following.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Milliseconds since the source came into the state.
    state_age_ms: u64,
    /// Milliseconds until the next attempt to follow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_ms: Option<u64>,
    paused: bool,
    slot: String,
    /// `trigger` where an event trigger writes changes of definitions into the stream, otherwise `poll`.
    ddl_watch: &'static str,
    /// Milliseconds since the last of its tables was known to have all that was committed.
    lag_ms: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`; absent, with what follows, while it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    wal_status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retained_bytes: Option<u64>,
    /// Absent where there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    safe_bytes: Option<u64>,
    /// An estimate of the time until the slot is lost, if nothing more were acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_ms: Option<u64>,
    /// How often since the start a slot could not be gone on with.
    losses: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_loss: Option<String>,
    /// The number of times since the start that the database turned out to have another history.
    #[serde(skip_serializing_if = "is_zero")]
    forks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_fork: Option<String>,
    /// Copies that have a session of the database, tables that wait for one, and the most copies at a time.
    copies_running: usize,
    copies_waiting: usize,
    copies_max: usize,
    /// The connections of the database that the source takes at most.
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
    /// Every commit up to here is applied.
    position: String,
    /// Milliseconds since the newest applied commit. It grows while nothing is committed, too.
    lag_ms: Option<i64>,
    clients: usize,
    /// Why it is being copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Milliseconds until the next attempt of a table that is retrying.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_ms: Option<u64>,
    /// Everything that is wrong with the table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<ProblemReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<CopyReport>,
    /// Milliseconds since the table's copy has waited for its turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_waiting_ms: Option<u64>,
    /// Milliseconds since the copy has had its session of the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_session_ms: Option<u64>,
    /// Why there is no newer snapshot. The table is served all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_error: Option<String>,
    /// Milliseconds since its definition was last seen in the catalogue. Absent before the first look.
    #[serde(skip_serializing_if = "Option::is_none")]
    definition_verified_age_ms: Option<u64>,
    /// The reason why the last look failed.
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

/// The comparisons with the database. They do not decide readiness.
#[derive(Debug, Serialize)]
struct VerificationReport {
    /// Milliseconds since the last complete one.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    /// Rows that differed in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    differing: Option<u64>,
    /// Rows found to differ since the start.
    differences: u64,
    /// Rows compared so far by the one that is running.
    #[serde(skip_serializing_if = "Option::is_none")]
    running_rows: Option<u64>,
    /// The reason why the last one did not complete.
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
    /// Absent while there is nothing to judge by.
    left_ms: Option<u64>,
}

impl Report {
    /// Reports these tables and their sources.
    pub(super) fn new(shared: &Shared, tables: &[Arc<Served>], ready: bool) -> Report {
        let now = shared.clock.as_ref()();
        let is_asked_for = |source: &&ServedSource| {
            tables.len() == shared.tables.len() || tables.iter().any(|table| table.options.source_id == source.id)
        };
        Report {
            ready,
            waiting_for: if shared.is_started() { BTreeMap::new() } else { shared.waiting_for() },
            not_served: tables.iter().filter_map(|table| not_served(table, now)).collect(),
            tables: tables.iter().map(|table| table_report(table, now)).collect(),
            sources: shared.sources.iter().filter(is_asked_for).map(|source| source_report(source, now)).collect(),
        }
    }
}

/// Why a table is not served.
pub(crate) fn not_served(table: &Served, now: CommitTime) -> Option<String> {
    if table.is_ready(now) {
        return None;
    }
    let details: Vec<String> = table.problems(now).into_iter().map(|problem| problem.detail).collect();
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

fn table_report(table: &Served, now: CommitTime) -> TableReport {
    let status = table.handle().status();
    let source_now = table.handle().source_time(now);
    let (lag_ms, definition) = (lag_ms(&status, source_now), table.handle().definition());
    let error = status.phase.error().map(str::to_owned);
    let (state, next_attempt_ms) = (table.state_name(&status.phase), status.phase.next_attempt_in().map(ms));
    let reason = match status.phase {
        TablePhase::Copying { reason } => Some(reason),
        TablePhase::Live | TablePhase::Retrying { .. } | TablePhase::Failed { .. } => None,
    };
    let problems = table.problems(now).into_iter();
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

/// The age of a copy's wait for its turn, or of its session.
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

/// Returns `None` before the first copy. `now` is the time on the database's clock.
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
