//! Reports about the tables, as JSON.

use std::time::Duration;

use laredo_archive::{ChainProgress, DestinationStatus, RebaseThresholds, WriterPhase, WriterStatus, WrittenArtifact};
use laredo_core::Lsn;
use serde_json::{Value, json};

use super::super::table::{ArchiveTaskHandles, ArchiveTaskState, SnapshotterTable};

/// Returns true if every table is written and has a snapshot. The JSON has the reason for each
/// table that is not ready.
pub(super) fn ready(tables: &[SnapshotterTable]) -> (bool, Value) {
    let lacking: Vec<(String, Option<String>)> =
        tables.iter().map(|table| (table.name(), readiness_obstacle(table))).collect();
    let is_ready = lacking.iter().all(|(_, lacks)| lacks.is_none());
    let tables: Vec<Value> = lacking
        .into_iter()
        .map(|(table, lacks)| json!({ "table": table, "ready": lacks.is_none(), "reason": lacks }))
        .collect();
    (is_ready, json!({ "ready": is_ready, "tables": tables }))
}

fn readiness_obstacle(table: &SnapshotterTable) -> Option<String> {
    match table.state() {
        ArchiveTaskState::Opening => {
            let error = table.status().last_error.map(|error| format!(": {error}"));
            Some(format!("its archive is not open yet{}", error.unwrap_or_default()))
        }
        ArchiveTaskState::Failed { error, .. } => Some(error),
        ArchiveTaskState::Running(running) => {
            let status = running.writer.status();
            let reason = || {
                let stream = running.stream.current().error.map(|error| error.to_string());
                let error = stream.or(status.last_error.clone()).map(|error| format!(": {error}"));
                format!("it has no base yet{}", error.unwrap_or_default())
            };
            status.progress.since_base.is_none().then(reason)
        }
    }
}

pub(super) fn status(tables: &[SnapshotterTable]) -> Value {
    json!({ "tables": tables.iter().map(of_table).collect::<Vec<_>>() })
}

fn of_table(table: &SnapshotterTable) -> Value {
    let (state, error, running) = match table.state() {
        ArchiveTaskState::Opening => ("opening", None, None),
        ArchiveTaskState::Running(running) => ("running", None, Some(running)),
        ArchiveTaskState::Failed { error, last } => ("failed", Some(error), last),
    };
    let mut object = json!({ "table": table.name(), "state": state });
    if state == "opening"
        && let Value::Object(fields) = &mut object
        && let Value::Object(more) = of_opening(&table.status())
    {
        fields.extend(more);
    }
    if let (Some(running), Value::Object(fields)) = (running, &mut object)
        && let Value::Object(more) = of_writer(table, &running)
    {
        fields.extend(more);
    }
    if let (Some(error), Value::Object(fields)) = (error, &mut object) {
        fields.insert("error".to_owned(), error.into());
    }
    object
}

fn of_writer(table: &SnapshotterTable, running: &ArchiveTaskHandles) -> Value {
    let (status, stream) = (running.writer.status(), running.stream.current());
    let WriterStatus { position, head_position, epoch, buffer_depth, progress, conflicts, .. } = &status;
    let sinks: Vec<Value> = running
        .sinks()
        .iter()
        .map(|sink| json!({ "name": sink.sink, "sent": sink.sent, "failed": sink.failed, "dropped": sink.dropped, "waiting": sink.waiting }))
        .collect();
    json!({
        "position": shown(*position),
        "head_position": shown(*head_position),
        "epoch": epoch,
        "buffer_depth": buffer_depth,
        "chain_diffs": progress.diffs,
        "manifest_bytes": status.manifest_bytes,
        "churn_records": progress.churn_records,
        "seconds_behind": seconds_behind(&status),
        "snapshot_age_seconds": progress.since_base.map(|age| age.as_secs_f64()),
        "last_snapshot": status.last_snapshot.as_ref().map(|written| artifact(&table.name(), written)),
        "last_diff": status.last_diff.as_ref().map(|written| artifact(&table.name(), written)),
        "thresholds": thresholds(&table.config.thresholds, progress),
        "cas_conflicts": conflicts,
        "last_error": status.last_error,
        "last_error_age_seconds": last_error_age_seconds(&status),
        "stream": { "connected": stream.connected, "connects": stream.connects, "full_snapshots": stream.full_snapshots,
            "error": stream.error.as_ref().map(ToString::to_string) },
        "destinations": destinations(&status),
        "sinks": sinks,
    })
}

