//! Clients of version 0.4. They send a first message with the request inside, and then
//! acknowledgements in a request that stays open.

use std::time::Duration;

use crate::support::http::{HttpReply, ReplyFrames, SYNC, frame, http1, http1_open, http2, http2_open, message};
use crate::support::{SimServer, SimpleReplica, prefix, request, serve_with, within};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use laredo_core::Lsn;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{RowEncoding, SyncMode, SyncRequest};
use laredo_server::ServerOptions;
use laredo_testkit::SimChange::{Delete, Insert, Update};
use laredo_testkit::SimDatabase;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

const GRPC: &str = "application/grpc";
const CONNECT: &str = "application/connect+proto";
const WEB: &str = "application/grpc-web";
const TRANSPORTS: [(&str, bool); 5] = [(GRPC, true), (CONNECT, true), (WEB, true), (CONNECT, false), (WEB, false)];
/// Longer than any test waits, so that no result depends on a request's deadline.
const NEVER: Duration = Duration::from_secs(3600);

/// Returns a length-delimited field.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encode_length_delimiter(value.len(), &mut bytes).unwrap();
    [bytes.as_slice(), value].concat()
}

/// Returns the first message, with the request in field 1.
fn start(request: &SyncRequest) -> Vec<u8> {
    frame(&field(1, &request.encode_to_vec()))
}

/// Returns a later message, with a sequence and a position in field 2.
fn acknowledgement() -> Vec<u8> {
    frame(&field(2, &[&[0x08, 0x96, 0x01][..], &field(2, b"0/19F000")].concat()))
}

async fn serve(change: impl FnOnce(&mut ServerOptions)) -> (SimDatabase, SimServer) {
    let database = SimDatabase::new(1);
    database.commit(0, (0..100).map(|id| Insert(id, format!("row {id}"))).collect());
    let server = serve_with(&database, "a", 1, |options| {
        options.waits.request = NEVER;
        change(options);
    })
    .await;
    server.ready().await;
    (database, server)
}

/// A stream whose request stays open.
struct OpenRequestStream {
    frames: ReplyFrames,
    replica: SimpleReplica,
    /// The request body over HTTP/2.
    request: Option<mpsc::Sender<Bytes>>,
}

impl OpenRequestStream {
    async fn new(server: &SimServer, (content_type, is_http2): (&str, bool), first: &[u8]) -> OpenRequestStream {
        let (frames, request) = match is_http2 {
            false => (http1_open(server.grpc, SYNC, content_type, first).await.frames(), None),
            true => {
                let (request, pieces) = mpsc::channel(1);
                request.try_send(Bytes::copy_from_slice(first)).unwrap();
                let body = ReceiverStream::new(pieces).map(|piece| Ok::<_, tonic::Status>(Frame::data(piece)));
                let body = tonic::body::Body::new(StreamBody::new(body));
                let reply = http2_open(&mut server.channel().await, SYNC, content_type, body).await;
                (reply.frames(), Some(request))
            }
        };
        OpenRequestStream { frames, replica: SimpleReplica::default(), request }
    }

    async fn send(&mut self, bytes: &[u8]) {
        match &self.request {
            Some(request) => within(request.send(Bytes::copy_from_slice(bytes)), "room").await.unwrap(),
            None => within(self.frames.reply.send(bytes), "room").await,
        }
    }

    async fn read_to(&mut self, position: Lsn) {
        while self.replica.position < position || self.replica.handshake.columns.is_empty() {
            let frame = self.frames.next().await.expect("a stream goes on");
            self.replica.apply(message(&frame).message.unwrap());
        }
    }

    /// Returns the end of the stream: the message of the gRPC status, or the last frame.
    async fn end(mut self) -> String {
        while let Some(frame) = self.frames.next().await {
            if frame[0] != 0 {
                return plain(std::str::from_utf8(&frame[5..]).unwrap());
            }
        }
        plain(self.frames.reply.header("grpc-message"))
    }
}

