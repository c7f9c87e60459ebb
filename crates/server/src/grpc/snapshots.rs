//! The snapshots in a table's store: listing them, and sending them as Struct rows.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use laredo_core::TupleBuf;
use laredo_engine::base::Base;
use laredo_engine::{SnapshotFolder, SnapshotInfo, journal};
use laredo_proto::batch::BatchEntries;
use laredo_proto::replication::fetch_snapshot_response::Chunk;
use laredo_proto::replication::{
    FetchSnapshotResponse, ListSnapshotsResponse, ReplicationSnapshotInfo, SnapshotBegin, SnapshotEnd, SnapshotRow,
};
use tokio::task::spawn_blocking;
use tonic::Status;

use crate::access::Caller;
use crate::lease::{ClientSeat, SnapshotDownload};
use crate::refusal;
use crate::response_task::ResponseTask;
use crate::server_state::{ReadableSnapshot, ServerState};
use crate::table::ServedTable;
use crate::view::{ConditionOrigins, RowSelection, ViewError, row_struct, timestamp};

/// Returns the snapshots, newest first. A `limit` of 0 returns all. `counts` is true if the caller
/// may know the numbers of rows and bytes, and the table's errors. The numbers are 0 otherwise.
pub(super) fn list(table: &ServedTable, limit: i32, counts: bool) -> Result<ListSnapshotsResponse, Status> {
    let limit = refusal::limit(limit)?;
    let snapshots = table.snapshot_folder();
    let snapshots = if counts { snapshots? } else { snapshots.map_err(|_| refusal::no_open_folder())? };
    let infos = snapshots.list();
    let shown = infos.iter().take(limit).map(|snapshot| match counts {
        true => info(snapshot),
        false => without_counts(info(snapshot)),
    });
    Ok(ListSnapshotsResponse { snapshots: shown.collect() })
}

/// Returns what a reader of a part of the table may know of a snapshot.
pub(super) fn without_counts(info: ReplicationSnapshotInfo) -> ReplicationSnapshotInfo {
    ReplicationSnapshotInfo { row_count: 0, size_bytes: 0, ..info }
}

pub(super) fn info(info: &SnapshotInfo) -> ReplicationSnapshotInfo {
    ReplicationSnapshotInfo {
        snapshot_id: info.id.clone(),
        sequence: info.sequence.to_wire(),
        source_position: info.position.to_string(),
        row_count: count(info.rows),
        size_bytes: count(info.size_bytes),
        created_at: Some(timestamp(info.taken_at)),
    }
}

type SnapshotResponseStream = BoxStream<'static, Result<FetchSnapshotResponse, Status>>;

/// Streams everything of a snapshot that the caller may read. The stream takes a client's seat at
/// the table.
pub(super) async fn fetch(
    shared: Arc<ServerState>,
    caller: &Caller,
    id: String,
    task: ResponseTask,
) -> Result<SnapshotResponseStream, Status> {
    let ReadableSnapshot { table, snapshots, scope } = shared.readable_snapshot(caller, &id)?;
    if table.drain().has_begun() {
        return Err(refusal::draining(table.name()));
    }
    let permit = caller.begin_stream()?;
    let seat = table.take_seat()?.with_permit(permit);
    let info = find(&snapshots, &id)?;
    let base = snapshots.fetch(id).await.map_err(|error| refusal::snapshot(&error))?;
    // All conditions are those of the grant.
    let selection = RowSelection::bind(&scope.predicates, &scope.columns, base.schema());
    let selection = Arc::new(selection.map_err(|error| refusal::view(&error, &ConditionOrigins::default()))?);
    let download = Arc::new(SnapshotDownload::new(task));
    table.watch_download(&download);
    let next = SnapshotFetchStage::Begin;
    let caller = caller.clone();
    let fetch = SnapshotFetch { shared, table, caller, info, base, selection, next, rows: 0, download, _seat: seat };
    let rounds = stream::unfold(Some(fetch), |fetch| async {
        let mut fetch = fetch?;
        fetch.download.note_taken();
        let round = fetch.round().await;
        fetch.download.note_offered();
        match round {
            Ok(answers) => {
                let continues = !matches!(fetch.next, SnapshotFetchStage::Nothing);
                Some((answers.into_iter().map(Ok).collect(), continues.then_some(fetch)))
            }
            Err(status) => Some((vec![Err(status)], None)),
        }
    });
    Ok(rounds.flat_map(stream::iter).boxed())
}

fn find(snapshots: &SnapshotFolder, id: &str) -> Result<SnapshotInfo, Status> {
    snapshots.list().into_iter().find(|info| info.id == id).ok_or_else(|| refusal::unknown_snapshot(id))
}

