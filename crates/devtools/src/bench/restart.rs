//! The time from `kill -9` of a server with a journal on disk until it is ready again. The
//! reference is `psql`'s `\copy` of the same table to `/dev/null`.

use std::time::Instant;

use anyhow::bail;

use super::report::{BenchmarkPair, BenchmarkReport, BetterDirection};
use super::{BenchmarkSize, baseline, fixture, print_progress};

/// The number of rows of the full size.
const ROWS: u64 = 1_000_000;

pub(super) async fn run(options: BenchmarkSize) -> anyhow::Result<BenchmarkReport> {
    let rows = options.rows.unwrap_or(ROWS);
    let cluster = fixture::cluster()?;
    print_progress(format!("filling a table with {rows} rows"));
    fixture::create_table(&cluster)?;
    fixture::fill(&cluster, rows)?;
    let folder = tempfile::tempdir()?;
    let path = serde_json::Value::from(folder.path().to_string_lossy());
    let journal = format!("journal {{ store = local, store_config {{ path = {path} }} }}");
    let mut server = fixture::BenchmarkServer::start(&cluster, Some("bench_restart"), &journal)?;
    server.ready().await?;
    baseline::reference(&cluster).await?;
    let mut pairs = Vec::new();
    for number in 1..=options.pairs {
        let began = Instant::now();
        server.restart().await?;
        server.ready().await?;
        let seconds = began.elapsed().as_secs_f64();
        let (copies, known) = (server.metric("laredo_copies_total").await?, server.metric("laredo_rows").await?);
        if copies != 0.0 || known != rows as f64 {
            bail!("the restarted server has made {copies} copies, and knows {known} rows of {rows}");
        }
        let usage = server.usage()?;
        let reference = baseline::reference(&cluster).await?;
        print_progress(format!("pair {number}: ours {seconds:.2} s, reference {reference:.2} s"));
        pairs.push(BenchmarkPair { ours: seconds, reference, cpu_s: usage.cpu_s, peak_bytes: usage.peak_bytes });
    }
    server.stop(&cluster).await?;
    let more = [("rows".to_owned(), rows.into())].into_iter().collect();
    Ok(BenchmarkReport { bench: "restart", unit: "s", better: BetterDirection::Less, pairs, scaled: rows < ROWS, more })
}
