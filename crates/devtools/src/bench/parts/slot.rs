//! The part that reads a slot directly and discards its contents.

use anyhow::{Context, bail};
use laredo_core::Cell;
use laredo_postgres::ConnectionOptions;
use laredo_postgres::pgoutput::{PgoutputDecoder, PgoutputMessage};
use laredo_postgres::transport::{ReplicationConnection, ReplicationMessage, ReplicationReader};
use tokio::sync::mpsc;

use super::{StartReport, report_times, write_report};
use crate::clock::now_us;

/// Reads a publication through a slot of its own, and records when transactions of one row each are
/// complete.
pub(super) async fn read(
    database: &str,
    publication: &str,
    orders: mpsc::UnboundedReceiver<String>,
) -> anyhow::Result<()> {
    let options = ConnectionOptions::parse(database)?;
    let mut connection = ReplicationConnection::connect(&options).await?;
    connection.simple_query("CREATE_REPLICATION_SLOT bare TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT").await?;
    let start = format!(
        "START_REPLICATION SLOT bare LOGICAL 0/0 (proto_version '1', publication_names '{publication}', binary 'true')"
    );
    // Nothing is acknowledged, because the slot does not exist for long enough.
    let (reader, _writer) = connection.start_replication(&start).await?;
    let (sender, noted) = mpsc::unbounded_channel();
    // The task returns the sender, so that the channel stays open until reading has ended. The
    // error is then that of reading.
    let reading = tokio::spawn(async move { (record_commits(reader, &sender).await, sender) });
    write_report(&StartReport {})?;
    tokio::select! {
        ended = reading => ended?.0,
        told = report_times(orders, noted) => told,
    }
}

async fn record_commits(
    mut reader: ReplicationReader,
    noted: &mpsc::UnboundedSender<(i64, i64)>,
) -> anyhow::Result<()> {
    let (mut decoder, mut inserted) = (PgoutputDecoder::new(), None);
    while let Some(message) = reader.next().await? {
        let ReplicationMessage::XLogData { data, .. } = message else { continue };
        match decoder.decode(data)? {
            PgoutputMessage::Insert { new, .. } => {
                let Some(Cell::Value(id)) = new.cells.cells().next() else { bail!("a row without a key") };
                inserted = Some(i64::from_be_bytes(id.try_into().context("the key is not a bigint")?));
            }
            PgoutputMessage::Commit { .. } => {
                if let Some(id) = inserted.take() {
                    noted.send((id, now_us()))?;
                }
            }
            _ => {}
        }
    }
    bail!("the stream has ended")
}
