//! Parts that read gRPC streams as bytes, without decoding them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use laredo_core::TableName;
use laredo_proto::frame;
use laredo_proto::replication::{RowEncoding, SyncMode, SyncRequest, SyncResponse, sync_response};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{ThroughputReport, write_report};
use crate::bench::fixture::TABLE;

/// The window and frame sizes of laredo's own client.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// The silence after which no more data is expected. It is shorter than the time between
/// heartbeats.
const SILENCE: Duration = Duration::from_secs(2);

/// Saves the bytes that one client receives up to the last change. The heartbeats afterwards are
/// not the same for all clients.
pub(super) async fn save(port: u16, position: &str, file: PathBuf) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut body = request_stream(connect(port).await?, port, position).await?;
    let mut stream = Vec::new();
    while let Ok(chunk) = tokio::time::timeout(SILENCE, body.data()).await {
        let chunk = chunk.context("the stream has ended")??;
        body.flow_control().release_capacity(chunk.len())?;
        stream.extend_from_slice(&chunk);
    }
    check_handshake(&stream)?;
    stream.truncate(end_of_changes(&stream)?);
    tokio::fs::write(file, &stream).await?;
    write_report(&ThroughputReport { bytes: stream.len() as u64, seconds: began.elapsed().as_secs_f64() })
}

/// Returns the end of the last batch in a stream.
fn end_of_changes(stream: &[u8]) -> anyhow::Result<usize> {
    let (mut at, mut end) = (0, None);
    while let Some(length) = frame::length(&stream[at..]) {
        let next = at + frame::PREFIX_LENGTH + length;
        let message = stream.get(at + frame::PREFIX_LENGTH..next).context("the last message is not whole")?;
        if let Some(sync_response::Message::Batch(_)) = SyncResponse::decode(message)?.message {
            end = Some(next);
        }
        at = next;
    }
    end.context("the stream has no changes")
}

/// Checks that the stream resumes. A client without a position would receive other bytes.
fn check_handshake(bytes: &[u8]) -> anyhow::Result<()> {
    let length = frame::length(bytes).context("the stream has no first message")?;
    let message = bytes.get(frame::PREFIX_LENGTH..frame::PREFIX_LENGTH + length);
    match SyncResponse::decode(message.context("the first message is not whole")?)?.message {
        Some(sync_response::Message::Handshake(handshake)) if handshake.mode() == SyncMode::Delta => Ok(()),
        other => bail!("the stream begins with {other:?}"),
    }
}

/// Reads the streams of many clients at once. Each client has its own connection.
pub(super) async fn read(port: u16, position: &str, clients: usize, bytes: u64) -> anyhow::Result<()> {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(connect(port).await?);
    }
    let mut readers = JoinSet::new();
    let began = Instant::now();
    for connection in connections {
        let position = position.to_owned();
        readers.spawn(async move { read_stream(request_stream(connection, port, &position).await?, bytes).await });
    }
    let mut received = 0;
    while let Some(reader) = readers.join_next().await {
        received += reader??;
    }
    write_report(&ThroughputReport { bytes: received, seconds: began.elapsed().as_secs_f64() })
}

async fn read_stream(mut body: h2::RecvStream, bytes: u64) -> anyhow::Result<u64> {
    let mut received = 0;
    while received < bytes {
        let chunk = body.data().await.with_context(|| format!("a stream has ended after {received} bytes"))??;
        body.flow_control().release_capacity(chunk.len())?;
        received += chunk.len() as u64;
    }
    Ok(received)
}

async fn connect(port: u16) -> anyhow::Result<SendRequest<Bytes>> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder.max_frame_size(FRAME_BYTES_MAX);
    let (sender, connection) = builder.handshake(socket).await?;
    // When the connection breaks, its stream returns the error.
    tokio::spawn(connection);
    Ok(sender.ready().await?)
}

/// Requests everything after a position.
async fn request_stream(
    mut connection: SendRequest<Bytes>,
    port: u16,
    position: &str,
) -> anyhow::Result<h2::RecvStream> {
    let table: TableName = TABLE.parse()?;
    let ask = SyncRequest {
        schema: table.schema,
        table: table.table,
        last_known_source_position: position.to_owned(),
        accept: vec![RowEncoding::PostgresBinary.into()],
        ..SyncRequest::default()
    };
    let request =
        http::Request::post(format!("http://127.0.0.1:{port}/laredo.replication.v1.LaredoReplicationService/Sync"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
    let (response, mut sender) = connection.send_request(request, false)?;
    sender.send_data(frame::to_bytes(&ask), true)?;
    let response = response.await?;
    if let Some(status) = response.headers().get("grpc-status") {
        bail!("the server refuses: {status:?} {:?}", response.headers().get("grpc-message"));
    }
    Ok(response.into_body())
}