/// A snapshot that is being sent.
struct SnapshotFetch {
    shared: Arc<ServerState>,
    table: Arc<ServedTable>,
    caller: Caller,
    info: SnapshotInfo,
    base: Arc<Base>,
    selection: Arc<RowSelection>,
    next: SnapshotFetchStage,
    rows: u64,
    download: Arc<SnapshotDownload>,
    _seat: ClientSeat,
}

enum SnapshotFetchStage {
    Begin,
    /// The rows of the frame at this offset.
    Rows(u64),
    Nothing,
}

impl SnapshotFetch {
    /// Returns the next messages, at most the rows of one frame.
    async fn round(&mut self) -> Result<Vec<FetchSnapshotResponse>, Status> {
        let (sequence, source_position) = (self.info.sequence.to_wire(), self.info.position.to_string());
        let chunk = match self.next {
            SnapshotFetchStage::Begin => {
                self.next = SnapshotFetchStage::Rows(0);
                // The number of selected rows is not known yet.
                let rows = if self.selection.filter().is_some() { 0 } else { self.info.rows };
                let (snapshot_id, row_count) = (self.info.id.clone(), count(rows));
                Chunk::Begin(SnapshotBegin { snapshot_id, sequence, row_count, source_position })
            }
            SnapshotFetchStage::Rows(at) => {
                let (rows, after) = self.rows_at(at).await?;
                // A frame may have no row that is selected.
                if after > at {
                    self.pace(&rows).await?;
                    self.next = SnapshotFetchStage::Rows(after);
                    self.rows += rows.len() as u64;
                    return Ok(rows);
                }
                self.next = SnapshotFetchStage::Nothing;
                Chunk::End(SnapshotEnd {
                    sequence,
                    rows_sent: count(self.rows),
                    source_position,
                    ..SnapshotEnd::default()
                })
            }
            SnapshotFetchStage::Nothing => return Ok(Vec::new()),
        };
        Ok(vec![FetchSnapshotResponse { chunk: Some(chunk) }])
    }

    /// Waits until the caller may be sent these rows, after the ones before.
    async fn pace(&self, rows: &[FetchSnapshotResponse]) -> Result<(), Status> {
        let bytes = rows.iter().map(prost::Message::encoded_len).sum();
        let Some(due) = self.caller.count_snapshot_bytes(bytes) else { return Ok(()) };
        tokio::select! {
            biased;
            () = self.shared.streams_ended() => Err(refusal::stopping()),
            () = self.table.ended() => Err(self.table.end_refusal()),
            () = tokio::time::sleep_until(due) => Ok(()),
        }
    }

    /// Returns the selected rows of a frame and the offset of the next one. At the end, that is the
    /// same offset.
    async fn rows_at(&self, at: u64) -> Result<(Vec<FetchSnapshotResponse>, u64), Status> {
        let (table, base, turns) = (self.table.clone(), self.base.clone(), self.shared.fetch_permits());
        let selection = self.selection.clone();
        let read = move || {
            let bytes = base.read_frame(at).map_err(|error| refusal::unreadable(&error))?;
            let after = at + bytes.len() as u64;
            let rows = rows(&table, &base, &selection, bytes).map_err(|error| Status::internal(error.to_string()))?;
            Ok((rows, after))
        };
        let failed = |error| Status::internal(format!("reading the snapshot: {error}"));
        // The read runs in a task of its own. A stream that is not read is not polled, and must not
        // keep a permit from others.
        let read = tokio::spawn(async move {
            let _turn = turns.acquire().await;
            spawn_blocking(read).await
        });
        tokio::select! {
            biased;
            () = self.shared.streams_ended() => Err(refusal::stopping()),
            () = self.table.ended() => Err(self.table.end_refusal()),
            read = read => read.map_err(failed)?.map_err(failed)?,
        }
    }
}

fn rows(
    table: &ServedTable,
    base: &Base,
    selection: &RowSelection,
    frame: Bytes,
) -> Result<Vec<FetchSnapshotResponse>, ViewError> {
    let (mut rows, mut scratch) = (Vec::new(), TupleBuf::new());
    for frame in journal::frames(frame) {
        for entry in BatchEntries::new(&frame.batch.entries, base.schema()) {
            let row = entry?.row;
            if !selection.matches(row) {
                continue;
            }
            let shown = selection.show(row, &mut scratch);
            let row = Some(row_struct(selection.schema(), shown, table.views().hex_cells())?);
            rows.push(FetchSnapshotResponse { chunk: Some(Chunk::Row(SnapshotRow { row })) });
        }
    }
    Ok(rows)
}

fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
