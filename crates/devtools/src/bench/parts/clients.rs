//! Parts that are clients of laredo.

use std::time::Duration;

use laredo_client::{Replica, Row, TableName};
use laredo_proto::replication::laredo_replication_service_client::LaredoReplicationServiceClient;
use laredo_proto::replication::{RowEncoding, SyncMode, SyncRequest, sync_response};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;

use super::{CatchUpReport, HandshakeReport, StartReport, report_times, write_report};
use crate::bench::fixture::TABLE;
use crate::clock::now_us;

/// The time between two attempts to connect to a server that is not ready yet.
const RETRY: Duration = Duration::from_millis(5);
/// The time between two checks of a view.
const LOOK: Duration = Duration::from_millis(1);

/// Requests the table until the server sends it.
pub(super) async fn handshake(server: String) -> anyhow::Result<()> {
    loop {
        match request_sync_mode(server.clone()).await {
            Ok(mode) => return write_report(&HandshakeReport { has_snapshot: mode == SyncMode::FullSnapshot }),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn request_sync_mode(server: String) -> anyhow::Result<SyncMode> {
    let table: TableName = TABLE.parse()?;
    let channel = Endpoint::from_shared(server)?.connect().await?;
    let mut client = LaredoReplicationServiceClient::new(channel);
    let request = SyncRequest {
        schema: table.schema,
        table: table.table,
        accept: vec![RowEncoding::PostgresBinary.into()],
        ..SyncRequest::default()
    };
    let first = client.sync(request).await?.into_inner().message().await?;
    match first.and_then(|response| response.message) {
        Some(sync_response::Message::Handshake(handshake)) => Ok(handshake.mode()),
        other => anyhow::bail!("a stream begins with {other:?}"),
    }
}

/// Keeps a replica until it has a row.
pub(super) async fn follow(server: String, last_id: i64) -> anyhow::Result<()> {
    let replica = Replica::builder(server, TABLE.parse()?).start()?;
    write_report(&StartReport {})?;
    while replica.get(last_id)?.is_none() {
        tokio::time::sleep(LOOK).await;
    }
    write_report(&CatchUpReport { rows: replica.view().len() as u64 })
}

/// Keeps a replica, and records when rows appear.
pub(super) async fn watch(server: String, orders: mpsc::UnboundedReceiver<String>) -> anyhow::Result<()> {
    let replica = Replica::builder(server, TABLE.parse()?).start()?;
    replica.ready(Duration::from_secs(60)).await?;
    let (sender, noted) = mpsc::unbounded_channel();
    let _listener = replica.listen(move |_: Option<&Row>, new: Option<&Row>| {
        if let Some(Ok(id)) = new.map(|row| row.get::<i64>("id")) {
            let _ = sender.send((id, now_us()));
        }
    });
    write_report(&StartReport {})?;
    report_times(orders, noted).await
}
