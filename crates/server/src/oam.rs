//! Operation, administration and maintenance: the service for operators' requests and commands.

mod config;
mod row_changes;
mod snapshots;
mod status;
mod status_watch;
mod verify;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::BoxStream;
use laredo_core::TableName;
use laredo_engine::journal::Journal;
use laredo_proto::oam::laredo_oam_service_server::{LaredoOamService, LaredoOamServiceServer};
use laredo_proto::oam::*;
use laredo_proto::schema;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::access::admitted;
use crate::options::ServedSource;
use crate::refusal;
use crate::server_state::ServerState;
use crate::table::ServedTable;

/// Returns the service, over gRPC.
pub(crate) fn service(shared: Arc<ServerState>) -> LaredoOamServiceServer<OamService> {
    LaredoOamServiceServer::new(OamService { shared })
}

/// The maximum time until an order to copy tables is answered, even if the copies wait for others.
const RELOAD_WAIT: Duration = Duration::from_secs(3);

pub(crate) struct OamService {
    shared: Arc<ServerState>,
}

type OamResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl LaredoOamService for OamService {
    type WatchStatusStream = BoxStream<'static, Result<WatchStatusResponse, Status>>;
    type VerifyTableStream = BoxStream<'static, Result<VerifyTableResponse, Status>>;

    async fn get_status(&self, _: Request<GetStatusRequest>) -> OamResult<GetStatusResponse> {
        Ok(Response::new(status::whole(&self.shared)))
    }

    async fn get_table_status(&self, request: Request<GetTableStatusRequest>) -> OamResult<GetTableStatusResponse> {
        let GetTableStatusRequest { schema, table } = described(request)?;
        let table = self.shared.table(&schema, &table)?;
        let pipelines = vec![status::pipeline(&self.shared, &table)];
        Ok(Response::new(GetTableStatusResponse { pipelines, indexes: status::indexes(&table) }))
    }

    async fn get_pipeline_status(
        &self,
        request: Request<GetPipelineStatusRequest>,
    ) -> OamResult<GetPipelineStatusResponse> {
        let table = pipeline(&self.shared, &described(request)?.pipeline_id)?;
        let status = Some(status::pipeline(&self.shared, &table));
        Ok(Response::new(GetPipelineStatusResponse { status, indexes: status::indexes(&table) }))
    }

    async fn watch_status(&self, request: Request<WatchStatusRequest>) -> OamResult<Self::WatchStatusStream> {
        status_watch::watch(self.shared.clone(), &described(request)?).map(Response::new)
    }

    async fn check_ready(&self, request: Request<CheckReadyRequest>) -> OamResult<CheckReadyResponse> {
        let tables = self.chosen(&described(request)?)?;
        let now = (self.shared.clock)();
        let not_ready_reasons = tables.iter().filter_map(|table| crate::http::not_served(table, now)).collect();
        Ok(Response::new(CheckReadyResponse { ready: self.shared.are_ready(&tables), not_ready_reasons }))
    }

    async fn get_source_info(&self, request: Request<GetSourceInfoRequest>) -> OamResult<GetSourceInfoResponse> {
        let chosen = self.sources(&described(request)?.source_id)?;
        let sources = chosen.into_iter().map(|source| status::source_info(&self.shared, source)).collect();
        Ok(Response::new(GetSourceInfoResponse { sources }))
    }

    async fn reload_table(&self, request: Request<ReloadTableRequest>) -> OamResult<ReloadTableResponse> {
        let ReloadTableRequest { source_id, schema, table } = described(request)?;
        let table = self.shared.table(&schema, &table)?;
        if !source_id.is_empty() && source_id != table.source_id() {
            return Err(refusal::of_another_source(table.name(), table.source_id()));
        }
        let (accepted, message) = self.reload(&[&table]).await;
        Ok(Response::new(ReloadTableResponse { accepted, message }))
    }

    async fn reload_all(&self, request: Request<ReloadAllRequest>) -> OamResult<ReloadAllResponse> {
        let chosen = self.sources(&described(request)?.source_id)?;
        let is_chosen = |table: &&Arc<ServedTable>| chosen.iter().any(|source| source.id == table.source_id());
        let all = self.shared.tables();
        let tables: Vec<&Arc<ServedTable>> = all.iter().filter(is_chosen).collect();
        let (accepted, message) = self.reload(&tables).await;
        Ok(Response::new(ReloadAllResponse { accepted, message }))
    }

    async fn pause_sync(&self, request: Request<PauseSyncRequest>) -> OamResult<PauseSyncResponse> {
        let state = self.pause(&described(request)?.source_id, true)?.into();
        Ok(Response::new(PauseSyncResponse { state }))
    }

    async fn resume_sync(&self, request: Request<ResumeSyncRequest>) -> OamResult<ResumeSyncResponse> {
        let state = self.pause(&described(request)?.source_id, false)?.into();
        Ok(Response::new(ResumeSyncResponse { state }))
    }

    async fn reset_source(&self, request: Request<ResetSourceRequest>) -> OamResult<ResetSourceResponse> {
        let ResetSourceRequest { source_id, confirm, drop_publication } = described(request)?;
        let source = self.source(&source_id)?;
        if !confirm {
            return Err(refusal::unconfirmed("dropping the slot and copying all tables again"));
        }
        tracing::warn!(
            event = "reset_requested",
            source = source_id,
            drop_publication,
            "resetting the source on request"
        );
        source.engine.reset(drop_publication).await.map_err(|error| refusal::source(&error))?;
        Ok(Response::new(status::reset(source, drop_publication)))
    }

    async fn drain_replication(
        &self,
        request: Request<DrainReplicationRequest>,
    ) -> OamResult<DrainReplicationResponse> {
        let DrainReplicationRequest { schema, table, drain_deadline_seconds } = described(request)?;
        let chosen: Vec<Arc<ServedTable>> = match (schema.as_str(), table.as_str()) {
            ("", "") => self.shared.tables().to_vec(),
            (schema, table) => vec![self.shared.table(schema, table)?],
        };
        let seconds = u64::try_from(drain_deadline_seconds)
            .map_err(|_| refusal::malformed("drain_deadline_seconds", "it is below zero; 0 is for no deadline"))?;
        let time = (seconds > 0).then(|| Duration::from_secs(seconds));
        let clients: usize = chosen.iter().map(|table| table.clients()).sum();
        for table in &chosen {
            table.drain().begin(Instant::now(), time);
            tracing::info!(
                event = "drain_requested", source = table.source_id(), table = %table.name(), deadline_s = seconds,
                "draining on request"
            );
        }
        let message =
            format!("{clients} clients are asked to leave; no new ones are accepted until the server is restarted");
        let drained_targets = i32::try_from(chosen.len()).unwrap_or(i32::MAX);
        Ok(Response::new(DrainReplicationResponse { accepted: true, message, drained_targets }))
    }

    async fn list_tables(&self, _: Request<ListTablesRequest>) -> OamResult<ListTablesResponse> {
        let tables = self.shared.tables().iter().map(|table| self.table_config(table)).collect();
        Ok(Response::new(ListTablesResponse { tables }))
    }

    async fn get_table_schema(&self, request: Request<GetTableSchemaRequest>) -> OamResult<GetTableSchemaResponse> {
        let GetTableSchemaRequest { schema, table } = described(request)?;
        let table = self.shared.table(&schema, &table)?;
        let journal = table.handle().journal().ok_or_else(|| refusal::not_ready(table.handle(), true))?;
        Ok(Response::new(GetTableSchemaResponse { columns: columns(&journal) }))
    }

    async fn create_snapshot(&self, request: Request<CreateSnapshotRequest>) -> OamResult<CreateSnapshotResponse> {
        snapshots::create(&self.shared, described(request)?).await.map(Response::new)
    }

    async fn list_snapshots(&self, request: Request<ListSnapshotsRequest>) -> OamResult<ListSnapshotsResponse> {
        snapshots::list(&self.shared, &described(request)?).map(Response::new)
    }

    async fn inspect_snapshot(&self, request: Request<InspectSnapshotRequest>) -> OamResult<InspectSnapshotResponse> {
        snapshots::inspect(&self.shared, described(request)?.snapshot_id).await.map(Response::new)
    }

    async fn restore_snapshot(&self, request: Request<RestoreSnapshotRequest>) -> OamResult<RestoreSnapshotResponse> {
        snapshots::restore(&self.shared, described(request)?).await.map(Response::new)
    }

    async fn delete_snapshot(&self, request: Request<DeleteSnapshotRequest>) -> OamResult<DeleteSnapshotResponse> {
        snapshots::delete(&self.shared, described(request)?.snapshot_id).await.map(Response::new)
    }

    async fn prune_snapshots(&self, request: Request<PruneSnapshotsRequest>) -> OamResult<PruneSnapshotsResponse> {
        snapshots::prune(&self.shared, described(request)?).await.map(Response::new)
    }

    async fn list_dead_letters(&self, _: Request<ListDeadLettersRequest>) -> OamResult<ListDeadLettersResponse> {
        Err(refusal::no_dead_letters())
    }

    async fn replay_dead_letters(&self, _: Request<ReplayDeadLettersRequest>) -> OamResult<ReplayDeadLettersResponse> {
        Err(refusal::no_dead_letters())
    }

    async fn purge_dead_letters(&self, _: Request<PurgeDeadLettersRequest>) -> OamResult<PurgeDeadLettersResponse> {
        Err(refusal::no_dead_letters())
    }

    async fn start_replay(&self, _: Request<StartReplayRequest>) -> OamResult<StartReplayResponse> {
        Err(refusal::no_replay())
    }

    async fn get_replay_status(&self, _: Request<GetReplayStatusRequest>) -> OamResult<GetReplayStatusResponse> {
        Err(refusal::no_replay())
    }

    async fn stop_replay(&self, _: Request<StopReplayRequest>) -> OamResult<StopReplayResponse> {
        Err(refusal::no_replay())
    }

    async fn diff_config(&self, request: Request<DiffConfigRequest>) -> OamResult<DiffConfigResponse> {
        let DiffConfigRequest {} = described(request)?;
        config::diff(&self.shared).await.map(Response::new)
    }

    async fn reload_config(&self, request: Request<ReloadConfigRequest>) -> OamResult<ReloadConfigResponse> {
        config::reload(&self.shared, described(request)?).await.map(Response::new)
    }

    async fn verify_table(&self, request: Request<VerifyTableRequest>) -> OamResult<Self::VerifyTableStream> {
        verify::verify(&self.shared, &described(request)?).map(Response::new)
    }
}

