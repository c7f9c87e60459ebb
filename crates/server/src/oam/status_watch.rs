//! Streams of status changes and row changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use laredo_core::TableName;
use laredo_engine::retention::{WalRetention, WalStatus};
use laredo_engine::source::SourceState;
use laredo_proto::oam::watch_status_response::Event;
use laredo_proto::oam::{
    PipelineState, PipelineStateChangeEvent, ServiceState, ServiceStateChange, SourceStateChange, WatchStatusRequest,
    WatchStatusResponse,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop::consume_budget;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::Status;

use super::row_changes::RowChangeCursor;
use super::status;
use crate::refusal;
use crate::server_state::{ServedTables, ServerState};
use crate::table::ServedTable;
use crate::view::timestamp;

/// The interval at which states are checked. They change rarely, by copies and failures, and a
/// person watches them.
const INTERVAL: Duration = Duration::from_millis(200);

struct StatusWatch {
    shared: Arc<ServerState>,
    service: ServiceState,
    pipelines: Vec<(RowChangeCursor, PipelineState)>,
    /// True if all tables are watched, also those that are added later.
    is_of_all: bool,
    /// The tables of the server in the last round.
    known: ServedTables,
    sources: BTreeMap<String, ReportedSourceState>,
    ticks: Interval,
    /// True if there were rows in the last round, so that there may be more.
    has_more: bool,
    _permit: OwnedSemaphorePermit,
}

/// Streams the present states, then each change of them, and each change of a row of the tables.
/// The stream ends when the server stops. Only a place in each journal is kept for the watcher. If
/// a journal no longer reaches back to that place, the stream is cut.
pub(super) fn watch(
    shared: Arc<ServerState>,
    request: &WatchStatusRequest,
) -> Result<BoxStream<'static, Result<WatchStatusResponse, Status>>, Status> {
    let permit = shared.status_watch_permit()?;
    let known = shared.tables();
    let is_of_all = request.tables.is_empty() && request.pipeline_ids.is_empty();
    let chosen = chosen(&shared, request)?.into_iter();
    let pipelines = chosen.map(|table| (RowChangeCursor::new(table), PipelineState::Unspecified)).collect();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (service, sources) = (ServiceState::Unspecified, BTreeMap::new());
    let watch =
        StatusWatch { shared, service, pipelines, is_of_all, known, sources, ticks, has_more: false, _permit: permit };
    let rounds = stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        let ended = watch.shared.streams_ended();
        tokio::select! {
            biased;
            () = ended => Some((vec![Err(refusal::stopping())], None)),
            round = watch.round() => match round {
                Ok(changes) => Some((changes.into_iter().map(Ok).collect(), Some(watch))),
                Err(status) => Some((vec![Err(status)], None)),
            },
        }
    });
    Ok(rounds.flat_map(stream::iter).boxed())
}

/// Returns the requested tables, named as tables or as pipelines, or all tables if none is named.
fn chosen(shared: &ServerState, request: &WatchStatusRequest) -> Result<Vec<Arc<ServedTable>>, Status> {
    if request.tables.is_empty() && request.pipeline_ids.is_empty() {
        return Ok(shared.tables().to_vec());
    }
    let mut chosen = super::named_tables(shared, "tables", &request.tables)?;
    let pipelines = super::distinct(shared, "pipeline_ids", &request.pipeline_ids, |id| super::pipeline(shared, id))?;
    for table in pipelines {
        if !chosen.iter().any(|known| Arc::ptr_eq(known, &table)) {
            chosen.push(table);
        }
    }
    Ok(chosen)
}

impl StatusWatch {
    /// Waits for the next round and returns all changes since the last one, with rows in batches.
    async fn round(&mut self) -> Result<Vec<WatchStatusResponse>, Status> {
        if !self.has_more {
            self.ticks.tick().await;
        }
        self.has_more = false;
        let mut events = self.states().await;
        for (rows, _) in &mut self.pipelines {
            let changes = rows.next().await?;
            self.has_more |= !changes.is_empty();
            events.extend(changes.into_iter().map(Event::RowChange));
        }
        let at = timestamp(self.shared.clock.as_ref()());
        Ok(events.into_iter().map(|event| WatchStatusResponse { timestamp: Some(at), event: Some(event) }).collect())
    }

