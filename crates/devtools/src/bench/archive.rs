//! The time for a snapshot of an unchanging table, from the request until the manifest has it. The
//! reference is `cat` of the same bytes to another file of the same disk, with an fsync.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, bail};
use laredo_archive::ArtifactFormat;
use serde_json::{Value, json};
use tokio::process::Command;

use super::report::{BenchmarkPair, BenchmarkReport, BetterDirection, rounded};
use super::{BenchmarkSize, PATIENCE, fixture, print_progress};
use crate::snapshotter::{FolderSnapshotter, RequestedSnapshot};

/// The number of rows of the full size.
const ROWS: u64 = 2_000_000;
/// The formats of the archive. Every snapshot is requested. Diffs do not interfere, because the
/// table does not change.
const KEYS: &str = "formats { snapshot = [ jsonl ], diff = [ jsonl ] }";
/// The memory that the snapshotter may use: this multiple of the table's cells, plus
/// `MEMORY_BESIDE` bytes.
const MEMORY_TIMES: f64 = 1.5;
const MEMORY_BESIDE: f64 = 64.0 * 1024.0 * 1024.0;

pub(super) async fn run(options: BenchmarkSize) -> anyhow::Result<BenchmarkReport> {
    let rows = options.rows.unwrap_or(ROWS);
    let cluster = fixture::cluster()?;
    print_progress(format!("filling a table with {rows} rows"));
    fixture::create_table(&cluster)?;
    fixture::fill(&cluster, rows)?;
    let server = fixture::BenchmarkServer::start(&cluster, None, "")?;
    server.ready().await?;
    let row_bytes = server.metric("laredo_row_bytes").await?;
    let folder = tempfile::tempdir()?;
    let snapshotter = FolderSnapshotter::start(&server.address(), fixture::TABLE, folder.path(), KEYS)?;
    server.run_while_alive(snapshotter.ready(PATIENCE)).await?;
    server.idle().await?;
    let (mut pairs, mut bytes) = (Vec::new(), 0);
    for number in 1..=options.pairs {
        let (seconds, cpu_s, base) = ours(&snapshotter, rows).await?;
        bytes = base.bytes;
        let object = object(&snapshotter, &base).await?;
        let reference_s = reference(&object, &folder.path().join("reference")).await?;
        // The reference's copy was removed too. Otherwise only laredo would write to memory that
        // was never used before, which a virtual machine must request.
        std::fs::remove_file(&object)?;
        print_progress(format!("pair {number}: ours {seconds:.2} s, reference {reference_s:.2} s"));
        let mb = bytes as f64 / 1e6;
        let peak_bytes = snapshotter.process().peak_rss_bytes()?;
        pairs.push(BenchmarkPair { ours: mb / seconds, reference: mb / reference_s, cpu_s, peak_bytes });
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
    Ok(BenchmarkReport {
        bench: "archive",
        unit: "MB/s",
        better: BetterDirection::More,
        pairs,
        scaled: rows < ROWS,
        more,
    })
}

/// Returns the peak memory of the snapshotter compared with its bound. As in all results, a ratio
/// of 1 or more is good.
fn memory(peak_bytes: u64, row_bytes: f64) -> Value {
    let (peak, bound) = (peak_bytes as f64, MEMORY_TIMES * row_bytes + MEMORY_BESIDE);
    json!({ "rows_mb": rounded(row_bytes / 1e6), "bound_mb": rounded(bound / 1e6), "ratio": rounded(bound / peak) })
}

/// Requests a snapshot. Returns its duration, its processor time, and the snapshot.
async fn ours(snapshotter: &FolderSnapshotter, rows: u64) -> anyhow::Result<(f64, f64, RequestedSnapshot)> {
    let (before, began) = (snapshotter.process().cpu_time()?, Instant::now());
    let base = snapshotter.snapshot().await?;
    let seconds = began.elapsed().as_secs_f64();
    if base.rows != rows {
        bail!("the base has {} rows, and the table {rows}", base.rows);
    }
    Ok((seconds, (snapshotter.process().cpu_time()? - before).as_secs_f64(), base))
}

/// Returns the file of a snapshot, which must be the archive's newest artifact.
async fn object(snapshotter: &FolderSnapshotter, base: &RequestedSnapshot) -> anyhow::Result<PathBuf> {
    let archive = snapshotter.archive().await?;
    let newest = archive.manifest().artifacts.last().context("the archive is empty")?;
    if newest.epoch != base.epoch {
        bail!("the manifest's newest artifact is of epoch {}, and the base of {}", newest.epoch, base.epoch);
    }
    let object = newest.object(ArtifactFormat::JSONL).context("the base has no position")?;
    Ok(snapshotter.folder().join(object))
}

/// Returns the seconds that `cat` and an fsync take. The bytes are in memory, because laredo's have
/// not been read from a disk either.
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
