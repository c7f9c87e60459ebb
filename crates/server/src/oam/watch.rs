//! Telling of states as they change.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use laredo_core::TableName;
use laredo_proto::oam::watch_status_response::Event;
use laredo_proto::oam::{
    PipelineState, PipelineStateChangeEvent, ServiceState, ServiceStateChange, WatchStatusRequest, WatchStatusResponse,
};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::Status;

use super::status;
use crate::refusal;
use crate::shared::Shared;
use crate::table::Served;
use crate::view::timestamp;

/// How often states are looked at: they change by copies and failures, and a person watches.
const INTERVAL: Duration = Duration::from_millis(200);

struct Watch {
    shared: Arc<Shared>,
    service: ServiceState,
    pipelines: Vec<(Arc<Served>, PipelineState)>,
    ticks: Interval,
}

/// The states as they are, then each change; it ends when the server stops.
pub(super) fn watch(
    shared: Arc<Shared>,
    request: &WatchStatusRequest,
) -> Result<BoxStream<'static, Result<WatchStatusResponse, Status>>, Status> {
    let pipelines = chosen(&shared, request)?.into_iter().map(|table| (table, PipelineState::Unspecified)).collect();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watch = Watch { shared, service: ServiceState::Unspecified, pipelines, ticks };
    let rounds = stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        tokio::select! {
            biased;
            () = watch.shared.stop.cancelled() => return Some((vec![Err(refusal::stopping())], None)),
            _ = watch.ticks.tick() => {}
        }
        let changes = watch.changes().into_iter().map(Ok).collect();
        Some((changes, Some(watch)))
    });
    Ok(rounds.flat_map(stream::iter).boxed())
}

/// All tables, or those that are named either way.
fn chosen(shared: &Shared, request: &WatchStatusRequest) -> Result<Vec<Arc<Served>>, Status> {
    if request.tables.is_empty() && request.pipeline_ids.is_empty() {
        return Ok(shared.tables.clone());
    }
    let mut chosen = Vec::new();
    for name in &request.tables {
        let name: TableName = name.parse().map_err(|error| refusal::malformed("tables", error))?;
        chosen.push(shared.table(&name.schema, &name.table)?.clone());
    }
    for id in &request.pipeline_ids {
        chosen.push(super::pipeline(shared, id)?.clone());
    }
    Ok(chosen)
}

impl Watch {
    fn changes(&mut self) -> Vec<WatchStatusResponse> {
        let mut events = Vec::new();
        let service = status::service_state(&self.shared);
        if service != self.service {
            let old_state = std::mem::replace(&mut self.service, service).into();
            events.push(Event::ServiceStateChange(ServiceStateChange { old_state, new_state: service.into() }));
        }
        for (table, known) in &mut self.pipelines {
            let state = status::state_of(&self.shared, table);
            if state != *known {
                let old_state = std::mem::replace(known, state).into();
                events.push(Event::PipelineStateChange(PipelineStateChangeEvent {
                    pipeline_id: status::pipeline_id(table),
                    old_state,
                    new_state: state.into(),
                }));
            }
        }
        let at = timestamp(self.shared.clock.as_ref()());
        events.into_iter().map(|event| WatchStatusResponse { timestamp: Some(at), event: Some(event) }).collect()
    }
}
