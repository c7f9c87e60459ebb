//! The sample table, its workload, and its rows in the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, pin_mut};
use laredo_core::Lsn;
use laredo_testkit::Cluster;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_postgres::Client;

/// The number of sessions that write at the same time.
const SESSIONS: u32 = 4;
/// The number of rows at the beginning.
const ROWS: i64 = 20_000;

pub(super) async fn create(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.connect().await?;
    let fill = format!(
        "INSERT INTO orders SELECT i, (ARRAY['open','paid','shipped'])[1 + i % 3], (ARRAY['eu-west','eu-north','us-east'])[1 + i % 3],
           (i % 10000) / 100.0, i % 7, now(), ARRAY['t' || i % 5, NULL], jsonb_build_object('note', repeat('x', (i % 40)::int))
         FROM generate_series(1, {ROWS}::bigint) i"
    );
    client
        .batch_execute(
            "CREATE TABLE orders (id bigint PRIMARY KEY, status text NOT NULL, region text NOT NULL, amount numeric(12,2),
               quantity int, placed_at timestamptz, tags text[], details jsonb)",
        )
        .await?;
    client.batch_execute(&fill).await?;
    Ok(())
}

/// Sessions that keep the table changing.
pub(super) struct DemoWorkload {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    sessions: JoinSet<anyhow::Result<()>>,
}

/// The end of the workload.
pub(super) struct DemoWorkloadEnd {
    /// A position after all commits except the last one.
    pub(super) before_last: Lsn,
    /// A position after the last commit too.
    pub(super) position: Lsn,
}

impl DemoWorkload {
    pub(super) async fn start(cluster: &Cluster, rate: u32) -> anyhow::Result<DemoWorkload> {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut sessions = JoinSet::new();
        let pause = Duration::from_secs(1) * SESSIONS / rate.max(1);
        for session in 0..SESSIONS {
            let client = cluster.connect().await?;
            let (stop, commits) = (stop.clone(), commits.clone());
            sessions.spawn(async move { run_session(client, session, pause, &stop, &commits).await });
        }
        Ok(DemoWorkload { stop, commits, sessions })
    }

    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Ends the workload with one more commit. A reader that is past a position before that commit
    /// has all the others.
    pub(super) async fn stop(mut self, cluster: &Cluster) -> anyhow::Result<DemoWorkloadEnd> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(session) = self.sessions.join_next().await {
            session?.context("a session of the workload")?;
        }
        let client = cluster.connect().await?;
        let before_last = position(&client, "SELECT pg_current_wal_insert_lsn()::text").await?;
        client.execute("UPDATE orders SET placed_at = now() WHERE id = (SELECT min(id) FROM orders)", &[]).await?;
        let position = position(&client, "SELECT pg_current_wal_lsn()::text").await?;
        Ok(DemoWorkloadEnd { before_last, position })
    }
}

async fn position(client: &Client, sql: &str) -> anyhow::Result<Lsn> {
    let text: String = client.query_one(sql, &[]).await?.get(0);
    Ok(text.parse()?)
}

async fn run_session(
    mut client: Client,
    session: u32,
    pause: Duration,
    stop: &AtomicBool,
    commits: &AtomicU64,
) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(u64::from(session));
    let mut ticks = tokio::time::interval(pause);
    let mut next_id = ROWS + i64::from(session) + 1;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let transaction = client.transaction().await?;
        for _ in 0..random.random_range(1..4) {
            // Each session changes only its own rows, so that none waits for another.
            let id = random.random_range(1..ROWS / i64::from(SESSIONS)) * i64::from(SESSIONS) + i64::from(session);
            let status = ["open", "paid", "shipped"][random.random_range(0..3)];
            match random.random_range(0..10) {
                0 => {
                    transaction.execute("DELETE FROM orders WHERE id = $1", &[&id]).await?;
                }
                1 | 2 => {
                    let insert =
                        "INSERT INTO orders VALUES ($1, $2, 'eu-west', 12.50, 1, now(), '{new}', '{\"a\": [1, null]}')";
                    transaction.execute(insert, &[&next_id, &status]).await?;
                    next_id += i64::from(SESSIONS);
                }
                _ => {
                    let update =
                        "UPDATE orders SET status = $2, amount = amount + 0.01, placed_at = now() WHERE id = $1";
                    transaction.execute(update, &[&id, &status]).await?;
                }
            }
        }
        transaction.commit().await?;
        commits.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Returns the rows that the database has in a table, or in a part of one (`orders WHERE …`), each
/// as its binary COPY cells.
pub(super) async fn rows(cluster: &Cluster, from: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let client = cluster.connect().await?;
    let copy = format!("COPY (SELECT * FROM {from}) TO STDOUT (FORMAT binary)");
    let stream = client.copy_out(&copy).await?;
    pin_mut!(stream);
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    split_rows(&bytes).context("cannot read the rows of the database's COPY")
}

/// Splits a binary COPY into rows. It has a header of 19 bytes, rows that begin with their field
/// count, and a last count of -1.
fn split_rows(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut rest = bytes.get(19..)?;
    let mut rows = Vec::new();
    loop {
        let (count, mut at) = rest.split_first_chunk::<2>()?;
        let count = i16::from_be_bytes(*count);
        if count < 0 {
            return Some(rows);
        }
        let row = at;
        for _ in 0..count {
            let (length, after) = at.split_first_chunk::<4>()?;
            at = after.get(usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0)..)?;
        }
        rows.push(row.get(..row.len() - at.len())?.to_vec());
        rest = at;
    }
}
