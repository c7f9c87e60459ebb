//! The status of sources and tables, in the service's messages.

use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::{TablePhase, TableStatus};
use laredo_proto::oam::{
    GetStatusResponse, IndexInfo, PipelineState, PipelineStatus, ResetSourceResponse, ServiceState, SourceInfo,
    SourceStatus,
};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::time::Instant;

use super::snapshots;
use crate::options::ServedSource;
use crate::query_state::{QueryIndex, QueryTable};
use crate::server_state::ServerState;
use crate::table::ServedTable;
use crate::view::timestamp;

/// The target type of every table.
pub(super) const TARGET: &str = "replication-fanout";

/// Returns the pipeline's ID: `source/schema.table`.
pub(super) fn pipeline_id(table: &ServedTable) -> String {
    let name = table.name();
    format!("{}/{}.{}", table.source_id(), name.schema, name.table)
}

pub(super) fn whole(shared: &ServerState) -> GetStatusResponse {
    let tables = shared.tables();
    let last = tables.iter().map(|table| table.handle().status().committed_at).max();
    GetStatusResponse {
        state: service_state(shared).into(),
        sources: shared.sources.iter().map(|source| source_status(shared, source)).collect(),
        pipelines: tables.iter().map(|table| pipeline(shared, table)).collect(),
        started_at: Some(timestamp(shared.began)),
        last_change_at: last.and_then(known_timestamp),
        snapshot_status: Some(snapshots::summary(shared)),
    }
}

pub(super) fn pipeline(shared: &ServerState, table: &ServedTable) -> PipelineStatus {
    let status = table.handle().status();
    let error_message = match &status.phase {
        TablePhase::Failed { error } | TablePhase::Retrying { error, .. } => error.clone(),
        TablePhase::Copying { .. } | TablePhase::Live => snapshot_error(table).unwrap_or_default(),
    };
    let definition = table.handle().definition();
    let verified_at = definition.verified_age.map(|age| {
        let age_us = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        CommitTime((shared.clock)().0.saturating_sub(age_us))
    });
    PipelineStatus {
        pipeline_id: pipeline_id(table),
        source_id: table.source_id().to_owned(),
        schema: table.name().schema.clone(),
        table: table.name().table.clone(),
        target_type: TARGET.to_owned(),
        state: pipeline_state(&status, is_paused(shared, table)).into(),
        row_count: count(status.rows),
        inserts_applied: count(status.inserts),
        updates_applied: count(status.updates),
        deletes_applied: count(status.deletes),
        truncates_applied: count(status.truncates),
        last_change_at: known_timestamp(status.committed_at),
        error_message,
        // Changes go directly to the journal. If one cannot be applied, the table stops, so there
        // are no dead letters.
        buffer_depth: 0,
        buffer_capacity: 0,
        dead_letter_count: 0,
        definition_verified_at: verified_at.map(timestamp),
        definition_error: definition.error.unwrap_or_default(),
    }
}

/// Returns the reason why there is no newer snapshot. The table is served nevertheless.
fn snapshot_error(table: &ServedTable) -> Option<String> {
    table.snapshot_error().map(|error| format!("no snapshot was written: {error}"))
}

pub(super) fn source_info(shared: &ServerState, source: &ServedSource) -> SourceInfo {
    let status = source_status(shared, source);
    SourceInfo {
        source_id: status.source_id,
        source_type: status.source_type,
        supports_resume: status.supports_resume,
        ordering_guarantee: status.ordering_guarantee,
        current_position: status.current_position,
        acked_position: status.acked_position,
        lag_bytes: status.lag_bytes,
        lag_time: status.lag_time,
        details: status.source_details,
    }
}

fn source_status(shared: &ServerState, source: &ServedSource) -> SourceStatus {
    let engine = &source.engine;
    let current = engine.tables().iter().map(|table| table.status().position).max().unwrap_or(Lsn::ZERO);
    let acknowledged = engine.acknowledged();
    let lag = source.lag_ms((shared.clock)()).map(Duration::from_millis);
    SourceStatus {
        source_id: source.id.clone(),
        source_type: source.kind.clone(),
        supports_resume: source.resumes,
        ordering_guarantee: "commit order".to_owned(),
        current_position: current.to_string(),
        acked_position: acknowledged.to_string(),
        lag_bytes: count(current.0.saturating_sub(acknowledged.0)),
        lag_time: lag.and_then(|lag| lag.try_into().ok()),
        source_details: Some(details(source)),
    }
}

