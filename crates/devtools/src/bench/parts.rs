//! The processes of a benchmark: each says what it has found as lines of JSON, and ends with its standard input.

use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;

mod clients;
mod commits;
mod slot;
mod sockets;
mod streams;

/// One process of a benchmark.
#[derive(Subcommand)]
pub enum Part {
    /// Asks for the table until it is being sent.
    Handshake {
        /// The server.
        #[arg(long)]
        server: String,
    },
    /// Keeps a replica until it has a row.
    Follow {
        /// The server.
        #[arg(long)]
        server: String,
        /// The row's key.
        #[arg(long)]
        last_id: i64,
    },
    /// Keeps a replica, and notes when rows appear.
    Watch {
        /// The server.
        #[arg(long)]
        server: String,
    },
    /// Listens, and notes when notifications of rows come.
    Listen {
        /// The database.
        #[arg(long)]
        database: String,
    },
    /// Reads a slot, and notes when transactions of rows are complete.
    ReadSlot {
        /// The database.
        #[arg(long)]
        database: String,
        /// What is published.
        #[arg(long)]
        publication: String,
    },
    /// Commits rows at a steady rate, and notes when.
    Commit {
        /// The database.
        #[arg(long)]
        database: String,
        /// How many.
        #[arg(long)]
        count: u32,
        /// How many per second.
        #[arg(long)]
        rate: u32,
        /// Send a notification of each.
        #[arg(long)]
        notify: bool,
    },
    /// Keeps what one client is sent until nothing more comes.
    SaveStream {
        /// The server's port.
        #[arg(long)]
        port: u16,
        /// Where the client goes on from.
        #[arg(long)]
        position: String,
        /// Where to keep it.
        #[arg(long)]
        file: PathBuf,
    },
    /// Many clients that take what they are sent and look at none of it.
    ReadStreams {
        /// The server's port.
        #[arg(long)]
        port: u16,
        /// Where the clients go on from.
        #[arg(long)]
        position: String,
        /// How many.
        #[arg(long)]
        clients: usize,
        /// What each is sent.
        #[arg(long)]
        bytes: u64,
    },
    /// Sends a file from memory to everybody who connects.
    SendBytes {
        /// The file.
        #[arg(long)]
        file: PathBuf,
    },
    /// Many connections that take what they are sent.
    ReadBytes {
        /// The sender's port.
        #[arg(long)]
        port: u16,
        /// How many.
        #[arg(long)]
        clients: usize,
        /// What each is sent.
        #[arg(long)]
        bytes: u64,
    },
}

/// The part has begun.
#[derive(Serialize, Deserialize)]
pub(super) struct Begun {}

/// The first client has its answer.
#[derive(Serialize, Deserialize)]
pub(super) struct Answered {
    pub(super) has_snapshot: bool,
}

/// The replica is at the last commit.
#[derive(Serialize, Deserialize)]
pub(super) struct Reached {
    pub(super) rows: u64,
}

/// When each row was committed or seen, in microseconds since 1970 by this machine's clock.
#[derive(Serialize, Deserialize)]
pub(super) struct Times(pub(super) Vec<(i64, i64)>);

/// What was taken by all clients together, and how long that took.
#[derive(Serialize, Deserialize)]
pub(super) struct Streamed {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

/// The sender waits for readers.
#[derive(Serialize, Deserialize)]
pub(super) struct Listening {
    pub(super) port: u16,
}

/// Plays a part.
///
/// # Errors
/// Whatever keeps it from being played.
pub async fn play(part: Part) -> anyhow::Result<()> {
    let orders = orders();
    match part {
        Part::Handshake { server } => clients::handshake(server).await,
        Part::Follow { server, last_id } => clients::follow(server, last_id).await,
        Part::Watch { server } => clients::watch(server, orders).await,
        Part::Listen { database } => commits::listen(&database, orders).await,
        Part::ReadSlot { database, publication } => slot::read(&database, &publication, orders).await,
        Part::Commit { database, count, rate, notify } => commits::commit(&database, count, rate, notify).await,
        Part::SaveStream { port, position, file } => streams::save(port, &position, file).await,
        Part::ReadStreams { port, position, clients, bytes } => streams::read(port, &position, clients, bytes).await,
        Part::SendBytes { file } => sockets::send(&file).await,
        Part::ReadBytes { port, clients, bytes } => sockets::read(port, clients, bytes).await,
    }
}

/// The lines of the standard input. When that ends, so does the process: the benchmark is gone.
fn orders() -> mpsc::UnboundedReceiver<String> {
    let (sender, orders) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // A part that takes no orders is told nothing.
            let _ = sender.send(line);
        }
        std::process::exit(1);
    });
    orders
}

/// Waits for the order `tell COUNT`, and then until so much was noted; says all of it.
async fn tell(
    mut orders: mpsc::UnboundedReceiver<String>,
    mut noted: mpsc::UnboundedReceiver<(i64, i64)>,
) -> anyhow::Result<()> {
    let order = orders.recv().await.context("no order came")?;
    let count = order.strip_prefix("tell ").with_context(|| format!("not understood: {order}"))?.parse()?;
    let mut seen: Vec<(i64, i64)> = Vec::new();
    while seen.len() < count {
        seen.push(noted.recv().await.context("the connection has ended")?);
    }
    say(&Times(seen))
}

fn say(what: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

#[expect(clippy::disallowed_methods, reason = "a program's edge: two processes compare times by the clock they share")]
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
