//! `./dev bench NAME`: benchmarks of laredo against a reference, side by side.

use clap::{Parser, Subcommand};
use laredo_devtools::bench;

#[derive(Parser)]
#[command(about = "Benchmarks of laredo against a reference, side by side; the last line is JSON")]
struct BenchArguments {
    #[command(subcommand)]
    bench: BenchCommand,
    /// The number of rows of the table, if not the full size (baseline, restart, archive,
    /// query)
    #[arg(long, global = true)]
    rows: Option<u64>,
    /// The number of changes to make, if not the full size (ingest, fanout, latency); whole
    /// thousands
    #[arg(long, global = true)]
    changes: Option<u64>,
    /// The number of pairs: runs of laredo and then of the reference
    #[arg(long, global = true, default_value_t = bench::PAIRS)]
    pairs: usize,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// The first copy of a table until a client can be served, against psql's \copy to /dev/null
    Baseline,
    /// Changes that wait in the WAL until a client shows the last one, against pg_recvlogical to
    /// /dev/null
    Ingest,
    /// A journal sent to 1, 10 and 100 clients at full rate, against raw sockets with the same
    /// bytes
    Fanout,
    /// The time from a commit until a client shows it, against LISTEN and NOTIFY
    Latency,
    /// The time from kill -9 of a server until it is ready again, against psql's \copy to /dev/null
    Restart,
    /// A snapshot of an archive until the manifest has it, against cat of the same bytes and an
    /// fsync
    Archive,
    /// Rows looked up by key over 1 and 64 connections, against HGETALL of Redis and its own load
    /// generator
    Query,
    /// A process of the benchmark (started by the benchmark itself)
    #[command(hide = true)]
    Part {
        #[command(subcommand)]
        part: bench::BenchmarkPart,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let BenchArguments { bench, rows, changes, pairs } = BenchArguments::parse();
    let bench = match bench {
        BenchCommand::Baseline => bench::Benchmark::Baseline,
        BenchCommand::Ingest => bench::Benchmark::Ingest,
        BenchCommand::Fanout => bench::Benchmark::Fanout,
        BenchCommand::Latency => bench::Benchmark::Latency,
        BenchCommand::Restart => bench::Benchmark::Restart,
        BenchCommand::Archive => bench::Benchmark::Archive,
        BenchCommand::Query => bench::Benchmark::Query,
        BenchCommand::Part { part } => return bench::run_part(part).await,
    };
    bench::run(bench, bench::BenchmarkSize { rows, changes, pairs: pairs.max(1) }).await
}