/// Returns the message of a request, and describes it for the audit.
///
/// # Errors
/// INTERNAL if the request did not pass the check of its caller.
fn described<T: std::fmt::Debug>(request: Request<T>) -> Result<T, Status> {
    let (_, extensions, message) = request.into_parts();
    admitted(&extensions)?.describe(&message);
    Ok(message)
}

impl OamService {
    fn source(&self, id: &str) -> Result<&ServedSource, Status> {
        if id.is_empty() {
            return Err(refusal::required("source_id"));
        }
        self.shared.source(id).ok_or_else(|| refusal::unknown("source", id))
    }

    /// Returns the named source, or all sources if the name is empty.
    fn sources(&self, id: &str) -> Result<Vec<&ServedSource>, Status> {
        match id {
            "" => Ok(self.shared.sources.iter().collect()),
            id => Ok(vec![self.source(id)?]),
        }
    }

    /// Returns the sources that have one of the tables.
    fn sources_of(&self, tables: &[&Arc<ServedTable>]) -> impl Iterator<Item = &ServedSource> {
        self.shared.sources.iter().filter(|source| tables.iter().any(|table| table.source_id() == source.id))
    }

    /// Orders copies, and reports the result of the orders.
    async fn reload(&self, tables: &[&Arc<ServedTable>]) -> (bool, String) {
        // A source that waits for its next attempt makes it now, even if its tables reject the
        // order.
        self.sources_of(tables).for_each(|source| source.engine.retry_now());
        let orders = tables
            .iter()
            .map(|table| tokio::time::timeout(RELOAD_WAIT, table.handle().begin_reload("an operator asked for it")));
        let (mut begun, mut waiting, mut failed) = (0, Vec::new(), Vec::new());
        for (table, outcome) in tables.iter().zip(join_all(orders).await) {
            match outcome {
                Ok(Ok(())) => begun += 1,
                Ok(Err(error)) => failed.push(format!("{}: {error}", table.name())),
                Err(_) => waiting.push(table.name().to_string()),
            }
        }
        let mut sentences = failed.clone();
        sentences.extend(self.unfollowed(tables));
        if begun > 0 {
            sentences.push(format!("{begun} tables are being copied again; clients are sent what differs"));
        }
        if !waiting.is_empty() {
            let waiting = waiting.join(", ");
            sentences
                .push(format!("{waiting}: the copy is ordered, and begins when a lock, a permit or a session is free"));
        }
        (failed.is_empty(), sentences.join("\n"))
    }

