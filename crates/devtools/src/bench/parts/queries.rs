//! The part that looks rows up in the Query service.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use laredo_client::TableName;
use laredo_proto::oam::GetRowRequest;
use laredo_proto::oam::laredo_query_service_client::LaredoQueryServiceClient;
use prost_types::value::Kind;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tonic::transport::{Channel, Endpoint};

use super::{RequestTimesReport, write_report};
use crate::bench::fixture::TABLE;
use crate::percentile::percentile;

/// Looks up random rows over many connections, each of which has one request at a time.
pub(super) async fn get_rows(server: String, rows: u64, connections: u32, requests: u64) -> anyhow::Result<()> {
    let endpoint = Endpoint::from_shared(server)?;
    let channels = try_join_all((0..connections).map(|_| endpoint.connect())).await?;
    let each = requests / u64::from(connections);
    let began = Instant::now();
    let sessions = channels.into_iter().zip(0..).map(|(channel, seed)| tokio::spawn(ask(channel, seed, rows, each)));
    let mut times = Vec::new();
    for session in sessions.collect::<Vec<_>>() {
        times.extend(session.await?.context("looking a row up")?);
    }
    let took = began.elapsed();
    let mut times_ms: Vec<f64> = times.iter().map(|time: &Duration| time.as_secs_f64() * 1000.0).collect();
    write_report(&RequestTimesReport {
        per_second: times.len() as f64 / took.as_secs_f64(),
        p50_ms: percentile(&mut times_ms, 0.5),
        p99_ms: percentile(&mut times_ms, 0.99),
    })
}

/// Looks rows up one after the other, and checks each answer. Returns the time that each took.
async fn ask(channel: Channel, seed: u64, rows: u64, requests: u64) -> anyhow::Result<Vec<Duration>> {
    let table: TableName = TABLE.parse()?;
    let mut client = LaredoQueryServiceClient::new(channel);
    let mut random = StdRng::seed_from_u64(seed);
    let mut times = Vec::new();
    for _ in 0..requests {
        let primary_key = random.random_range(1..=rows.cast_signed());
        let (schema, table) = (table.schema.clone(), table.table.clone());
        let request = GetRowRequest { schema, table, primary_key, ..GetRowRequest::default() };
        let began = Instant::now();
        let row = client.get_row(request).await?.into_inner().row.unwrap_or_default();
        times.push(began.elapsed());
        let id = row.fields.get("id").and_then(|id| id.kind.as_ref());
        ensure!(
            row.fields.len() == 8 && id == Some(&Kind::NumberValue(primary_key as f64)),
            "the answer for row {primary_key} is {row:?}"
        );
    }
    Ok(times)
}
