//! Verification of a table on request.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use laredo_core::{Lsn, Schema, Tuple, TupleRef};
use laredo_engine::{RowDifference, VerifyError, VerifyReport, VerifyTerms};
use laredo_proto::oam::verify_table_response::Event;
use laredo_proto::oam::{
    ClientComparison, ClientComparisons, ClientOutcome, VerifyDifference, VerifyProgress, VerifyResult,
    VerifyTableRequest, VerifyTableResponse,
};
use laredo_values::{Value, project_cell};
use prost_types::Struct;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::Status;

use super::status::count;
use crate::refusal;
use crate::roster::{ComparedClient, ComparisonOutcome};
use crate::server_state::ServerState;
use crate::table::ServedTable;
use crate::view;

/// The time between two progress messages.
const INTERVAL: Duration = Duration::from_millis(250);

type ComparisonFuture = Pin<Box<dyn Future<Output = Vec<ComparedClient>> + Send>>;
type VerificationFuture = Pin<Box<dyn Future<Output = Result<Arc<VerifyReport>, VerifyError>> + Send>>;

struct RequestedVerification {
    table: Arc<ServedTable>,
    shared: Arc<ServerState>,
    /// The comparison with clients, until it has a result. The pass over the database begins after
    /// it, because the pass moves positions, and so makes clients compare their rows by themselves.
    compared: Option<ComparisonFuture>,
    verified: VerificationFuture,
    ticks: Interval,
    values: bool,
}

