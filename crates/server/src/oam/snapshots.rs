//! Operators' commands on the tables' snapshots. Each snapshot is of one table.

use std::sync::Arc;

use laredo_core::TableName;
use laredo_engine::SnapshotInfo;
use laredo_proto::oam::*;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::Status;

use super::status::{TARGET, count};
use crate::refusal;
use crate::request::value;
use crate::server_state::{ServerState, TableSnapshotStore};
use crate::table::ServedTable;
use crate::view::{timestamp, to_wire};

/// The maximum size of a snapshot's user metadata in bytes. The metadata is in memory for as long
/// as the snapshot exists.
const USER_META_BYTES_MAX: usize = 64 << 10;
/// The only type of snapshot store.
const STORE_TYPE: &str = "local";

pub(super) async fn create(
    shared: &ServerState,
    request: CreateSnapshotRequest,
) -> Result<CreateSnapshotResponse, Status> {
    let user_meta = request.user_meta.map(meta_to_json).transpose()?;
    let tables: Vec<TableSnapshotStore> = match request.tables.as_slice() {
        [] => shared.snapshot_stores()?,
        names => {
            let named = super::named_tables(shared, "tables", names)?.into_iter();
            named.map(with_folder).collect::<Result<_, Status>>()?
        }
    };
    let (mut names, mut writes) = (Vec::new(), Vec::new());
    for (table, snapshots) in tables {
        let journal = table.handle().journal().ok_or_else(|| refusal::not_ready(table.handle(), true))?;
        names.push(table.name().clone());
        writes.push((snapshots, journal));
    }
    let order = async move {
        let mut taken = Vec::new();
        for (snapshots, journal) in writes {
            taken.push(snapshots.take_snapshot(journal, user_meta.clone()).await?);
        }
        Ok(taken)
    };
    let (mut ids, mut lines) = (Vec::new(), Vec::new());
    for (name, taken) in names.into_iter().zip(shared.run_snapshot_order(order).await?) {
        let SnapshotInfo { id, position, rows, .. } = taken;
        lines.push(format!("{name}: {id}, {rows} rows as of {position}"));
        ids.push(id);
    }
    Ok(CreateSnapshotResponse { accepted: true, snapshot_id: ids.join(","), message: lines.join("; ") })
}

pub(super) fn list(shared: &ServerState, request: &ListSnapshotsRequest) -> Result<ListSnapshotsResponse, Status> {
    let limit = refusal::limit(request.limit)?;
    let tables = match request.table.as_str() {
        "" => shared.snapshot_stores()?,
        name => vec![store_of(shared, "table", name)?],
    };
    let of_table = |(table, snapshots): TableSnapshotStore| {
        let infos = snapshots.list().into_iter();
        infos.map(|info| (info.taken_at, self::info(&table, &info))).collect::<Vec<_>>()
    };
    let mut found: Vec<_> = tables.into_iter().flat_map(of_table).collect();
    found.sort_by_key(|(taken_at, _)| std::cmp::Reverse(*taken_at));
    Ok(ListSnapshotsResponse { snapshots: found.into_iter().take(limit).map(|(_, info)| info).collect() })
}

/// Reads the whole snapshot, so that the answer is true of every byte.
pub(super) async fn inspect(shared: &ServerState, id: String) -> Result<InspectSnapshotResponse, Status> {
    let (table, snapshots) = shared.snapshot_store(&id)?;
    let found = shared.run_snapshot_order(async move { snapshots.verify(id).await }).await?;
    Ok(InspectSnapshotResponse { info: Some(info(&table, &found)) })
}

pub(super) async fn restore(
    shared: &ServerState,
    request: RestoreSnapshotRequest,
) -> Result<RestoreSnapshotResponse, Status> {
    let RestoreSnapshotRequest { snapshot_id, confirm, skip_meta_check } = request;
    let (table, _) = shared.snapshot_store(&snapshot_id)?;
    if !confirm {
        return Err(refusal::unconfirmed("serving rows that may be of any age until the table is copied"));
    }
    let handle = table.handle().clone();
    let restored = shared.run_snapshot_order(async move { handle.restore_snapshot(snapshot_id).await }).await?;
    let mut warnings =
        vec![format!("the rows are as of {}, until the copy of the table is complete", restored.position)];
    if skip_meta_check {
        warnings
            .push("skip_meta_check has no effect: a snapshot of another table or history is never served".to_owned());
    }
    Ok(RestoreSnapshotResponse {
        accepted: true,
        message: format!("{} is served as of {}, and is being copied", table.name(), restored.position),
        user_meta: restored.user_meta.map(meta_from_json),
        warnings,
    })
}

