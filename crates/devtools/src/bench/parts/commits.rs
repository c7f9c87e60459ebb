//! Parts that are clients of PostgreSQL: one commits, and one listens.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::{RowTimesReport, StartReport, report_times, write_report};
use crate::clock::now_us;

/// The number of sessions that commit in turn. A single one might not keep up the rate.
const SESSIONS: u32 = 4;

/// Commits rows with the numbers 1 to `count` at a steady rate, and records when each `COMMIT` was
/// sent.
pub(super) async fn commit(database: &str, rows: u32, rate: u32, notify: bool) -> anyhow::Result<()> {
    let mut sessions = JoinSet::new();
    let start = Instant::now() + Duration::from_millis(100);
    for session in 0..SESSIONS {
        let (client, connection) = tokio_postgres::connect(database, NoTls).await?;
        tokio::spawn(connection);
        let first = start + Duration::from_secs(1) * session / rate;
        let mut ticks = tokio::time::interval_at(first, Duration::from_secs(1) * SESSIONS / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        sessions.spawn(async move {
            let mut committed = Vec::new();
            let insert = insert(&client, notify).await?;
            for id in (1 + session..=rows).step_by(SESSIONS as usize).map(i64::from) {
                ticks.tick().await;
                client.batch_execute("BEGIN").await?;
                client.query(&insert, &[&id]).await?;
                let now = now_us();
                client.batch_execute("COMMIT").await?;
                committed.push((id, now));
            }
            anyhow::Ok(committed)
        });
    }
    let mut committed = Vec::new();
    while let Some(session) = sessions.join_next().await {
        committed.append(&mut session??);
    }
    write_report(&RowTimesReport(committed))
}

async fn insert(client: &Client, notify: bool) -> anyhow::Result<tokio_postgres::Statement> {
    let sql = match notify {
        false => "INSERT INTO bench SELECT r.* FROM bench_row($1, 0) r",
        true => {
            "WITH new AS (INSERT INTO bench SELECT r.* FROM bench_row($1, 0) r RETURNING bench)
             SELECT pg_notify('bench', bench::text) FROM new"
        }
    };
    client.prepare(sql).await.context("preparing the transaction")
}

/// Listens, and records when notifications of rows arrive.
pub(super) async fn listen(database: &str, orders: mpsc::UnboundedReceiver<String>) -> anyhow::Result<()> {
    let (client, mut connection) = tokio_postgres::connect(database, NoTls).await?;
    let (sender, noted) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            let now = now_us();
            if let AsyncMessage::Notification(notification) = message {
                // A row as text begins with its first column: `(7,…)`.
                let id = notification.payload().trim_start_matches('(').split(',').next();
                if let Some(Ok(id)) = id.map(str::parse::<i64>) {
                    let _ = sender.send((id, now));
                }
            }
        }
    });
    client.batch_execute("LISTEN bench").await?;
    write_report(&StartReport {})?;
    report_times(orders, noted).await
}
