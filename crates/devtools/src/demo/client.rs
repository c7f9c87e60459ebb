//! A client of the demo: a process that keeps a replica, and reports its status on its standard
//! output.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use laredo_client::{ColumnPredicate, Lsn, Replica, TableName, Transactions};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::client_process::{FinalClientReport, PeriodicClientReport};
use crate::clock::now_us;
use crate::percentile::percentile;

/// The arguments of a client.
#[derive(Args)]
pub struct DemoClientArguments {
    /// The client's name.
    #[arg(long)]
    id: String,
    /// The server's address.
    #[arg(long)]
    server: String,
    /// The filter: `COLUMN=VALUE`, or `COLUMN^=PREFIX`.
    #[arg(long)]
    filter: String,
}

/// Runs a client until its standard input ends or has the line `finish POSITION FILE`. In the
/// second case, the client writes its rows to the file.
///
/// # Errors
/// When the replica does not become ready, or an order is not understood.
pub async fn run(arguments: DemoClientArguments) -> anyhow::Result<()> {
    let table: TableName = super::TABLE.parse()?;
    let replica = Replica::builder(arguments.server, table)
        .client_id(arguments.id)
        .index("by_status", ["status"], laredo_client::Unique::No)
        .filter(predicate(&arguments.filter)?)
        .start()?;
    replica.ready(Duration::from_secs(60)).await?;
    // The stream begins only now, because the initial rows of the replica are not changes.
    let mut transactions = replica.transactions();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let (mut changes, mut lags, mut recent) = (0, Vec::new(), Vec::new());
    loop {
        tokio::select! {
            transaction = transactions.next() => {
                let transaction = transaction.context("the replica has stopped")??;
                changes += transaction.changes.len() as u64;
                if let Some(committed_at) = transaction.committed_at {
                    recent.push((now_us() - committed_at.unix_us()) as f64 / 1000.0);
                }
            }
            _ = ticks.tick() => {
                let second = PeriodicClientReport { rows: replica.view().len(), changes, lag_ms: percentile(&mut recent, 0.5) };
                lags.append(&mut recent);
                write_report(&second)?;
            }
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                let Some(["finish", position, file]) = line.split(' ').collect::<Vec<_>>().first_chunk().copied() else {
                    bail!("unknown order: {line}");
                };
                lags.append(&mut recent);
                let position: Lsn = position.parse()?;
                await_position(&replica, &mut transactions, position, &mut changes).await?;
                let rows = write_rows(&replica, file.into())?;
                return write_report(&FinalClientReport { rows, changes, lags_ms: lags });
            }
        }
    }
}

fn predicate(text: &str) -> anyhow::Result<ColumnPredicate> {
    if let Some((column, prefix)) = text.split_once("^=") {
        return Ok(ColumnPredicate::prefix(column, prefix));
    }
    let (column, value) = text.split_once('=').context("a filter is COLUMN=VALUE or COLUMN^=PREFIX")?;
    Ok(ColumnPredicate::equals(column, value))
}

fn write_report(what: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

/// Waits until every commit up to `position` is in the view.
async fn await_position(
    replica: &Replica,
    transactions: &mut Transactions,
    position: Lsn,
    changes: &mut u64,
) -> anyhow::Result<()> {
    while replica.view().position() < position {
        let next = tokio::time::timeout(Duration::from_secs(60), transactions.next()).await;
        let next = next.with_context(|| {
            format!("the replica stayed at {} for a minute, and did not reach {position}", replica.view().position())
        })?;
        *changes += next.context("the replica has stopped")??.changes.len() as u64;
    }
    Ok(())
}

/// Writes the rows of the view, each as a length and its cells.
fn write_rows(replica: &Replica, file: PathBuf) -> anyhow::Result<usize> {
    let view = replica.view();
    let mut out = Vec::new();
    for row in view.rows() {
        let cells = row.tuple().as_ref().bytes();
        out.extend_from_slice(&u32::try_from(cells.len())?.to_be_bytes());
        out.extend_from_slice(cells);
    }
    std::fs::write(file, out)?;
    Ok(view.len())
}

/// Returns the rows that [`write_rows`] wrote, or `None` if the bytes are invalid.
pub(super) fn read_rows(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut rows = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (row, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rows.push(row.to_vec());
        bytes = rest;
    }
    Some(rows)
}
