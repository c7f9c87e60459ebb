//! Ours against a reference, side by side on one machine: each pair runs ours and then the reference, on the same rows.
//!
//! Whatever makes load or takes it is a process of its own: this program again, told to play a [`Part`].

use std::time::Duration;

mod archive;
mod baseline;
mod child;
mod fanout;
mod ingest;
mod latency;
mod parts;
mod report;
mod restart;
mod stage;

pub use parts::{Part, play};

/// How long any one step may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(600);

/// Which benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bench {
    /// The first copy of a table, until a client can be served.
    Baseline,
    /// Changes that wait in the WAL, until a client shows the last one.
    Ingest,
    /// One journal to many clients at once.
    Fanout,
    /// From a commit until a client shows it.
    Latency,
    /// From the end of a server by `kill -9` until it is ready again.
    Restart,
    /// A base of an archive.
    Archive,
}

/// How much is measured; what is not given is the benchmark's own size.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rows to copy.
    pub rows: Option<u64>,
    /// Changes to make.
    pub changes: Option<u64>,
    /// How often ours and the reference take turns.
    pub pairs: usize,
}

/// How often ours and the reference take turns, unless asked otherwise.
pub const PAIRS: usize = 5;

/// Runs a benchmark and prints its one line of results. What happens meanwhile is told on the standard error.
///
/// # Errors
/// When a part could not be started or failed, or did something else than what is measured.
pub async fn run(bench: Bench, options: Options) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        progress("this is not a release build: its figures mean nothing");
    }
    let report = match bench {
        Bench::Baseline => baseline::run(options).await,
        Bench::Ingest => ingest::run(options).await,
        Bench::Fanout => fanout::run(options).await,
        Bench::Latency => latency::run(options).await,
        Bench::Restart => restart::run(options).await,
        Bench::Archive => archive::run(options).await,
    }?;
    println!("{}", report.line()?);
    Ok(())
}

fn progress(what: impl std::fmt::Display) {
    eprintln!("==> {what}");
}
