//! The time from a commit until a client shows it, at a steady rate. The reference is LISTEN and
//! NOTIFY for the same rows.

use std::collections::HashMap;

use anyhow::{Context, bail};
use laredo_testkit::Cluster;
use serde_json::{Map, Value, json};

use super::child::BenchmarkChild;
use super::parts::{RowTimesReport, StartReport};
use super::report::{BenchmarkPair, BenchmarkReport, BetterDirection, median, rounded};
use super::{BenchmarkSize, PATIENCE, fixture, print_progress};
use crate::percentile::percentile;

/// The number of transactions of the full size: 10 s.
const CHANGES: u64 = 10_000;
/// The number of transactions per second.
const RATE: u32 = 1000;
/// The share of the transactions that warm up the processes and are not counted.
const WARM_UP: f64 = 0.05;
/// The publication of the slot that is read without a server.
const SLOT_PUBLICATION: &str = "bench_slot";

pub(super) async fn run(options: BenchmarkSize) -> anyhow::Result<BenchmarkReport> {
    let changes = options.changes.unwrap_or(CHANGES);
    let cluster = fixture::cluster()?;
    let (mut pairs, mut medians, mut slots) = (Vec::new(), [Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for number in 1..=options.pairs {
        let (ours, usage) = ours(&cluster, changes).await?;
        let reference = reference(&cluster, changes).await?;
        let slot = slot(&cluster, changes).await?;
        print_progress(format!("pair {number}: ours {ours}, reference {reference}, a slot alone {slot}"));
        pairs.push(BenchmarkPair {
            ours: ours.p99_ms,
            reference: reference.p99_ms,
            cpu_s: usage.cpu_s,
            peak_bytes: usage.peak_bytes,
        });
        medians[0].push(ours.p50_ms);
        medians[1].push(reference.p50_ms);
        slots[0].push(slot.p50_ms);
        slots[1].push(slot.p99_ms);
    }
    let mut more = Map::new();
    more.insert("transactions".to_owned(), changes.into());
    more.insert("rate_per_s".to_owned(), RATE.into());
    let [ours, reference] = medians.map(|values| Value::from(rounded(median(values))));
    more.insert("p50".to_owned(), json!({ "ours": ours, "reference": reference }));
    let [p50, p99] = slots.map(|values| Value::from(rounded(median(values))));
    more.insert("slot".to_owned(), json!({ "p50": p50, "p99": p99 }));
    Ok(BenchmarkReport {
        bench: "latency",
        unit: "ms (p99)",
        better: BetterDirection::Less,
        pairs,
        scaled: changes < CHANGES,
        more,
    })
}

struct LagPercentiles {
    p50_ms: f64,
    p99_ms: f64,
}

impl std::fmt::Display for LagPercentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.3} ms, p99 {:.3} ms", self.p50_ms, self.p99_ms)
    }
}

async fn ours(cluster: &Cluster, changes: u64) -> anyhow::Result<(LagPercentiles, fixture::ServerResourceUsage)> {
    fixture::create_table(cluster)?;
    let server = fixture::BenchmarkServer::start(cluster, None, "")?;
    server.ready().await?;
    let watcher = BenchmarkChild::start("watch", &["--server", &server.address()])?;
    let before = server.usage()?;
    let lag = server.run_while_alive(measure(cluster, changes, watcher, &[])).await?;
    let mut usage = server.usage()?;
    usage.cpu_s -= before.cpu_s;
    server.stop(cluster).await?;
    Ok((lag, usage))
}

async fn reference(cluster: &Cluster, changes: u64) -> anyhow::Result<LagPercentiles> {
    fixture::create_table(cluster)?;
    let listener = BenchmarkChild::start("listen", &["--database", &cluster.url("postgres")])?;
    measure(cluster, changes, listener, &["--notify"]).await
}

/// Measures PostgreSQL's own share of the latency: the time until a transaction comes out of a slot
/// whose reader does nothing with it.
async fn slot(cluster: &Cluster, changes: u64) -> anyhow::Result<LagPercentiles> {
    fixture::create_table(cluster)?;
    cluster.psql(&format!("CREATE PUBLICATION {SLOT_PUBLICATION} FOR TABLE bench"))?;
    let (url, publication) = (cluster.url("postgres"), SLOT_PUBLICATION);
    let reader = BenchmarkChild::start("read-slot", &["--database", &url, "--publication", publication])?;
    let lag = measure(cluster, changes, reader, &[]).await?;
    cluster.psql(&format!("DROP PUBLICATION {SLOT_PUBLICATION}"))?;
    Ok(lag)
}

/// Measures the time from the commits of one process until another process sees them.
async fn measure(
    cluster: &Cluster,
    changes: u64,
    mut seer: BenchmarkChild,
    more: &[&str],
) -> anyhow::Result<LagPercentiles> {
    let StartReport {} = seer.next_report(PATIENCE).await?;
    let (url, count, rate) = (cluster.url("postgres"), changes.to_string(), RATE.to_string());
    let mut arguments = vec!["--database", &url, "--count", &count, "--rate", &rate];
    arguments.extend(more);
    let committed: RowTimesReport = BenchmarkChild::start("commit", &arguments)?.next_report(PATIENCE).await?;
    seer.send_order(&format!("tell {changes}")).await?;
    let seen: RowTimesReport = seer.next_report(PATIENCE).await?;
    lag(&committed, &seen, changes)
}

fn lag(committed: &RowTimesReport, seen: &RowTimesReport, changes: u64) -> anyhow::Result<LagPercentiles> {
    let seen: HashMap<i64, i64> = seen.0.iter().copied().collect();
    if committed.0.len() as u64 != changes {
        bail!("{} transactions were committed, not {changes}", committed.0.len());
    }
    let mut lags = Vec::new();
    for (id, at) in &committed.0 {
        let seen = seen.get(id).with_context(|| format!("row {id} was never seen"))?;
        if *id as f64 > changes as f64 * WARM_UP {
            lags.push((seen - at) as f64 / 1000.0);
        }
    }
    Ok(LagPercentiles { p50_ms: percentile(&mut lags, 0.5), p99_ms: percentile(&mut lags, 0.99) })
}