    /// Returns descriptions of the tables' sources that are not followed, so that their tables
    /// accept no orders.
    fn unfollowed(&self, tables: &[&Arc<ServedTable>]) -> Vec<String> {
        let said = self.sources_of(tables).filter_map(|source| {
            let state = source.engine.source_status().state;
            let reason = state.reason().unwrap_or("the database has not answered yet");
            (!state.is_following())
                .then(|| format!("source {} is {}: {reason}; the server tries again now", source.id, state.name()))
        });
        said.collect()
    }

    fn pause(&self, source_id: &str, paused: bool) -> Result<ServiceState, Status> {
        for source in self.sources(source_id)? {
            source.engine.pause(paused);
            tracing::info!(event = "pause_requested", source = source.id, paused, "paused or resumed on request");
        }
        Ok(status::service_state(&self.shared))
    }

    /// Returns the tables that a request for readiness selects.
    fn chosen(&self, request: &CheckReadyRequest) -> Result<Vec<Arc<ServedTable>>, Status> {
        let mut tables = self.shared.tables().to_vec();
        if !request.source.is_empty() {
            self.source(&request.source)?;
            tables.retain(|table| table.source_id() == request.source);
        }
        if !request.table.is_empty() {
            let name: TableName = request.table.parse().map_err(|error| refusal::malformed("table", error))?;
            let chosen = self.shared.table(&name.schema, &name.table)?;
            tables.retain(|table| Arc::ptr_eq(table, &chosen));
        }
        if !request.pipeline_id.is_empty() {
            let chosen = pipeline(&self.shared, &request.pipeline_id)?;
            tables.retain(|table| Arc::ptr_eq(table, &chosen));
        }
        Ok(tables)
    }

