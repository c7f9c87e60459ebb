//! A base of a table in which nothing happens, from the order until the manifest has it, against `cat` of the same bytes to another file
//! of the same disk and an fsync.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, bail};
use laredo_archive::Format;
use serde_json::{Value, json};
use tokio::process::Command;

use super::report::{Better, Pair, Report, rounded};
use super::{Options, PATIENCE, progress, stage};
use crate::snapshotter::{Base, Snapshotter};

/// Rows of the full size.
const ROWS: u64 = 2_000_000;
/// Every base is asked for; diffs are not in the way, for nothing changes.
const KEYS: &str = "formats { snapshot = [ jsonl ], diff = [ jsonl ] }";
/// The memory that the snapshotter may have: so many times the table's cells, and this beside.
const MEMORY_TIMES: f64 = 1.5;
const MEMORY_BESIDE: f64 = 64.0 * 1024.0 * 1024.0;

pub(super) async fn run(options: Options) -> anyhow::Result<Report> {
    let rows = options.rows.unwrap_or(ROWS);
    let cluster = stage::cluster()?;
    progress(format!("filling a table with {rows} rows"));
    stage::create_table(&cluster)?;
    stage::fill(&cluster, rows)?;
    let server = stage::Server::start(&cluster, None, "")?;
    server.ready().await?;
    let row_bytes = server.metric("laredo_row_bytes").await?;
    let folder = tempfile::tempdir()?;
    let snapshotter = Snapshotter::start(&server.address(), stage::TABLE, folder.path(), KEYS)?;
    server.lasting(snapshotter.ready(PATIENCE)).await?;
    server.idle().await?;
    let (mut pairs, mut bytes) = (Vec::new(), 0);
    for number in 1..=options.pairs {
        let (seconds, cpu_s, base) = ours(&snapshotter, rows).await?;
        bytes = base.bytes;
        let object = object(&snapshotter, &base).await?;
        let reference_s = reference(&object, &folder.path().join("reference")).await?;
        // As the reference's: else only ours would go to memory that was never used before, which a virtual machine has to ask for.
        std::fs::remove_file(&object)?;
        progress(format!("pair {number}: ours {seconds:.2} s, reference {reference_s:.2} s"));
        let mb = bytes as f64 / 1e6;
        let peak_bytes = snapshotter.process().peak_rss_bytes()?;
        pairs.push(Pair { ours: mb / seconds, reference: mb / reference_s, cpu_s, peak_bytes });
    }
    let peak_bytes = snapshotter.process().peak_rss_bytes()?;
    snapshotter.stop().await?;
    server.stop(&cluster).await?;
    let more = [
        ("rows".to_owned(), rows.into()),
        ("bytes".to_owned(), bytes.into()),
        ("memory".to_owned(), memory(peak_bytes, row_bytes)),
    ];
    let more = more.into_iter().collect();
    Ok(Report { bench: "archive", unit: "MB/s", better: Better::More, pairs, scaled: rows < ROWS, more })
}

/// The most memory that the snapshotter ever had, against its bound; as everywhere, a ratio of 1 and more is good.
fn memory(peak_bytes: u64, row_bytes: f64) -> Value {
    let (peak, bound) = (peak_bytes as f64, MEMORY_TIMES * row_bytes + MEMORY_BESIDE);
    json!({ "rows_mb": rounded(row_bytes / 1e6), "bound_mb": rounded(bound / 1e6), "ratio": rounded(bound / peak) })
}

/// Has a base written: how long that took, and the processor time of it.
async fn ours(snapshotter: &Snapshotter, rows: u64) -> anyhow::Result<(f64, f64, Base)> {
    let (before, began) = (snapshotter.process().cpu_time()?, Instant::now());
    let base = snapshotter.snapshot().await?;
    let seconds = began.elapsed().as_secs_f64();
    if base.rows != rows {
        bail!("the base has {} rows, and the table {rows}", base.rows);
    }
    Ok((seconds, (snapshotter.process().cpu_time()? - before).as_secs_f64(), base))
}

/// The file of a base, which must be the archive's newest artifact.
async fn object(snapshotter: &Snapshotter, base: &Base) -> anyhow::Result<PathBuf> {
    let archive = snapshotter.archive().await?;
    let newest = archive.manifest().artifacts.last().context("the archive is empty")?;
    if newest.epoch != base.epoch {
        bail!("the manifest's newest artifact is of epoch {}, and the base of {}", newest.epoch, base.epoch);
    }
    let object = newest.object(Format::JSONL).context("the base has no position")?;
    Ok(snapshotter.folder().join(object))
}

/// Seconds that `cat` and an fsync take, of bytes that are in memory: ours have not been on a disk either.
async fn reference(object: &Path, copy: &Path) -> anyhow::Result<f64> {
    std::io::copy(&mut File::open(object)?, &mut std::io::sink())?;
    let began = Instant::now();
    let file = File::create(copy)?;
    let out = Stdio::from(file.try_clone()?);
    let status = Command::new("cat").arg(object).stdin(Stdio::null()).stdout(out).kill_on_drop(true).status().await?;
    if !status.success() {
        bail!("cat failed: {status}");
    }
    tokio::task::spawn_blocking(move || file.sync_all()).await??;
    let seconds = began.elapsed().as_secs_f64();
    std::fs::remove_file(copy)?;
    Ok(seconds)
}