fn of_opening(status: &WriterStatus) -> Value {
    json!({
        "last_error": status.last_error,
        "last_error_age_seconds": last_error_age_seconds(status),
        "destinations": destinations(status),
    })
}

fn last_error_age_seconds(status: &WriterStatus) -> Option<f64> {
    status.last_error_at.map(|at| at.elapsed().as_secs_f64())
}

fn destinations(status: &WriterStatus) -> Vec<Value> {
    let one = |at: &DestinationStatus| json!({ "name": at.name, "objects": at.objects, "bytes": at.bytes, "errors": at.errors, "is_behind": at.is_behind });
    status.destinations.iter().map(one).collect()
}

/// Returns the number of seconds since the writer last had all changes that the source had.
pub(super) fn seconds_behind(status: &WriterStatus) -> Option<f64> {
    status.current_at.map(|at| at.elapsed().as_secs_f64())
}

/// Returns the JSON of an artifact that was written.
/// Returns the answer to a request for a snapshot, if the newest one has all changes.
pub(super) fn unchanged_snapshot(table: &str, status: &WriterStatus) -> Option<Value> {
    let is_whole = status.progress.since_base.is_some() && status.progress.diffs == 0 && status.buffer_depth == 0;
    if !is_whole || status.phase != WriterPhase::Running {
        return None;
    }
    let mut answer = match &status.last_snapshot {
        Some(written) => artifact(table, written),
        // An earlier process has written it.
        None => json!({ "table": table, "epoch": status.epoch, "to_position": shown(status.head_position) }),
    };
    answer["unchanged"] = true.into();
    Some(answer)
}

pub(super) fn artifact(table: &str, written: &WrittenArtifact) -> Value {
    json!({
        "table": table,
        "kind": written.kind,
        "epoch": written.epoch,
        "from_position": shown(written.from_position),
        "to_position": written.to_position.to_string(),
        "entries": written.count,
        "bytes": written.bytes,
        "created_at": written.created_at,
    })
}

fn shown(position: Option<Lsn>) -> Option<String> {
    position.map(|position| position.to_string())
}

/// Returns the value of each threshold that is set, with the limit at which a snapshot is written.
fn thresholds(thresholds: &RebaseThresholds, progress: &ChainProgress) -> Value {
    let mut near = serde_json::Map::new();
    let mut put = |name: &str, is_at: Value, limit: Option<Value>| {
        if let Some(limit) = limit {
            near.insert(name.to_owned(), json!({ "is_at": is_at, "limit": limit }));
        }
    };
    let seconds = |time: Option<Duration>| time.map(|time| Value::from(time.as_secs_f64()));
    let since_base = seconds(progress.since_base).unwrap_or_default();
    put("min_interval", since_base.clone(), seconds(thresholds.min_interval));
    put("max_interval", since_base, seconds(thresholds.max_interval));
    put("max_diff_bytes", progress.diff_bytes.into(), thresholds.max_diff_bytes.map(Value::from));
    put("max_churn_records", progress.churn_records.into(), thresholds.max_churn_records.map(Value::from));
    put("max_diffs", progress.diffs.into(), Some(thresholds.diffs_max(progress.base_bytes).into()));
    let fraction = |part: u64, whole: u64| if whole == 0 { Value::Null } else { (part as f64 / whole as f64).into() };
    let of_bytes = fraction(progress.diff_bytes, progress.base_bytes);
    put("max_diff_fraction", of_bytes, thresholds.max_diff_fraction.map(Value::from));
    let of_rows = fraction(progress.churn_records, progress.base_rows);
    put("max_churn_fraction", of_rows, thresholds.max_churn_fraction.map(Value::from));
    Value::Object(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_reported_with_their_progress() {
        let set = RebaseThresholds {
            max_diff_bytes: Some(100),
            max_churn_fraction: Some(0.5),
            ..RebaseThresholds::default()
        };
        let progress =
            ChainProgress { diff_bytes: 30, churn_records: 10, base_rows: 40, diffs: 7, ..ChainProgress::default() };
        let expected = json!({
            "max_diff_bytes": { "is_at": 30, "limit": 100 },
            "max_diffs": { "is_at": 7, "limit": 128 },
            "max_churn_fraction": { "is_at": 0.25, "limit": 0.5 },
        });
        assert_eq!(thresholds(&set, &progress), expected);
    }
}
