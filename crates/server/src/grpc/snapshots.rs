//! The snapshots in a table's store: listing them, and sending them as Struct rows.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use laredo_engine::base::Base;
use laredo_engine::{SnapshotFolder, SnapshotInfo, journal};
use laredo_proto::batch::BatchEntries;
use laredo_proto::replication::fetch_snapshot_response::Chunk;
use laredo_proto::replication::{
    FetchSnapshotResponse, ListSnapshotsResponse, ReplicationSnapshotInfo, SnapshotBegin, SnapshotEnd, SnapshotRow,
};
use tokio::task::spawn_blocking;
use tonic::Status;

use crate::lease::ClientSeat;
use crate::refusal;
use crate::server_state::ServerState;
use crate::table::ServedTable;
use crate::view::{ViewError, row_struct, timestamp};

/// Returns the snapshots, newest first. A `limit` of 0 returns all.
pub(super) fn list(table: &ServedTable, limit: i32) -> Result<ListSnapshotsResponse, Status> {
    let limit = refusal::limit(limit)?;
    let snapshots = table.snapshot_folder()?;
    Ok(ListSnapshotsResponse { snapshots: snapshots.list().iter().take(limit).map(info).collect() })
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

/// Streams a whole snapshot. The stream takes a client's seat at the table.
pub(super) async fn fetch(shared: Arc<ServerState>, id: String) -> Result<SnapshotResponseStream, Status> {
    let (table, snapshots) = shared.snapshot_store(&id)?;
    if table.drain().has_begun() {
        return Err(refusal::draining(table.name()));
    }
    let seat = table.take_seat()?;
    let info = find(&snapshots, &id)?;
    let base = snapshots.fetch(id).await.map_err(|error| refusal::snapshot(&error))?;
    let fetch = SnapshotFetch { shared, table, info, base, next: SnapshotFetchStage::Begin, rows: 0, _seat: seat };
    let rounds = stream::unfold(Some(fetch), |fetch| async {
        let mut fetch = fetch?;
        match fetch.round().await {
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
    info: SnapshotInfo,
    base: Arc<Base>,
    next: SnapshotFetchStage,
    rows: u64,
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
                let (snapshot_id, row_count) = (self.info.id.clone(), count(self.info.rows));
                Chunk::Begin(SnapshotBegin { snapshot_id, sequence, row_count, source_position })
            }
            SnapshotFetchStage::Rows(at) => {
                let (rows, after) = self.rows_at(at).await?;
                if !rows.is_empty() {
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

    /// Returns the rows of a frame and the offset of the next one. There are no rows at the end.
    async fn rows_at(&self, at: u64) -> Result<(Vec<FetchSnapshotResponse>, u64), Status> {
        let (table, base, turns) = (self.table.clone(), self.base.clone(), self.shared.fetch_permits());
        let read = move || {
            let bytes = base.read_frame(at).map_err(|error| refusal::unreadable(&error))?;
            let after = at + bytes.len() as u64;
            let rows = rows(&table, &base, bytes).map_err(|error| Status::internal(error.to_string()))?;
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
            read = read => read.map_err(failed)?.map_err(failed)?,
        }
    }
}

fn rows(table: &ServedTable, base: &Base, frame: Bytes) -> Result<Vec<FetchSnapshotResponse>, ViewError> {
    let mut rows = Vec::new();
    for frame in journal::frames(frame) {
        for entry in BatchEntries::new(&frame.batch.entries, base.schema()) {
            let row = Some(row_struct(base.schema(), entry?.row, table.views().hex_cells())?);
            rows.push(FetchSnapshotResponse { chunk: Some(Chunk::Row(SnapshotRow { row })) });
        }
    }
    Ok(rows)
}

fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
