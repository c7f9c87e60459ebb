//! `./dev bench NAME`: benchmarks of laredo against a reference, side by side.

use clap::{Parser, Subcommand};
use laredo_devtools::bench;

#[derive(Parser)]
#[command(about = "Ours against a reference, side by side; ends with one line of JSON")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// The number of rows of the table, if not the full size (baseline, restart, archive)
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
enum Bench {
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
    /// A process of the benchmark (started by the benchmark itself)
    #[command(hide = true)]
    Part {
        #[command(subcommand)]
        part: bench::Part,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { bench, rows, changes, pairs } = Arguments::parse();
    let bench = match bench {
        Bench::Baseline => bench::Bench::Baseline,
        Bench::Ingest => bench::Bench::Ingest,
        Bench::Fanout => bench::Bench::Fanout,
        Bench::Latency => bench::Bench::Latency,
        Bench::Restart => bench::Bench::Restart,
        Bench::Archive => bench::Bench::Archive,
        Bench::Part { part } => return bench::play(part).await,
    };
    bench::run(bench, bench::Options { rows, changes, pairs: pairs.max(1) }).await
}