/// Verifies a table. Dropping the stream ends the pass.
pub(super) fn verify(
    shared: &Arc<ServerState>,
    request: &VerifyTableRequest,
) -> Result<BoxStream<'static, Result<VerifyTableResponse, Status>>, Status> {
    let table = shared.table(&request.schema, &request.table)?;
    let bytes_per_second = u64::try_from(request.bytes_per_second)
        .map_err(|_| refusal::malformed("bytes_per_second", "the rate is below zero; 0 is for no limit"))?;
    let terms = VerifyTerms { bytes_per_second: Some(bytes_per_second).filter(|rate| *rate > 0), heals: request.heal };
    tracing::info!(
        event = "verification_requested", source = table.source_id(), table = %table.name(), ?terms,
        "verifying the table on request"
    );
    let handle = table.handle().clone();
    let verified: VerificationFuture = Box::pin(async move { handle.verify(terms).await });
    let (roster, wait) = (table.roster().clone(), shared.waits.answer);
    let compared = request.clients.then(|| -> ComparisonFuture { Box::pin(async move { roster.compare(wait).await }) });
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let running =
        RequestedVerification { table, shared: shared.clone(), compared, verified, ticks, values: request.values };
    let events = stream::unfold(Some(running), |running| async {
        let mut running = running?;
        match running.next().await {
            Ok(event @ (Event::Progress(_) | Event::Clients(_))) => {
                Some((Ok(VerifyTableResponse { event: Some(event) }), Some(running)))
            }
            Ok(event @ Event::Result(_)) => Some((Ok(VerifyTableResponse { event: Some(event) }), None)),
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(events.boxed())
}

impl RequestedVerification {
    async fn next(&mut self) -> Result<Event, Status> {
        let ended = self.shared.streams_ended();
        tokio::select! {
            biased;
            () = ended => Err(refusal::stopping()),
            clients = compared(&mut self.compared), if self.compared.is_some() => {
                self.compared = None;
                Ok(Event::Clients(self.comparisons(clients)))
            }
            verified = &mut self.verified, if self.compared.is_none() => match verified {
                Ok(report) => Ok(Event::Result(result(&report, self.values))),
                Err(error) => Err(refusal::unverified(self.table.name(), &error)),
            },
            _ = self.ticks.tick() => Ok(Event::Progress(self.progress())),
        }
    }

    fn comparisons(&self, clients: Vec<ComparedClient>) -> ClientComparisons {
        ClientComparisons { clients: clients.into_iter().map(|client| comparison(&self.shared, client)).collect() }
    }

    fn progress(&self) -> VerifyProgress {
        if self.compared.is_some() {
            return VerifyProgress { compares_clients: true, ..VerifyProgress::default() };
        }
        match self.table.handle().status().verify.running {
            Some(progress) => VerifyProgress {
                has_begun: true,
                rows: count(progress.rows),
                bytes: count(progress.bytes),
                blocks: count(progress.blocks),
                blocks_total: count(progress.blocks_total),
                compares_clients: false,
            },
            None => VerifyProgress::default(),
        }
    }
}

async fn compared(compared: &mut Option<ComparisonFuture>) -> Vec<ComparedClient> {
    match compared {
        Some(compared) => compared.await,
        None => std::future::pending().await,
    }
}

fn comparison(shared: &ServerState, client: ComparedClient) -> ClientComparison {
    let ComparedClient { client_id, since, outcome } = client;
    let connected_at = Some(view::timestamp(shared.time_of(since)));
    let at = |position: Lsn, rows: Option<u64>| ClientComparison {
        position: position.to_string(),
        rows: rows.map(count),
        ..ClientComparison::default()
    };
    let because = |reason: &str| ClientComparison { reason: reason.to_owned(), ..ClientComparison::default() };
    let (outcome, comparison) = match outcome {
        ComparisonOutcome::Equal { position, rows } => (ClientOutcome::Equal, at(position, rows)),
        ComparisonOutcome::Differs { position, rows, ours, theirs } => {
            let differs = ClientComparison {
                client_checksum: theirs.to_string(),
                server_checksum: ours.to_string(),
                ..at(position, rows)
            };
            (ClientOutcome::Differs, differs)
        }
        ComparisonOutcome::NotComparable(reason) => (ClientOutcome::NotComparable, because(reason)),
        ComparisonOutcome::NoAnswer(reason) => (ClientOutcome::NoAnswer, because(reason)),
        ComparisonOutcome::Left(reason) => (ClientOutcome::Left, because(reason)),
    };
    ClientComparison { client_id, connected_at, outcome: outcome.into(), ..comparison }
}

fn result(report: &VerifyReport, values: bool) -> VerifyResult {
    let difference = |difference: &RowDifference| {
        let row =
            |row: &Option<Tuple>| row.as_ref().filter(|_| values).map(|row| row_struct(&report.schema, row.as_ref()));
        VerifyDifference {
            kind: difference.kind().to_owned(),
            key: Some(key_struct(&report.schema, difference.key.as_ref())),
            columns: difference.columns.clone(),
            held: row(&difference.held),
            stored: row(&difference.stored),
        }
    };
    VerifyResult {
        rows: count(report.rows),
        bytes: count(report.bytes),
        position: report.position.to_string(),
        differing: count(report.differing),
        is_cut: report.is_cut,
        unverified: count(report.unverified),
        differences: report.differences.iter().map(difference).collect(),
        heals: report.heals,
    }
}

/// Returns a key's cells by their column names.
fn key_struct(schema: &Schema, key: TupleRef<'_>) -> Struct {
    cells_struct(schema, schema.key().columns().iter().copied().zip(key.cells()))
}

fn row_struct(schema: &Schema, row: TupleRef<'_>) -> Struct {
    cells_struct(schema, row.cells().enumerate().take(schema.columns().len()))
}

/// Returns cells by their column names. A cell that cannot be projected has its error as its value,
/// because damage is reported here.
fn cells_struct<'a>(schema: &Schema, cells: impl Iterator<Item = (usize, laredo_core::Cell<'a>)>) -> Struct {
    let field = |(place, cell)| {
        let column = schema.columns().get(place)?;
        let value = project_cell(schema, place, cell).unwrap_or_else(|error| Value::String(error.to_string()));
        Some((column.name.clone(), view::to_wire(value)))
    };
    Struct { fields: cells.filter_map(field).collect() }
}