/// Returns a message without gRPC's percent escapes.
fn plain(message: &str) -> String {
    message.replace("%20", " ").replace("%60", "`")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_stays_open_is_served_in_every_protocol() {
    for transport in TRANSPORTS {
        let (database, server) = serve(|_| {}).await;
        let mut open = OpenRequestStream::new(&server, transport, &start(&request(RowEncoding::Struct))).await;
        open.read_to(database.end()).await;
        assert_eq!(open.replica.handshake.mode(), SyncMode::FullSnapshot, "{transport:?}");
        for id in 0..20 {
            open.send(&acknowledgement()).await;
            let end = database.commit(0, vec![Update(id, "new".to_owned()), Delete(50 + id)]);
            open.read_to(end).await;
            assert_eq!(open.replica.rows, database.rows_at(0, end), "{transport:?}");
        }
        assert_eq!(open.replica.snapshots, 1, "{transport:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_the_request_counts() {
    let (database, server) = serve(|_| {}).await;
    let mut first = OpenRequestStream::new(&server, (GRPC, true), &start(&request(RowEncoding::Struct))).await;
    first.read_to(database.end()).await;
    let end = database.commit(0, vec![Insert(1000, "other".to_owned()), Insert(1001, "row 1001".to_owned())]);
    for transport in TRANSPORTS {
        let resumed = first.replica.by_position(request(RowEncoding::Struct));
        let mut open = OpenRequestStream::new(&server, transport, &start(&resumed)).await;
        open.replica.rows = first.replica.rows.clone();
        open.read_to(end).await;
        assert_eq!(open.replica.handshake.mode(), SyncMode::Delta, "{transport:?}");
        assert_eq!(open.replica.rows, database.rows_at(0, end), "{transport:?}");

        let filtered = SyncRequest { filters: vec![prefix("other")], ..request(RowEncoding::Struct) };
        let mut open = OpenRequestStream::new(&server, transport, &start(&filtered)).await;
        open.read_to(end).await;
        assert_eq!(open.replica.rows.keys().collect::<Vec<_>>(), [&1000], "{transport:?}");
    }
    let named = SyncRequest { client_id: "four".to_owned(), ..request(RowEncoding::Struct) };
    let mut open = OpenRequestStream::new(&server, (GRPC, true), &start(&named)).await;
    open.read_to(end).await;
    let status = within(server.client().await.get_replication_status(status_request()), "a status").await.unwrap();
    assert!(status.into_inner().clients.iter().any(|client| client.client_id == "four"));
}

fn status_request() -> laredo_proto::replication::GetReplicationStatusRequest {
    laredo_proto::replication::GetReplicationStatusRequest { schema: "public".to_owned(), table: "t0".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_message_may_come_in_pieces_and_acknowledgements_with_it() {
    let (database, server) = serve(|_| {}).await;
    let first = start(&request(RowEncoding::Struct));
    let all = [first.as_slice(), &acknowledgement(), &acknowledgement()].concat();
    // Cut inside the prefix, the message, and an acknowledgement.
    for cut in [1, 4, 5, 6, first.len() - 1, first.len(), first.len() + 3, all.len() - 1] {
        let (request, pieces) = mpsc::channel(3);
        for piece in [&all[..cut], &all[cut..]] {
            request.try_send(Ok::<_, tonic::Status>(Frame::data(Bytes::copy_from_slice(piece)))).unwrap();
        }
        let body = tonic::body::Body::new(StreamBody::new(ReceiverStream::new(pieces)));
        let reply = http2_open(&mut server.channel().await, SYNC, GRPC, body).await;
        let mut open = OpenRequestStream { frames: reply.frames(), replica: SimpleReplica::default(), request: None };
        open.read_to(database.end()).await;
        assert_eq!(open.replica.rows, database.rows_at(0, database.end()), "cut at {cut}");
    }
}

/// A client may end its request after the first message or after some acknowledgements, and
/// continue to read.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_ends_leaves_the_stream() {
    let (database, server) = serve(|_| {}).await;
    let first = start(&request(RowEncoding::Struct));
    for body in [first.clone(), [first.as_slice(), &acknowledgement()].concat()] {
        let mut channel = server.channel().await;
        let replies = [
            http2(&mut channel, SYNC, GRPC, body.clone()).await,
            http1(server.grpc, "POST", SYNC, &[("Content-Type", CONNECT)], &body).await,
        ];
        for reply in replies {
            let mut open = OpenRequestStream {
                frames: HttpReply::frames(reply),
                replica: SimpleReplica::default(),
                request: None,
            };
            open.read_to(database.end()).await;
            let end = database.commit(0, vec![Update(1, "later".to_owned())]);
            open.read_to(end).await;
            assert_eq!(open.replica.rows, database.rows_at(0, end));
        }
    }
}

/// The server refuses at once, because the first message already shows the error.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_request_that_is_refused_hears_why_at_once() {
    let (_database, server) = serve(|_| {}).await;
    let unknown = SyncRequest { table: "nope".to_owned(), ..request(RowEncoding::Struct) };
    let without = SyncRequest { table: String::new(), ..request(RowEncoding::Struct) };
    let malformed = SyncRequest { last_known_source_position: "here".to_owned(), ..request(RowEncoding::Struct) };
    for transport in TRANSPORTS {
        for (request, words) in [(&unknown, "nope"), (&without, "table"), (&malformed, "last_known_source_position")] {
            let end = OpenRequestStream::new(&server, transport, &start(request)).await.end().await;
            assert!(end.contains(words), "{transport:?}: {end}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_acknowledgement_ends_the_stream() {
    let (database, server) = serve(|_| {}).await;
    let large = u32::to_be_bytes(64 * 1024 + 1);
    for transport in TRANSPORTS {
        for (bytes, words) in [
            ([&[0], &large[..]].concat(), "may have"),
            (vec![1, 0, 0, 0, 1, 0], "compressed"),
            (vec![7, 0, 0, 0, 1, 0], "flags"),
        ] {
            let mut open = OpenRequestStream::new(&server, transport, &start(&request(RowEncoding::Struct))).await;
            open.read_to(database.end()).await;
            open.send(&acknowledgement()).await;
            open.send(&bytes).await;
            let end = within(open.end(), "the end").await;
            assert!(end.contains(words), "{transport:?}: {end}");
        }
    }
}

/// A client that sends acknowledgements without a pause still gets every change, and so do the
/// others.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_acknowledgements_delays_no_other_client() {
    let (database, server) = serve(|_| {}).await;
    let flood = Bytes::from(acknowledgement().repeat(1000));
    let first = Bytes::from(start(&request(RowEncoding::Struct)));
    let pieces = tokio_stream::once(first).chain(tokio_stream::iter(std::iter::repeat(flood)));
    let body = StreamBody::new(pieces.map(|piece| Ok::<_, tonic::Status>(Frame::data(piece))));
    let reply = http2_open(&mut server.channel().await, SYNC, GRPC, tonic::body::Body::new(body)).await;
    let mut flooding = OpenRequestStream { frames: reply.frames(), replica: SimpleReplica::default(), request: None };
    let mut other = OpenRequestStream::new(&server, (CONNECT, false), &start(&request(RowEncoding::Struct))).await;
    for id in 0..50 {
        let end = database.commit(0, vec![Update(id, "flooded".to_owned())]);
        for open in [&mut flooding, &mut other] {
            within(open.read_to(end), "a change").await;
            assert_eq!(open.replica.rows, database.rows_at(0, end));
        }
    }
}

/// A request with one message has to end. Otherwise the server cannot know that it has only one
/// message.
#[tokio::test(flavor = "multi_thread")]
async fn one_message_in_a_request_that_stays_open_is_refused_in_time() {
    let (_database, server) = serve(|options| options.waits.request = Duration::from_millis(200)).await;
    let plain = frame(&request(RowEncoding::Struct).encode_to_vec());
    for transport in TRANSPORTS {
        let end = within(OpenRequestStream::new(&server, transport, &plain).await.end(), "the end").await;
        assert!(end.contains("longer than 0.2"), "{transport:?}: {end}");
    }
    for transport in TRANSPORTS {
        let end = within(OpenRequestStream::new(&server, transport, &[0, 0, 0]).await.end(), "the end").await;
        assert!(end.contains("longer than 0.2"), "{transport:?}: {end}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_carry_the_position() {
    let beat = |options: &mut ServerOptions| options.tables[0].limits.heartbeat_interval = Duration::from_millis(50);
    let (database, server) = serve(beat).await;
    let ours = SyncRequest { instance_id: "another".to_owned(), ..request(RowEncoding::Struct) };
    let binary = request(RowEncoding::PostgresBinary);
    for (request, is_ours) in [(request(RowEncoding::Struct), false), (ours, true), (binary, true)] {
        let mut open = OpenRequestStream::new(&server, (GRPC, true), &start(&request)).await;
        open.read_to(database.end()).await;
        let end = database.commit(0, vec![Update(1, "beat".to_owned())]);
        let heartbeat = loop {
            let frame = open.frames.next().await.unwrap();
            match message(&frame).message.unwrap() {
                Message::Heartbeat(heartbeat) if heartbeat.source_position == end.to_string() => break heartbeat,
                _ => {}
            }
        };
        let earlier = if is_ours { end.to_string() } else { String::new() };
        assert_eq!(heartbeat.earlier_source_position, earlier);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stops_under_open_requests() {
    let (database, mut server) = serve(|_| {}).await;
    let mut streams = Vec::new();
    for transport in TRANSPORTS {
        let mut open = OpenRequestStream::new(&server, transport, &start(&request(RowEncoding::Struct))).await;
        open.read_to(database.end()).await;
        streams.push(open);
    }
    server.stop();
    for open in streams {
        let end = within(open.end(), "the end").await;
        assert!(end.contains("reconnect to continue"), "{end}");
    }
    server.stopped().await;
}
