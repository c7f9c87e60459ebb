//! The time for the first copy of a table until a client can be served. The reference is `psql`'s
//! `\copy` of the same table to `/dev/null`.

use std::process::Stdio;
use std::time::Instant;

use anyhow::bail;
use laredo_testkit::Cluster;
use tokio::process::Command;

use super::child::BenchmarkChild;
use super::parts::HandshakeReport;
use super::report::{BenchmarkPair, BenchmarkReport, BetterDirection};
use super::{BenchmarkSize, PATIENCE, fixture, print_progress};

/// The number of rows of the full size.
const ROWS: u64 = 5_000_000;

pub(super) async fn run(options: BenchmarkSize) -> anyhow::Result<BenchmarkReport> {
    let rows = options.rows.unwrap_or(ROWS);
    let cluster = fixture::cluster()?;
    print_progress(format!("filling a table with {rows} rows"));
    fixture::create_table(&cluster)?;
    fixture::fill(&cluster, rows)?;
    let warm_s = reference(&cluster).await?;
    print_progress(format!("the table is in memory ({warm_s:.2} s)"));
    let mut pairs = Vec::new();
    for number in 1..=options.pairs {
        let (seconds, usage) = ours(&cluster).await?;
        let reference_s = reference(&cluster).await?;
        print_progress(format!("pair {number}: ours {seconds:.2} s, reference {reference_s:.2} s"));
        pairs.push(BenchmarkPair {
            ours: rows as f64 / seconds,
            reference: rows as f64 / reference_s,
            cpu_s: usage.cpu_s,
            peak_bytes: usage.peak_bytes,
        });
    }
    let more = [("rows".to_owned(), rows.into())].into_iter().collect();
    Ok(BenchmarkReport {
        bench: "baseline",
        unit: "rows/s",
        better: BetterDirection::More,
        pairs,
        scaled: rows < ROWS,
        more,
    })
}

/// Measures from the start of the server's process until a client has its handshake.
async fn ours(cluster: &Cluster) -> anyhow::Result<(f64, fixture::ServerResourceUsage)> {
    let began = Instant::now();
    let server = fixture::BenchmarkServer::start(cluster, None, "")?;
    let mut client = BenchmarkChild::start("handshake", &["--server", &server.address()])?;
    let answered: HandshakeReport = server.run_while_alive(client.next_report(PATIENCE)).await?;
    let seconds = began.elapsed().as_secs_f64();
    if !answered.has_snapshot {
        bail!("the client did not receive the table");
    }
    let usage = server.usage()?;
    server.stop(cluster).await?;
    Ok((seconds, usage))
}

/// Returns the seconds that `psql` takes.
pub(super) async fn reference(cluster: &Cluster) -> anyhow::Result<f64> {
    let mut command = Command::new(cluster.bin("psql"));
    command.args(["-X", "-q", "-c", r"\copy bench to /dev/null binary", "-d", &cluster.url("postgres")]);
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).status().await?;
    if !status.success() {
        bail!("psql failed: {status}");
    }
    Ok(began.elapsed().as_secs_f64())
}