fn details(source: &ServedSource) -> Struct {
    let (identity, retention) = (source.engine.identity(), source.engine.retention());
    let copies = source.engine.copies();
    let text = |text: &str| Kind::StringValue(text.to_owned());
    #[expect(clippy::cast_precision_loss, reason = "a Struct has no other numbers; bytes are exact up to 8 PiB")]
    let number = |number: u64| Kind::NumberValue(number as f64);
    let status = source.engine.source_status();
    let mut fields = vec![
        ("state", text(status.state.name())),
        ("system_identifier", text(&identity.system_identifier)),
        ("database", text(&identity.database)),
        ("timeline", text(&identity.timeline.to_string())),
        ("paused", Kind::BoolValue(source.engine.is_paused())),
        ("slot", text(&retention.slot)),
        ("ddl_watch", text(source.ddl_watch())),
        ("slot_losses", number(retention.losses)),
        ("copies_running", number(copies.running as u64)),
        ("copies_waiting", number(copies.waiting as u64)),
        ("copies_max", number(copies.max as u64)),
        ("connections_max", number(source.engine.connections_max() as u64)),
    ];
    fields.extend(status.state.reason().map(|reason| ("reason", text(reason))));
    let until = |at: Instant| number(at.saturating_duration_since(Instant::now()).as_secs());
    fields.extend(status.state.next_attempt().map(|at| ("seconds_to_next_attempt", until(at))));
    if let Some(standing) = retention.standing {
        fields.push(("wal_status", text(standing.wal_status.name())));
        fields.push(("slot_lag_bytes", number(standing.lag_bytes)));
        fields.push(("retained_bytes", number(standing.retained_bytes)));
        fields.extend(standing.safe_bytes.map(|bytes| ("safe_bytes", number(bytes))));
        fields.extend(standing.left.map(|left| ("seconds_left", number(left.as_secs()))));
    }
    fields.push(("history_forks", number(retention.forks)));
    fields.extend(retention.last_fork.as_deref().map(|reason| ("last_fork", text(reason))));
    fields.extend(retention.last_loss.as_deref().map(|reason| ("last_loss", text(reason))));
    let fields = fields.into_iter().map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }));
    Struct { fields: fields.collect() }
}

/// Returns the answer to a reset that has begun.
pub(super) fn reset(source: &ServedSource, drop_publication: bool) -> ResetSourceResponse {
    let publication = if drop_publication { "the publication was created again, " } else { "" };
    let (tables, slot) = (source.engine.tables().len(), source.engine.retention().slot);
    ResetSourceResponse {
        accepted: true,
        message: format!(
            "{publication}slot {slot} is dropped and created again; then {tables} tables are copied again, and clients are \
             sent what differs"
        ),
        details: Some(details(source)),
    }
}

/// Returns the worst state of the tables.
pub(super) fn service_state(shared: &ServerState) -> ServiceState {
    let phases: Vec<(TablePhase, bool)> = shared
        .tables()
        .iter()
        .map(|table| (table.handle().status().phase, table.handle().journal().is_some()))
        .collect();
    let any = |is: fn(&(TablePhase, bool)) -> bool| phases.iter().any(is);
    if any(|(phase, _)| matches!(phase, TablePhase::Failed { .. })) {
        ServiceState::Error
    } else if any(|(_, is_served)| !is_served) {
        ServiceState::Baselining
    } else if shared.sources.iter().any(|source| source.engine.is_paused()) {
        ServiceState::Paused
    } else if any(|(phase, _)| matches!(phase, TablePhase::Copying { .. } | TablePhase::Retrying { .. })) {
        ServiceState::Reloading
    } else {
        ServiceState::Streaming
    }
}

pub(super) fn state_of(shared: &ServerState, table: &ServedTable) -> PipelineState {
    pipeline_state(&table.handle().status(), is_paused(shared, table))
}

fn pipeline_state(status: &TableStatus, is_paused: bool) -> PipelineState {
    match status.phase {
        TablePhase::Failed { .. } => PipelineState::Error,
        TablePhase::Live if is_paused => PipelineState::Paused,
        TablePhase::Live => PipelineState::Streaming,
        TablePhase::Copying { .. } | TablePhase::Retrying { .. } => PipelineState::Baselining,
    }
}

fn is_paused(shared: &ServerState, table: &ServedTable) -> bool {
    shared.source(table.source_id()).is_some_and(|source| source.engine.is_paused())
}

/// Returns the indexes for queries. Their entries are those of the newest rows.
pub(super) fn indexes(table: &ServedTable) -> Vec<IndexInfo> {
    let newest = table.query().and_then(QueryTable::newest);
    let indexes = newest.iter().flat_map(|newest| newest.rows.indexes());
    let info = |index: &QueryIndex| IndexInfo {
        name: index.options.name.clone(),
        fields: index.options.fields.clone(),
        unique: index.options.unique,
        entry_count: index.rows.as_ref().map_or(0, |rows| count(rows.len() as u64)),
    };
    indexes.map(info).collect()
}

/// Returns the time of a commit, or `None` if nothing was committed yet.
fn known_timestamp(at: CommitTime) -> Option<prost_types::Timestamp> {
    (at != CommitTime::default()).then(|| timestamp(at))
}

pub(super) fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
