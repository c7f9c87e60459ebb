//! The unary methods of the Replication service.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::BoxStream;
use laredo_core::Checksum;
use laredo_engine::journal::{Journal, ReaderInfo, ReaderState};
use laredo_proto::replication::laredo_replication_service_server::LaredoReplicationService;
use laredo_proto::replication::{
    ConnectedClient, FetchSnapshotRequest, FetchSnapshotResponse, GetReplicationStatusRequest,
    GetReplicationStatusResponse, ListSnapshotsRequest, ListSnapshotsResponse, ReplicationSnapshotInfo,
    ReportChecksumRequest, ReportChecksumResponse, SyncRequest, SyncResponse,
};
use tonic::{Request, Response, Status};

use super::snapshots;
use crate::access::{Caller, admitted};
use crate::refusal;
use crate::response_task::ResponseTask;
use crate::roster::{CheckId, ChecksumReport};
use crate::server_state::ServerState;
use crate::table::ServedTable;
use crate::view::timestamp;

pub(super) struct UnaryMethods {
    shared: Arc<ServerState>,
}

impl UnaryMethods {
    pub(super) fn new(shared: Arc<ServerState>) -> UnaryMethods {
        UnaryMethods { shared }
    }

    /// Returns the table with this name, and what the caller may know of it.
    fn visible_table(
        &self,
        caller: &Caller,
        schema: &str,
        table: &str,
    ) -> Result<(Arc<ServedTable>, StatusDetail), Status> {
        if caller.is_observer() {
            return Ok((self.shared.table(schema, table)?, StatusDetail::Everything));
        }
        let (table, scope) = self.shared.readable_table(caller, schema, table)?;
        let owner = caller.identity_name().to_owned();
        Ok((table, StatusDetail::Reader { owner, is_whole: scope.is_whole() }))
    }
}

/// The part of a table's status that a caller may know.
enum StatusDetail {
    Everything,
    /// The caller's own streams, and the numbers of rows and entries only if it may read all rows.
    Reader {
        owner: String,
        is_whole: bool,
    },
}

impl StatusDetail {
    /// Returns true if the caller may know everything of the rows, and so their numbers and the
    /// table's errors.
    fn is_whole(&self) -> bool {
        match self {
            StatusDetail::Everything => true,
            StatusDetail::Reader { is_whole, .. } => *is_whole,
        }
    }

    fn shows_client(&self, reader: &ReaderInfo) -> bool {
        match self {
            StatusDetail::Everything => true,
            StatusDetail::Reader { owner, .. } => reader.owner == *owner,
        }
    }

    /// Removes everything that the caller may not know. The clients are already selected.
    fn limit(&self, status: GetReplicationStatusResponse) -> GetReplicationStatusResponse {
        let is_whole = match self {
            StatusDetail::Everything => return status,
            StatusDetail::Reader { is_whole, .. } => *is_whole,
        };
        // The reasons and numbers of streams are those of all clients.
        let status = GetReplicationStatusResponse { full_snapshots: HashMap::default(), deltas: 0, ..status };
        if is_whole {
            return status;
        }
        let latest_snapshot = status.latest_snapshot.map(snapshots::without_counts);
        GetReplicationStatusResponse { journal_entry_count: 0, row_count: 0, latest_snapshot, ..status }
    }
}

type NoStream<T> = futures::stream::Empty<Result<T, Status>>;

#[tonic::async_trait]
impl LaredoReplicationService for UnaryMethods {
    type SyncStream = NoStream<SyncResponse>;
    type FetchSnapshotStream = BoxStream<'static, Result<FetchSnapshotResponse, Status>>;

    async fn sync(&self, _: Request<SyncRequest>) -> Result<Response<Self::SyncStream>, Status> {
        Err(Status::unimplemented("Sync is served on the raw frames, not here"))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let caller = admitted(request.extensions())?;
        let request = request.into_inner();
        let (table, detail) = self.visible_table(&caller, &request.schema, &request.table)?;
        snapshots::list(&table, request.limit, detail.is_whole()).map(Response::new)
    }

    async fn fetch_snapshot(
        &self,
        request: Request<FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let caller = admitted(request.extensions())?;
        let task = request.extensions().get::<ResponseTask>().cloned().unwrap_or_default();
        let id = request.into_inner().snapshot_id;
        snapshots::fetch(self.shared.clone(), &caller, id, task).await.map(Response::new)
    }

