//! Benchmarks of laredo against a reference, side by side on one machine. Each pair runs laredo and
//! then the reference, on the same rows.
//!
//! Everything that makes or receives load is a separate process: this program again, started as a
//! [`BenchmarkPart`].

use std::time::Duration;

mod archive;
mod baseline;
mod child;
mod fanout;
mod fixture;
mod ingest;
mod latency;
mod parts;
mod query;
mod report;
mod restart;

pub use parts::{BenchmarkPart, run_part};

/// The longest time for any step, after which the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(600);

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Benchmark {
    /// The first copy of a table, until a client can be served.
    Baseline,
    /// Changes that wait in the WAL, until a client shows the last one.
    Ingest,
    /// A journal sent to many clients at once.
    Fanout,
    /// The time from a commit until a client shows it.
    Latency,
    /// The time from a server's end by `kill -9` until it is ready again.
    Restart,
    /// A snapshot of an archive.
    Archive,
    /// Rows looked up by key.
    Query,
}

/// The size of a benchmark. Values that are missing have the benchmark's own default.
#[derive(Clone, Copy, Debug)]
pub struct BenchmarkSize {
    /// The number of rows to copy.
    pub rows: Option<u64>,
    /// The number of changes to make.
    pub changes: Option<u64>,
    /// The number of pairs: runs of laredo and then of the reference.
    pub pairs: usize,
}

/// The default number of pairs.
pub const PAIRS: usize = 5;

/// Runs a benchmark, and prints its result as one line. Progress is reported on standard error.
///
/// # Errors
/// When a process could not be started or failed, or did something other than what is measured.
pub async fn run(bench: Benchmark, options: BenchmarkSize) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        print_progress("this is not a release build, so its figures cannot be compared");
    }
    let report = match bench {
        Benchmark::Baseline => baseline::run(options).await,
        Benchmark::Ingest => ingest::run(options).await,
        Benchmark::Fanout => fanout::run(options).await,
        Benchmark::Latency => latency::run(options).await,
        Benchmark::Restart => restart::run(options).await,
        Benchmark::Archive => archive::run(options).await,
        Benchmark::Query => query::run(options).await,
    }?;
    println!("{}", report.line()?);
    Ok(())
}

fn print_progress(what: impl std::fmt::Display) {
    eprintln!("==> {what}");
}
