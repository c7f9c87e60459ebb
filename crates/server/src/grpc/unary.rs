//! The methods that answer once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::stream::BoxStream;
use laredo_core::CommitTime;
use laredo_engine::journal::{Journal, ReaderInfo, ReaderState};
use laredo_proto::replication::laredo_replication_service_server::LaredoReplicationService;
use laredo_proto::replication::{
    ConnectedClient, FetchSnapshotRequest, FetchSnapshotResponse, GetReplicationStatusRequest,
    GetReplicationStatusResponse, ListSnapshotsRequest, ListSnapshotsResponse, ReplicationSnapshotInfo, SyncRequest,
    SyncResponse,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::snapshots;
use crate::refusal;
use crate::shared::Shared;
use crate::table::Served;
use crate::view::timestamp;

pub(super) struct Unary {
    shared: Arc<Shared>,
}

impl Unary {
    pub(super) fn new(shared: Arc<Shared>) -> Unary {
        Unary { shared }
    }
}

type NoStream<T> = futures::stream::Empty<Result<T, Status>>;

#[tonic::async_trait]
impl LaredoReplicationService for Unary {
    type SyncStream = NoStream<SyncResponse>;
    type FetchSnapshotStream = BoxStream<'static, Result<FetchSnapshotResponse, Status>>;

    async fn sync(&self, _: Request<SyncRequest>) -> Result<Response<Self::SyncStream>, Status> {
        Err(Status::unimplemented("Sync is served on the raw frames, not here"))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let table = self.shared.table(&request.schema, &request.table)?;
        snapshots::list(table, request.limit).map(Response::new)
    }

    async fn fetch_snapshot(
        &self,
        request: Request<FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        snapshots::fetch(self.shared.clone(), request.into_inner().snapshot_id).await.map(Response::new)
    }

    async fn get_replication_status(
        &self,
        request: Request<GetReplicationStatusRequest>,
    ) -> Result<Response<GetReplicationStatusResponse>, Status> {
        let request = request.into_inner();
        let table = self.shared.table(&request.schema, &request.table)?;
        let Some(journal) = table.handle().journal() else {
            return Err(match table.failure() {
                Some(error) => refusal::failed(table.name(), &error),
                None => refusal::not_ready(table.name()),
            });
        };
        Ok(Response::new(status(table, &journal, self.shared.clock.as_ref()())))
    }
}

fn status(table: &Served, journal: &Journal, now: CommitTime) -> GetReplicationStatusResponse {
    let info = journal.info();
    let head = info.head.sequence;
    let client = |reader: ReaderInfo| {
        let behind = journal.entries_after(reader.sequence);
        ConnectedClient {
            client_id: reader.client_id,
            current_sequence: reader.sequence.to_wire(),
            behind_count: i64::try_from(behind).unwrap_or(i64::MAX),
            buffer_depth: i32::try_from(behind).unwrap_or(i32::MAX),
            connected_at: Some(timestamp(time_of(reader.since, now))),
            state: state_name(reader.state).to_owned(),
        }
    };
    let clients: Vec<ConnectedClient> = journal.readers().into_iter().map(client).collect();
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let full_snapshots = table.counters.snapshots.lock();
    let full_snapshots = full_snapshots.iter();
    GetReplicationStatusResponse {
        current_sequence: head.to_wire(),
        journal_oldest_sequence: info.oldest_sequence.to_wire(),
        journal_entry_count: i64::try_from(info.entries).unwrap_or(i64::MAX),
        row_count: i64::try_from(table.handle().status().rows).unwrap_or(i64::MAX),
        connected_clients: i32::try_from(clients.len()).unwrap_or(i32::MAX),
        clients,
        latest_snapshot: Some(latest_snapshot(table, journal)),
        full_snapshots: full_snapshots.map(|(reason, count)| ((*reason).to_owned(), number(*count))).collect(),
        deltas: number(table.counters.deltas.load(Ordering::Relaxed)),
    }
}

/// The newest in the store; where there is none, the base that a newcomer would be sent.
fn latest_snapshot(table: &Served, journal: &Journal) -> ReplicationSnapshotInfo {
    if let Some(newest) = table.handle().snapshots().and_then(|snapshots| snapshots.newest()) {
        return snapshots::info(&newest);
    }
    let base = journal.base();
    ReplicationSnapshotInfo {
        snapshot_id: base.snapshot_id(journal.instance()),
        sequence: base.sequence().to_wire(),
        source_position: base.position().to_string(),
        row_count: i64::try_from(base.rows()).unwrap_or(i64::MAX),
        size_bytes: i64::try_from(base.bytes()).unwrap_or(i64::MAX),
        created_at: Some(timestamp(base.committed_at())),
    }
}

/// The time of day of a moment that has passed.
fn time_of(moment: Instant, now: CommitTime) -> CommitTime {
    let passed_us = i64::try_from(moment.elapsed().as_micros()).unwrap_or(i64::MAX);
    CommitTime(now.0.saturating_sub(passed_us))
}

fn state_name(state: ReaderState) -> &'static str {
    match state {
        ReaderState::CatchingUp => "catching_up",
        ReaderState::Live => "live",
        ReaderState::Backpressured => "backpressured",
        ReaderState::Draining => "draining",
    }
}