pub(super) async fn delete(shared: &ServerState, id: String) -> Result<DeleteSnapshotResponse, Status> {
    let (_, snapshots) = shared.snapshot_store(&id)?;
    shared.run_snapshot_order(async move { snapshots.delete(id).await }).await?;
    Ok(DeleteSnapshotResponse { deleted: true })
}

pub(super) async fn prune(
    shared: &ServerState,
    request: PruneSnapshotsRequest,
) -> Result<PruneSnapshotsResponse, Status> {
    let keep = u32::try_from(request.keep).ok().filter(|keep| *keep > 0);
    let keep = keep.ok_or_else(|| refusal::malformed("keep", "it must be 1 or more: the newest is never removed"))?;
    let tables = match request.table.as_str() {
        "" => shared.snapshot_stores()?,
        name => vec![store_of(shared, "table", name)?],
    };
    let folders: Vec<_> = tables.into_iter().map(|(_, snapshots)| snapshots).collect();
    let order = async move {
        let mut deleted: usize = 0;
        for snapshots in folders {
            deleted += snapshots.prune(keep).await?;
        }
        Ok(deleted)
    };
    let deleted = shared.run_snapshot_order(order).await?;
    Ok(PruneSnapshotsResponse { deleted_count: i32::try_from(deleted).unwrap_or(i32::MAX) })
}

/// Returns a summary of the snapshots of all tables.
pub(super) fn summary(shared: &ServerState) -> SnapshotSummary {
    let Ok(tables) = shared.snapshot_stores() else { return SnapshotSummary::default() };
    let newest = tables.iter().filter_map(|(_, snapshots)| snapshots.newest()).max_by_key(|info| info.taken_at);
    let count: usize = tables.iter().map(|(_, snapshots)| snapshots.list().len()).sum();
    let next = tables.iter().filter_map(|(_, snapshots)| snapshots.status().next_at).min();
    SnapshotSummary {
        enabled: true,
        store_type: STORE_TYPE.to_owned(),
        last_snapshot_id: newest.as_ref().map(|info| info.id.clone()).unwrap_or_default(),
        last_snapshot_at: newest.map(|info| timestamp(info.taken_at)),
        next_scheduled_at: next.map(timestamp),
        snapshot_count: i32::try_from(count).unwrap_or(i32::MAX),
    }
}

fn store_of(shared: &ServerState, field: &str, name: &str) -> Result<TableSnapshotStore, Status> {
    let name: TableName = name.parse().map_err(|error| refusal::malformed(field, error))?;
    with_folder(shared.table(&name.schema, &name.table)?)
}

fn with_folder(table: Arc<ServedTable>) -> Result<TableSnapshotStore, Status> {
    let folder = table.snapshot_folder()?;
    Ok((table, folder))
}

fn info(table: &ServedTable, info: &SnapshotInfo) -> laredo_proto::oam::SnapshotInfo {
    let TableName { schema, table: name } = table.name().clone();
    let position = SourcePositionEntry { source_id: table.source_id().to_owned(), position: info.position.to_string() };
    laredo_proto::oam::SnapshotInfo {
        snapshot_id: info.id.clone(),
        created_at: Some(timestamp(info.taken_at)),
        format: info.format.name().to_owned(),
        source_positions: vec![position],
        tables: vec![TableSnapshotSummary {
            schema,
            table: name,
            row_count: count(info.rows),
            target_type: TARGET.to_owned(),
        }],
        size_bytes: count(info.size_bytes),
        store_type: STORE_TYPE.to_owned(),
        store_location: info.path.display().to_string(),
        user_meta: info.user_meta.clone().map(meta_from_json),
    }
}

fn meta_to_json(meta: Struct) -> Result<serde_json::Value, Status> {
    if meta.encoded_len() > USER_META_BYTES_MAX {
        return Err(refusal::malformed("user_meta", format!("it takes more than {USER_META_BYTES_MAX} bytes")));
    }
    let meta = value(Value { kind: Some(Kind::StructValue(meta)) });
    let meta = meta.ok_or_else(|| refusal::malformed("user_meta", "one of its values is empty"))?;
    Ok(meta.to_json())
}

fn meta_from_json(meta: serde_json::Value) -> Struct {
    match to_wire(laredo_values::Value::from_json(meta)).kind {
        Some(Kind::StructValue(meta)) => meta,
        _ => Struct::default(),
    }
}