    /// Watches the present tables. Returns the last state of those that were removed.
    fn tables(&mut self) -> Vec<Event> {
        let present = self.shared.tables();
        if Arc::ptr_eq(&present, &self.known) {
            return Vec::new();
        }
        self.known = present.clone();
        let is_present =
            |rows: &RowChangeCursor| present.iter().any(|table| std::ptr::eq(table.as_ref(), rows.table()));
        let (kept, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pipelines).into_iter().partition(|(rows, _)| is_present(rows));
        self.pipelines = kept;
        let is_watched =
            |name: &TableName| gone.iter().chain(&self.pipelines).any(|(rows, _)| rows.table().name() == name);
        let is_wanted = |table: &&Arc<ServedTable>| {
            let is_known = self.pipelines.iter().any(|(rows, _)| std::ptr::eq(table.as_ref(), rows.table()));
            !is_known && (self.is_of_all || is_watched(table.name()))
        };
        let added: Vec<_> = present.iter().filter(is_wanted).cloned().collect();
        let ended = gone.iter().map(|(rows, state)| {
            Event::PipelineStateChange(PipelineStateChangeEvent {
                pipeline_id: status::pipeline_id(rows.table()),
                old_state: (*state).into(),
                new_state: PipelineState::Stopped.into(),
            })
        });
        let ended = ended.collect();
        self.pipelines.extend(added.into_iter().map(|table| (RowChangeCursor::new(table), PipelineState::Unspecified)));
        ended
    }

    /// Returns the changes of states. A server may have many tables, so other tasks run in between.
    async fn states(&mut self) -> Vec<Event> {
        let mut events = self.tables();
        let service = status::service_state(&self.shared);
        if service != self.service {
            let old_state = std::mem::replace(&mut self.service, service).into();
            events.push(Event::ServiceStateChange(ServiceStateChange { old_state, new_state: service.into() }));
        }
        for (rows, known) in &mut self.pipelines {
            consume_budget().await;
            let state = status::state_of(&self.shared, rows.table());
            if state != *known {
                let old_state = std::mem::replace(known, state).into();
                events.push(Event::PipelineStateChange(PipelineStateChangeEvent {
                    pipeline_id: status::pipeline_id(rows.table()),
                    old_state,
                    new_state: state.into(),
                }));
            }
        }
        for source in &self.shared.sources {
            let (id, retention) = (&source.id, source.engine.retention());
            let known = self.sources.entry(id.clone()).or_insert_with(|| ReportedSourceState::new(&retention));
            let state = source.engine.source_status().state;
            let told = known.changes(&retention).into_iter().chain(known.state_change(&state));
            events.extend(told.map(|(event_type, message)| {
                let (source_id, event_type) = (id.clone(), event_type.to_owned());
                Event::SourceStateChange(SourceStateChange { source_id, event_type, message })
            }));
        }
        events
    }
}

/// The last reported state of a source and its slot.
struct ReportedSourceState {
    losses: u64,
    forks: u64,
    wal_status: WalStatus,
    /// The name of the state and its reason; empty before the first check.
    state: (&'static str, String),
}

impl ReportedSourceState {
    /// Returns the initial state, in which a slot with all its WAL is not reported.
    fn new(retention: &WalRetention) -> ReportedSourceState {
        ReportedSourceState {
            losses: retention.losses,
            forks: retention.forks,
            wal_status: WalStatus::Reserved,
            state: ("", String::new()),
        }
    }

    /// Returns the state if it or its reason has changed. A source that is followed is not reported
    /// at first.
    fn state_change(&mut self, state: &SourceState) -> Option<(&'static str, String)> {
        let reason = state.reason().unwrap_or_default().to_owned();
        let now = (state.name(), reason);
        let before = std::mem::replace(&mut self.state, now.clone());
        let is_news = before != now && !(before.0.is_empty() && state.is_following());
        let (name, reason) = now;
        is_news.then(|| (name, if reason.is_empty() { format!("the source is {name}") } else { reason }))
    }

    /// Returns the changes since the last call, each as an event type and a message.
    fn changes(&mut self, retention: &WalRetention) -> Vec<(&'static str, String)> {
        let mut changes = Vec::new();
        let WalRetention { slot, standing, losses, last_loss, forks, last_fork } = retention;
        if std::mem::replace(&mut self.losses, *losses) != *losses {
            changes.push(("slot_lost", last_loss.clone().unwrap_or_default()));
        }
        if std::mem::replace(&mut self.forks, *forks) != *forks {
            changes.push(("history_forked", last_fork.clone().unwrap_or_default()));
        }
        // While the database cannot be asked, no change is known.
        if let Some(wal_status) = standing.map(|standing| standing.wal_status)
            && std::mem::replace(&mut self.wal_status, wal_status) != wal_status
        {
            changes.push(("wal_status", format!("the WAL that slot {slot} needs is {}", wal_status.name())));
        }
        changes
    }
}