    fn table_config(&self, table: &ServedTable) -> TableConfig {
        let source = self.shared.source(table.source_id());
        let key = table.handle().journal().map(|journal| {
            let schema = journal.schema();
            let names = schema.key().columns().iter().filter_map(|place| schema.columns().get(*place));
            names.map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
        });
        TableConfig {
            schema: table.name().schema.clone(),
            table: table.name().table.clone(),
            primary_key: key.unwrap_or_default(),
            source_id: table.source_id().to_owned(),
            source_type: source.map(|source| source.kind.clone()).unwrap_or_default(),
            // The source's configuration contains secrets, and the operator already has the file.
            source_config: None,
            target_type: status::TARGET.to_owned(),
            target_config: None,
        }
    }
}

/// Returns the tables that a list in a request names, each once.
///
/// # Errors
/// Returns an error if a name is malformed or unknown, or if there are more names than tables.
fn named_tables(shared: &ServerState, field: &str, names: &[String]) -> Result<Vec<Arc<ServedTable>>, Status> {
    distinct(shared, field, names, |name| {
        let name: TableName = name.parse().map_err(|error| refusal::malformed(field, error))?;
        shared.table(&name.schema, &name.table)
    })
}

/// Returns the tables that `find` finds by the names, each once. The number of names is checked
/// first, so that a request costs no more than one that names every table.
fn distinct(
    shared: &ServerState,
    field: &str,
    names: &[String],
    find: impl Fn(&str) -> Result<Arc<ServedTable>, Status>,
) -> Result<Vec<Arc<ServedTable>>, Status> {
    let names_max = shared.tables().len();
    if names.len() > names_max {
        return Err(refusal::too_many_names(field, names.len(), names_max));
    }
    let (mut seen, mut tables) = (HashSet::new(), Vec::new());
    for name in names {
        let table = find(name)?;
        if seen.insert(Arc::as_ptr(&table)) {
            tables.push(table);
        }
    }
    Ok(tables)
}

fn pipeline(shared: &ServerState, id: &str) -> Result<Arc<ServedTable>, Status> {
    if id.is_empty() {
        return Err(refusal::required("pipeline_id"));
    }
    let tables = shared.tables();
    let found = tables.iter().find(|table| status::pipeline_id(table) == id);
    found.cloned().ok_or_else(|| refusal::unknown("pipeline", id))
}

fn columns(journal: &Journal) -> Vec<ColumnDefinition> {
    let column = |column: laredo_proto::replication::ColumnDefinition| ColumnDefinition {
        ordinal_position: column.ordinal_position,
        column_name: column.column_name,
        data_type: column.data_type,
        not_null: column.not_null,
        is_primary_key: column.is_primary_key,
        primary_key_ordinal: column.primary_key_ordinal,
    };
    schema::column_definitions(&journal.schema()).into_iter().map(column).collect()
}
