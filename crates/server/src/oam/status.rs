//! What sources and tables are doing, in the service's words.

use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::{TablePhase, TableStatus};
use laredo_proto::oam::{GetStatusResponse, PipelineState, PipelineStatus, ServiceState, SourceInfo, SourceStatus};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use super::snapshots;
use crate::options::ServedSource;
use crate::shared::Shared;
use crate::table::Served;
use crate::view::timestamp;

/// What every table's rows go to.
pub(super) const TARGET: &str = "replication-fanout";

/// `source/schema.table`.
pub(super) fn pipeline_id(table: &Served) -> String {
    let name = table.name();
    format!("{}/{}.{}", table.options.source_id, name.schema, name.table)
}

pub(super) fn whole(shared: &Shared) -> GetStatusResponse {
    let last = shared.tables.iter().map(|table| table.handle().status().committed_at).max();
    GetStatusResponse {
        state: service_state(shared).into(),
        sources: shared.sources.iter().map(|source| source_status(shared, source)).collect(),
        pipelines: shared.tables.iter().map(|table| pipeline(shared, table)).collect(),
        started_at: Some(timestamp(shared.began)),
        last_change_at: last.and_then(told),
        snapshot_status: Some(snapshots::summary(shared)),
    }
}

pub(super) fn pipeline(shared: &Shared, table: &Served) -> PipelineStatus {
    let status = table.handle().status();
    let error_message = match &status.phase {
        TablePhase::Failed { error } => error.clone(),
        TablePhase::Copying { .. } | TablePhase::Live => snapshot_error(table).unwrap_or_default(),
    };
    PipelineStatus {
        pipeline_id: pipeline_id(table),
        source_id: table.options.source_id.clone(),
        schema: table.name().schema.clone(),
        table: table.name().table.clone(),
        target_type: TARGET.to_owned(),
        state: pipeline_state(&status, is_paused(shared, table)).into(),
        row_count: count(status.rows),
        inserts_applied: count(status.inserts),
        updates_applied: count(status.updates),
        deletes_applied: count(status.deletes),
        truncates_applied: count(status.truncates),
        last_change_at: told(status.committed_at),
        error_message,
        // Changes go straight to the journal, and none that cannot be applied is put aside: the table stops instead.
        buffer_depth: 0,
        buffer_capacity: 0,
        dead_letter_count: 0,
    }
}

/// Why there is no newer snapshot. The table is served as ever.
fn snapshot_error(table: &Served) -> Option<String> {
    table.snapshot_error().map(|error| format!("no snapshot was written: {error}"))
}

pub(super) fn source_info(shared: &Shared, source: &ServedSource) -> SourceInfo {
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

fn source_status(shared: &Shared, source: &ServedSource) -> SourceStatus {
    let engine = &source.engine;
    let known: Vec<TableStatus> = engine.tables().iter().map(|table| table.status()).collect();
    let current = known.iter().map(|status| status.position).max().unwrap_or(Lsn::ZERO);
    let acknowledged = engine.acknowledged();
    let oldest = known.iter().map(|status| status.current_at).min().unwrap_or_default();
    let lag_us = shared.clock.as_ref()().0.saturating_sub(oldest.0);
    let lag_time = (oldest != CommitTime::default()).then(|| Duration::from_micros(lag_us.try_into().unwrap_or(0)));
    let identity = engine.identity();
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let details = [
        ("system_identifier", text(&identity.system_identifier)),
        ("database", text(&identity.database)),
        ("timeline", text(&identity.timeline.to_string())),
        ("paused", Value { kind: Some(Kind::BoolValue(engine.is_paused())) }),
    ];
    SourceStatus {
        source_id: source.id.clone(),
        source_type: source.kind.clone(),
        supports_resume: source.resumes,
        ordering_guarantee: "commit order".to_owned(),
        current_position: current.to_string(),
        acked_position: acknowledged.to_string(),
        lag_bytes: count(current.0.saturating_sub(acknowledged.0)),
        lag_time: lag_time.and_then(|lag| lag.try_into().ok()),
        source_details: Some(Struct { fields: details.map(|(name, value)| (name.to_owned(), value)).into() }),
    }
}

/// The worst of what its tables are in.
pub(super) fn service_state(shared: &Shared) -> ServiceState {
    let phases: Vec<(TablePhase, bool)> =
        shared.tables.iter().map(|table| (table.handle().status().phase, table.handle().journal().is_some())).collect();
    let any = |is: fn(&(TablePhase, bool)) -> bool| phases.iter().any(is);
    if any(|(phase, _)| matches!(phase, TablePhase::Failed { .. })) {
        ServiceState::Error
    } else if any(|(_, is_served)| !is_served) {
        ServiceState::Baselining
    } else if shared.sources.iter().any(|source| source.engine.is_paused()) {
        ServiceState::Paused
    } else if any(|(phase, _)| matches!(phase, TablePhase::Copying { .. })) {
        ServiceState::Reloading
    } else {
        ServiceState::Streaming
    }
}

pub(super) fn state_of(shared: &Shared, table: &Served) -> PipelineState {
    pipeline_state(&table.handle().status(), is_paused(shared, table))
}

fn pipeline_state(status: &TableStatus, is_paused: bool) -> PipelineState {
    match status.phase {
        TablePhase::Failed { .. } => PipelineState::Error,
        TablePhase::Live if is_paused => PipelineState::Paused,
        TablePhase::Live => PipelineState::Streaming,
        TablePhase::Copying { .. } => PipelineState::Baselining,
    }
}

fn is_paused(shared: &Shared, table: &Served) -> bool {
    shared.source(&table.options.source_id).is_some_and(|source| source.engine.is_paused())
}

/// Nothing where nothing was committed yet.
fn told(at: CommitTime) -> Option<prost_types::Timestamp> {
    (at != CommitTime::default()).then(|| timestamp(at))
}

pub(super) fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
