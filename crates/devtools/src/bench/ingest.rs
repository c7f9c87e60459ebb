//! The time for changes that wait in the WAL, until a client's view shows the last one. The
//! reference is `pg_recvlogical` to `/dev/null`.

use std::process::Stdio;
use std::time::Instant;

use anyhow::bail;
use laredo_testkit::Cluster;
use tokio::process::Command;

use super::child::BenchmarkChild;
use super::parts::{CatchUpReport, StartReport};
use super::report::{BenchmarkPair, BenchmarkReport, BetterDirection};
use super::{BenchmarkSize, PATIENCE, fixture, print_progress};

/// The number of changes of the full size.
const CHANGES: u64 = 2_000_000;
/// The slots of the reference and of laredo. Laredo's is permanent, because the frozen server may
/// lose its connection on a slow machine.
const SLOTS: [&str; 2] = ["bench_reference", "bench_ours"];

pub(super) async fn run(options: BenchmarkSize) -> anyhow::Result<BenchmarkReport> {
    let changes = fixture::whole_thousands(options.changes.unwrap_or(CHANGES))?;
    let cluster = fixture::cluster()?;
    let mut pairs = Vec::new();
    for number in 1..=options.pairs {
        let pair = pair(&cluster, number, changes).await?;
        for slot in SLOTS {
            cluster.psql(&format!("SELECT pg_drop_replication_slot('{slot}')"))?;
        }
        pairs.push(pair);
    }
    let more = [("changes".to_owned(), changes.into())].into_iter().collect();
    Ok(BenchmarkReport {
        bench: "ingest",
        unit: "changes/s",
        better: BetterDirection::More,
        pairs,
        scaled: changes < CHANGES,
        more,
    })
}

async fn pair(cluster: &Cluster, number: usize, changes: u64) -> anyhow::Result<BenchmarkPair> {
    fixture::create_churn(cluster)?;
    cluster.psql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", SLOTS[0]))?;
    // The server copies the table at every start. So it starts while the table is almost empty, and
    // the changes are made while it is frozen.
    let server = fixture::BenchmarkServer::start(
        cluster,
        Some(SLOTS[1]),
        "journal { max_entries = 100000000, max_bytes = 16GiB }",
    )?;
    server.ready().await?;
    server.idle().await?;
    server.process().freeze();
    print_progress(format!("pair {number}: making {changes} changes"));
    let churned = fixture::churn(cluster, changes)?;
    cluster.psql("CHECKPOINT")?;
    let last_id = churned.last_id.to_string();
    let mut client = BenchmarkChild::start("follow", &["--server", &server.address(), "--last-id", &last_id])?;
    let StartReport {} = client.next_report(PATIENCE).await?;
    let before = server.usage()?;
    let began = Instant::now();
    server.process().thaw();
    let reached: CatchUpReport = server.run_while_alive(client.next_report(PATIENCE)).await?;
    let seconds = began.elapsed().as_secs_f64();
    let usage = server.usage()?;
    if reached.rows != churned.rows {
        bail!("the client has {} rows, the database {}", reached.rows, churned.rows);
    }
    server.stop(cluster).await?;
    let reference_s = reference(cluster, &churned.end).await?;
    print_progress(format!("pair {number}: ours {seconds:.2} s, reference {reference_s:.2} s"));
    Ok(BenchmarkPair {
        ours: changes as f64 / seconds,
        reference: changes as f64 / reference_s,
        cpu_s: usage.cpu_s - before.cpu_s,
        peak_bytes: usage.peak_bytes,
    })
}

async fn reference(cluster: &Cluster, end: &str) -> anyhow::Result<f64> {
    let mut command = Command::new(cluster.bin("pg_recvlogical"));
    command.args(["--start", "--slot", SLOTS[0], "--file", "/dev/null", "--fsync-interval", "0", "--no-loop"]);
    let publication = format!("publication_names={}", fixture::PUBLICATION);
    command.args(["--endpos", end, "-o", "proto_version=1", "-o", "binary=true", "-o", &publication]);
    command.args(["-d", &cluster.url("postgres")]);
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).status().await?;
    if !status.success() {
        bail!("pg_recvlogical failed: {status}");
    }
    Ok(began.elapsed().as_secs_f64())
}
