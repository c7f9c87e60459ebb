//! Snapshots in a table's store: listed, and sent as Struct rows.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use laredo_engine::base::Base;
use laredo_engine::{SnapshotInfo, Snapshots, journal};
use laredo_proto::batch::Entries;
use laredo_proto::replication::fetch_snapshot_response::Chunk;
use laredo_proto::replication::{
    FetchSnapshotResponse, ListSnapshotsResponse, ReplicationSnapshotInfo, SnapshotBegin, SnapshotEnd, SnapshotRow,
};
use tokio::task::spawn_blocking;
use tonic::Status;

use crate::refusal;
use crate::shared::Shared;
use crate::table::{Seat, Served};
use crate::view::{ViewError, row_struct, timestamp};

/// The newest first; `limit` 0 is for all.
pub(super) fn list(table: &Served, limit: i32) -> Result<ListSnapshotsResponse, Status> {
    let limit = refusal::limit(limit)?;
    let snapshots = table.handle().snapshots().ok_or_else(refusal::no_store)?;
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

type Answers = BoxStream<'static, Result<FetchSnapshotResponse, Status>>;

/// All of one. It takes a client's place at the table.
pub(super) async fn fetch(shared: Arc<Shared>, id: String) -> Result<Answers, Status> {
    let (table, snapshots) = shared.snapshot_store(&id)?;
    if table.drain.has_begun() {
        return Err(refusal::draining(table.name()));
    }
    let seat = table.take_seat()?;
    let info = find(&snapshots, &id)?;
    let base = snapshots.fetch(id).await.map_err(|error| refusal::snapshot(&error))?;
    let fetch = Fetch { shared, info, base, next: Next::Begin, rows: 0, _seat: seat };
    let rounds = stream::unfold(Some(fetch), |fetch| async {
        let mut fetch = fetch?;
        match fetch.round().await {
            Ok(answers) => {
                let goes_on = !matches!(fetch.next, Next::Nothing);
                Some((answers.into_iter().map(Ok).collect(), goes_on.then_some(fetch)))
            }
            Err(status) => Some((vec![Err(status)], None)),
        }
    });
    Ok(rounds.flat_map(stream::iter).boxed())
}

fn find(snapshots: &Snapshots, id: &str) -> Result<SnapshotInfo, Status> {
    snapshots.list().into_iter().find(|info| info.id == id).ok_or_else(|| refusal::unknown_snapshot(id))
}

/// A snapshot on its way.
struct Fetch {
    shared: Arc<Shared>,
    info: SnapshotInfo,
    base: Arc<Base>,
    next: Next,
    rows: u64,
    _seat: Seat,
}

enum Next {
    Begin,
    /// The rows of the frame here.
    Rows(u64),
    Nothing,
}

impl Fetch {
    /// What comes next: a frame's rows at most.
    async fn round(&mut self) -> Result<Vec<FetchSnapshotResponse>, Status> {
        let (sequence, source_position) = (self.info.sequence.to_wire(), self.info.position.to_string());
        let chunk = match self.next {
            Next::Begin => {
                self.next = Next::Rows(0);
                let (snapshot_id, row_count) = (self.info.id.clone(), count(self.info.rows));
                Chunk::Begin(SnapshotBegin { snapshot_id, sequence, row_count, source_position })
            }
            Next::Rows(at) => {
                let (rows, after) = self.rows_at(at).await?;
                if !rows.is_empty() {
                    self.next = Next::Rows(after);
                    self.rows += rows.len() as u64;
                    return Ok(rows);
                }
                self.next = Next::Nothing;
                Chunk::End(SnapshotEnd {
                    sequence,
                    rows_sent: count(self.rows),
                    source_position,
                    ..SnapshotEnd::default()
                })
            }
            Next::Nothing => return Ok(Vec::new()),
        };
        Ok(vec![FetchSnapshotResponse { chunk: Some(chunk) }])
    }

    /// The rows of a frame, and where the next one begins; none at the end.
    async fn rows_at(&self, at: u64) -> Result<(Vec<FetchSnapshotResponse>, u64), Status> {
        let (base, turns) = (self.base.clone(), self.shared.fetches.clone());
        let read = move || {
            let bytes = base.read_frame(at).map_err(|error| refusal::unreadable(&error))?;
            let after = at + bytes.len() as u64;
            let rows = rows(&base, bytes).map_err(|error| Status::internal(error.to_string()))?;
            Ok((rows, after))
        };
        let failed = |error| Status::internal(format!("reading the snapshot: {error}"));
        // By itself: a stream that nobody reads is not polled, and must not keep a turn from others.
        let read = tokio::spawn(async move {
            let _turn = turns.acquire().await;
            spawn_blocking(read).await
        });
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Err(refusal::stopping()),
            read = read => read.map_err(failed)?.map_err(failed)?,
        }
    }
}

fn rows(base: &Base, frame: Bytes) -> Result<Vec<FetchSnapshotResponse>, ViewError> {
    let mut rows = Vec::new();
    for frame in journal::frames(frame) {
        for entry in Entries::new(&frame.batch.entries, base.schema()) {
            let row = Some(row_struct(base.schema(), entry?.row)?);
            rows.push(FetchSnapshotResponse { chunk: Some(Chunk::Row(SnapshotRow { row })) });
        }
    }
    Ok(rows)
}

fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
