//! The processes of a benchmark. Each reports its findings as lines of JSON, and ends when its
//! standard input ends.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;

mod clients;
mod commits;
mod queries;
mod slot;
mod sockets;
mod streams;

/// A process of a benchmark.
#[derive(Subcommand)]
pub enum BenchmarkPart {
    /// Requests the table until the server sends it.
    Handshake {
        /// The server's address.
        #[arg(long)]
        server: String,
    },
    /// Keeps a replica until it has a row.
    Follow {
        /// The server's address.
        #[arg(long)]
        server: String,
        /// The row's key.
        #[arg(long)]
        last_id: i64,
    },
    /// Keeps a replica, and records when rows appear.
    Watch {
        /// The server's address.
        #[arg(long)]
        server: String,
    },
    /// Listens, and records when notifications of rows arrive.
    Listen {
        /// The connection string of the database.
        #[arg(long)]
        database: String,
    },
    /// Reads a slot, and records when transactions of rows are complete.
    ReadSlot {
        /// The connection string of the database.
        #[arg(long)]
        database: String,
        /// The publication to read.
        #[arg(long)]
        publication: String,
    },
    /// Commits rows at a steady rate, and records the time of each commit.
    Commit {
        /// The connection string of the database.
        #[arg(long)]
        database: String,
        /// The number of commits.
        #[arg(long)]
        count: u32,
        /// The number of commits per second.
        #[arg(long)]
        rate: u32,
        /// Send a notification of each commit.
        #[arg(long)]
        notify: bool,
    },
    /// Looks up random rows by their key.
    GetRows {
        /// The address of the server's Query service.
        #[arg(long)]
        server: String,
        /// The number of rows in the table.
        #[arg(long)]
        rows: u64,
        /// The number of connections, each of which has one request at a time.
        #[arg(long)]
        connections: u32,
        /// The number of requests, over all connections.
        #[arg(long)]
        requests: u64,
    },
    /// Saves the bytes sent to one client, until no more arrive.
    SaveStream {
        /// The server's port.
        #[arg(long)]
        port: u16,
        /// The position that the client resumes from.
        #[arg(long)]
        position: String,
        /// The file to write.
        #[arg(long)]
        file: PathBuf,
    },
    /// Runs many clients that read all bytes and decode nothing.
    ReadStreams {
        /// The server's port.
        #[arg(long)]
        port: u16,
        /// The position that the clients resume from.
        #[arg(long)]
        position: String,
        /// The number of clients.
        #[arg(long)]
        clients: usize,
        /// The number of bytes sent to each client.
        #[arg(long)]
        bytes: u64,
    },
    /// Sends a file from memory to every connection.
    SendBytes {
        /// The file to send.
        #[arg(long)]
        file: PathBuf,
    },
    /// Opens many connections and reads all bytes from them.
    ReadBytes {
        /// The sender's port.
        #[arg(long)]
        port: u16,
        /// The number of connections.
        #[arg(long)]
        clients: usize,
        /// The number of bytes sent to each connection.
        #[arg(long)]
        bytes: u64,
    },
}

/// A report that the part has begun.
#[derive(Serialize, Deserialize)]
pub(super) struct StartReport {}

/// A report that the first client has its answer.
#[derive(Serialize, Deserialize)]
pub(super) struct HandshakeReport {
    pub(super) has_snapshot: bool,
}

/// A report that the replica has reached the last commit.
#[derive(Serialize, Deserialize)]
pub(super) struct CatchUpReport {
    pub(super) rows: u64,
}

/// The time at which each row was committed or seen, as pairs of the row's key and microseconds
/// since 1970 by this machine's clock.
#[derive(Serialize, Deserialize)]
pub(super) struct RowTimesReport(pub(super) Vec<(i64, i64)>);

/// The rate of requests, and percentiles of the time until an answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RequestTimesReport {
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl std::fmt::Display for RequestTimesReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} requests/s (p50 {:.3} ms, p99 {:.3} ms)", self.per_second, self.p50_ms, self.p99_ms)
    }
}

/// The bytes that all clients received together, and the time that this took.
#[derive(Serialize, Deserialize)]
pub(super) struct ThroughputReport {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

/// A report that the sender waits for readers.
#[derive(Serialize, Deserialize)]
pub(super) struct SenderPortReport {
    pub(super) port: u16,
}

/// Runs a part until its end.
///
/// # Errors
/// When anything keeps the part from running.
pub async fn run_part(part: BenchmarkPart) -> anyhow::Result<()> {
    let orders = orders();
    match part {
        BenchmarkPart::Handshake { server } => clients::handshake(server).await,
        BenchmarkPart::Follow { server, last_id } => clients::follow(server, last_id).await,
        BenchmarkPart::Watch { server } => clients::watch(server, orders).await,
        BenchmarkPart::Listen { database } => commits::listen(&database, orders).await,
        BenchmarkPart::ReadSlot { database, publication } => slot::read(&database, &publication, orders).await,
        BenchmarkPart::Commit { database, count, rate, notify } => {
            commits::commit(&database, count, rate, notify).await
        }
        BenchmarkPart::GetRows { server, rows, connections, requests } => {
            queries::get_rows(server, rows, connections, requests).await
        }
        BenchmarkPart::SaveStream { port, position, file } => streams::save(port, &position, file).await,
        BenchmarkPart::ReadStreams { port, position, clients, bytes } => {
            streams::read(port, &position, clients, bytes).await
        }
        BenchmarkPart::SendBytes { file } => sockets::send(&file).await,
        BenchmarkPart::ReadBytes { port, clients, bytes } => sockets::read(port, clients, bytes).await,
    }
}

/// Returns the lines of the standard input. When the input ends, the benchmark is gone, so this
/// process exits.
fn orders() -> mpsc::UnboundedReceiver<String> {
    let (sender, orders) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // A part without orders has dropped the receiver.
            let _ = sender.send(line);
        }
        std::process::exit(1);
    });
    orders
}

/// Waits for the order `tell COUNT`, and then until that many times were recorded. Reports all of
/// them.
async fn report_times(
    mut orders: mpsc::UnboundedReceiver<String>,
    mut noted: mpsc::UnboundedReceiver<(i64, i64)>,
) -> anyhow::Result<()> {
    let order = orders.recv().await.context("no order came")?;
    let count = order.strip_prefix("tell ").with_context(|| format!("unknown order: {order}"))?.parse()?;
    let mut seen: Vec<(i64, i64)> = Vec::new();
    while seen.len() < count {
        seen.push(noted.recv().await.context("the connection has ended")?);
    }
    write_report(&RowTimesReport(seen))
}

fn write_report(what: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}