    async fn get_replication_status(
        &self,
        request: Request<GetReplicationStatusRequest>,
    ) -> Result<Response<GetReplicationStatusResponse>, Status> {
        let caller = admitted(request.extensions())?;
        let request = request.into_inner();
        let (table, detail) = self.visible_table(&caller, &request.schema, &request.table)?;
        let Some(journal) = table.handle().journal() else {
            return Err(match table.failure() {
                Some(error) => refusal::failed(table.name(), &error, detail.is_whole()),
                None => refusal::not_ready(table.handle(), detail.is_whole()),
            });
        };
        Ok(Response::new(detail.limit(status(&self.shared, &table, &journal, &detail))))
    }

    async fn report_checksum(
        &self,
        request: Request<ReportChecksumRequest>,
    ) -> Result<Response<ReportChecksumResponse>, Status> {
        let caller = admitted(request.extensions())?;
        let request = request.into_inner();
        let (table, _) = self.shared.readable_table(&caller, &request.schema, &request.table)?;
        table.roster().answer(checksum_report(&request)?)?;
        Ok(Response::new(ReportChecksumResponse {}))
    }
}

/// Reads a client's report of its checksum.
///
/// # Errors
/// Returns an error with the name of the first malformed field.
fn checksum_report(request: &ReportChecksumRequest) -> Result<ChecksumReport, Status> {
    let rows = request.row_count.map(u64::try_from).transpose();
    Ok(ChecksumReport {
        check: CheckId::from_wire(&request.check)
            .ok_or_else(|| refusal::malformed("check", "it is not one of this server's"))?,
        position: request.source_position.parse().map_err(|error| refusal::malformed("source_position", error))?,
        checksum: Checksum::from_wire(&request.checksum).map_err(|error| refusal::malformed("checksum", error))?,
        rows: rows.map_err(|_| refusal::malformed("row_count", "it is below zero"))?,
    })
}

fn status(
    shared: &ServerState,
    table: &ServedTable,
    journal: &Journal,
    detail: &StatusDetail,
) -> GetReplicationStatusResponse {
    let info = journal.info();
    let head = info.head.sequence;
    let client = |reader: ReaderInfo| {
        let behind = journal.entries_after(reader.sequence);
        ConnectedClient {
            client_id: client_name(&reader),
            current_sequence: reader.sequence.to_wire(),
            behind_count: i64::try_from(behind).unwrap_or(i64::MAX),
            buffer_depth: i32::try_from(behind).unwrap_or(i32::MAX),
            connected_at: Some(timestamp(shared.time_of(reader.since))),
            state: state_name(reader.state).to_owned(),
        }
    };
    let clients: Vec<ConnectedClient> =
        journal.readers().into_iter().filter(|reader| detail.shows_client(reader)).map(client).collect();
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let counts = table.counters().read();
    let full_snapshots = counts.snapshots.into_iter();
    GetReplicationStatusResponse {
        current_sequence: head.to_wire(),
        journal_oldest_sequence: info.oldest_sequence.to_wire(),
        journal_entry_count: i64::try_from(info.entries).unwrap_or(i64::MAX),
        row_count: i64::try_from(table.handle().status().rows).unwrap_or(i64::MAX),
        connected_clients: i32::try_from(clients.len()).unwrap_or(i32::MAX),
        clients,
        latest_snapshot: Some(latest_snapshot(table, journal)),
        full_snapshots: full_snapshots.map(|(reason, count)| (reason.to_owned(), number(count))).collect(),
        deltas: number(counts.deltas),
    }
}

/// Returns the newest snapshot in the store. Without one, returns the base that a new client would
/// be sent.
fn latest_snapshot(table: &ServedTable, journal: &Journal) -> ReplicationSnapshotInfo {
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

/// Returns a client's name: its own label under the name of its identity.
fn client_name(reader: &ReaderInfo) -> String {
    match (reader.owner.as_str(), reader.client_id.as_str()) {
        ("", client_id) => client_id.to_owned(),
        (owner, "") => owner.to_owned(),
        (owner, client_id) => format!("{owner}/{client_id}"),
    }
}

fn state_name(state: ReaderState) -> &'static str {
    match state {
        ReaderState::CatchingUp => "catching_up",
        ReaderState::Live => "live",
        ReaderState::Backpressured => "backpressured",
        ReaderState::Draining => "draining",
    }
}
