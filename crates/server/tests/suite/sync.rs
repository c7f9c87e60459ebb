//! A client has the database's rows: from a snapshot, after a resume, and after a cut at any place.

use crate::support::{SimpleReplica, request, serve, serve_with};
use laredo_core::Lsn;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{RowEncoding, SyncMode, SyncRequest};
use laredo_testkit::SimChange::{Delete, Insert, Rekey, Touch, Truncate, Update};
use laredo_testkit::{SimChange, SimDatabase};

const ENCODINGS: [RowEncoding; 2] = [RowEncoding::Struct, RowEncoding::PostgresBinary];

fn text(text: &str) -> String {
    text.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_a_snapshot_and_then_what_commits() {
    for encoding in ENCODINGS {
        let database = SimDatabase::new(1);
        database.commit(0, (0..500).map(|i| Insert(i, format!("row {i}"))).collect());
        let server = serve(&database, "a").await;
        let mut stream = server.sync(request(encoding)).await;
        let mut replica = SimpleReplica::default();
        replica.read_to(&mut stream, database.end()).await;
        assert_eq!(replica.handshake.mode(), SyncMode::FullSnapshot);
        assert_eq!((replica.rows.len(), replica.encoding()), (500, encoding));
        database.commit(0, vec![Update(1, text("new")), Delete(2), Rekey(3, 1003, text("moved")), Touch(4)]);
        database.commit(0, vec![Insert(2, text("again"))]);
        replica.read_to(&mut stream, database.end()).await;
        assert_eq!(replica.rows, database.rows_at(0, database.end()));
        database.commit(0, vec![Truncate, Insert(7, text("seven"))]);
        replica.read_to(&mut stream, database.end()).await;
        assert_eq!(replica.rows, database.rows_at(0, database.end()));
        assert_eq!(replica.snapshots, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extensions_are_invisible_to_who_does_not_ask() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, text("a"))]);
    let server = serve(&database, "a").await;
    let mut stream = server.sync(request(RowEncoding::Struct)).await;
    let mut replica = SimpleReplica::default();
    let Message::Handshake(handshake) = replica.read(&mut stream).await else { panic!() };
    assert!(handshake.encoding.is_none() && handshake.source.is_none());
    assert_eq!((handshake.instance_id.as_str(), handshake.reason.as_str()), ("", ""));
    assert_eq!(handshake.server_current_position, 0);
    let columns: Vec<_> = handshake.columns.iter().map(|c| (c.column_name.as_str(), c.primary_key_ordinal)).collect();
    assert_eq!(columns, [("id", 1), ("body", 0)]);
    let Message::SnapshotBegin(begin) = replica.read(&mut stream).await else { panic!() };
    assert_eq!((begin.row_count, begin.source_position.as_str()), (1, ""));
    let Message::SnapshotRow(_) = replica.read(&mut stream).await else { panic!() };
    let Message::SnapshotEnd(end) = replica.read(&mut stream).await else { panic!() };
    assert_eq!((end.sequence, end.rows_sent, end.source_position.as_str()), (begin.sequence, 1, ""));
    let Message::JournalEntry(marker) = replica.read(&mut stream).await else { panic!() };
    assert_eq!((marker.action.as_str(), marker.sequence), ("", end.sequence));
    assert_eq!(marker.source_position.parse::<Lsn>().unwrap(), database.end());
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_inside_a_transaction_lie_before_its_end() {
    let database = SimDatabase::new(1);
    let first = database.commit(0, vec![Insert(1, text("a"))]);
    let server = serve(&database, "a").await;
    let mut stream = server.sync(request(RowEncoding::Struct)).await;
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, first).await;
    // In the simulated log, a transaction takes ten bytes plus one for each change.
    let end = database.commit(0, (0..30).map(|i| Insert(100 + i, text("b"))).collect());
    let mut positions = Vec::new();
    while positions.len() < 30 {
        if let Message::JournalEntry(entry) = replica.read(&mut stream).await {
            positions.push(entry.source_position.parse::<Lsn>().unwrap());
        }
    }
    assert!(positions.is_sorted(), "{positions:?}");
    assert!(positions[..29].iter().all(|p| *p > first && *p < end), "{positions:?} in {first}..{end}");
    assert_eq!(positions[29], end);
}

/// Returns small and large transactions. A frame holds up to 256 KiB, so the middle ones take
/// several frames.
fn history() -> Vec<Vec<SimChange>> {
    let large = |c: char| c.to_string().repeat(100_000);
    vec![
        (0..5).map(|i| Insert(i, format!("row {i}"))).collect(),
        vec![Update(1, text("one")), Delete(2), Insert(2, text("two"))],
        vec![Rekey(3, 30, text("thirty")), Delete(30)],
        (10..18).map(|i| Insert(i, large('x'))).collect(),
        vec![Delete(10), Update(11, large('y')), Update(12, large('y')), Delete(11), Rekey(12, 13_000, large('z'))],
        vec![Touch(13), Delete(4)],
        vec![Truncate, Insert(1, text("after all")), Insert(2, text("b")), Delete(2)],
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_after_any_message_and_resumed_it_ends_equal() {
    // A new client that reads Structs receives no past changes. So in one case the client has
    // loaded the table before.
    for (encoding, is_early) in
        [(RowEncoding::Struct, false), (RowEncoding::Struct, true), (RowEncoding::PostgresBinary, false)]
    {
        let database = SimDatabase::new(1);
        let start = database.commit(0, vec![Insert(-1, text("first"))]);
        let (one, two) = (serve(&database, "one").await, serve(&database, "two").await);
        one.ready().await;
        two.ready().await;
        let mut early = SimpleReplica::default();
        if is_early {
            early.read_to(&mut one.sync(request(encoding)).await, start).await;
        }
        let begin = early.by_sequence(request(encoding));
        for changes in history() {
            database.commit(0, changes);
        }
        let end = database.end();
        let wanted = database.rows_at(0, end);
        let mut uncut = early.clone();
        let mut stream = one.sync(begin.clone()).await;
        uncut.read_to(&mut stream, end).await;
        assert_eq!(uncut.rows, wanted);
        let messages = uncut.messages - early.messages;
        assert!(messages > 12 || (encoding == RowEncoding::Struct && !is_early), "{messages}");
        for cut in 1..=messages {
            let mut stream = one.sync(begin.clone()).await;
            let mut replica = early.clone();
            for _ in 0..cut {
                // A new client that connects later receives fewer messages.
                if replica.position >= end {
                    break;
                }
                replica.read(&mut stream).await;
            }
            drop(stream);
            let mut elsewhere = replica.clone();
            let mut stream = one.sync(replica.by_sequence(request(encoding))).await;
            resume(&mut replica, &mut stream, end, start).await;
            assert_eq!(replica.rows, wanted, "{encoding:?} by sequence, cut after {cut}");
            let mut stream = two.sync(elsewhere.by_position(request(encoding))).await;
            resume(&mut elsewhere, &mut stream, end, start).await;
            assert_eq!(elsewhere.rows, wanted, "{encoding:?} by position, cut after {cut}");
        }
    }
}

async fn resume(
    replica: &mut SimpleReplica,
    stream: &mut tonic::Streaming<laredo_proto::replication::SyncResponse>,
    end: Lsn,
    start: Lsn,
) {
    // A client that was cut inside its snapshot needs a new one. Any other client must not get one.
    let needs_snapshot = replica.position < start;
    replica.read(stream).await;
    let mode = if needs_snapshot { SyncMode::FullSnapshot } else { SyncMode::Delta };
    if replica.handshake.mode() != mode {
        // A Struct client with the snapshot but without the marker knows a sequence but no
        // position.
        assert!(replica.position == Lsn::ZERO && replica.snapshots == 1, "{replica:?}");
    }
    replica.read_to(stream, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_ahead_waits_for_the_server() {
    let database = SimDatabase::new(2);
    database.commit(0, vec![Insert(1, text("a"))]);
    let server = serve_with(&database, "a", 2, |_| {}).await;
    server.ready().await;
    let ahead = Lsn(database.end().0 + 12);
    let request = SyncRequest { last_known_source_position: ahead.to_string(), ..request(RowEncoding::PostgresBinary) };
    // The headers arrive at once, so that a client that waits for them is not delayed.
    let mut stream = server.sync(request).await;
    // Commits of another table move the position too.
    while database.commit(1, vec![Insert(database.end().0.try_into().unwrap(), text("x"))]) < ahead {}
    let mut replica = SimpleReplica::default();
    replica.position = ahead;
    replica.read_to(&mut stream, database.end()).await;
    assert_eq!(replica.handshake.mode(), SyncMode::Delta);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_beyond_the_database_s_wal_is_another_history_s_at_once_and_stays_so() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, text("a"))]);
    let server = serve(&database, "a").await;
    server.ready().await;
    database.set_written(database.end());
    for encoding in ENCODINGS {
        let ahead = || SyncRequest {
            last_known_source_position: Lsn(database.end().0 + 5).to_string(),
            last_snapshot_id: format!("{encoding:?}-5"),
            last_known_sequence: 5,
            ..request(encoding)
        };
        let beyond = ahead();
        let mut replica = SimpleReplica::default();
        replica.read_to(&mut server.sync(beyond.clone()).await, database.end()).await;
        assert_eq!(replica.handshake.mode(), SyncMode::FullSnapshot);
        assert_eq!(replica.handshake.another_history, encoding == RowEncoding::PostgresBinary);
        // The database passes this position. The journal named in the request still belongs to
        // another history.
        database.commit(0, vec![Update(1, text("b"))]);
        database.set_written(database.end());
        let mut replica = SimpleReplica::default();
        replica.read_to(&mut server.sync(beyond).await, database.end()).await;
        assert_eq!(replica.handshake.mode(), SyncMode::FullSnapshot);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_behind_says_so() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, text("a"))]);
    let change =
        |options: &mut laredo_server::ServerOptions| options.waits.ready = std::time::Duration::from_millis(50);
    let server = serve_with(&database, "a", 1, change).await;
    server.ready().await;
    let request = SyncRequest { last_known_source_position: text("FFFF/0"), ..request(RowEncoding::Struct) };
    let status = server.sync(request).await.message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("FFFF/0"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_larger_than_any_batch_travel_whole() {
    for encoding in ENCODINGS {
        let database = SimDatabase::new(1);
        database.commit(0, (0..3).map(|i| Insert(i, "x".repeat(3_000_000))).collect());
        let server = serve(&database, "a").await;
        let mut stream = server.sync(request(encoding)).await;
        let mut replica = SimpleReplica::default();
        replica.read_to(&mut stream, database.end()).await;
        database.commit(0, (1..5).map(|i| Insert(10 + i, "y".repeat(2_000_000))).collect());
        replica.read_to(&mut stream, database.end()).await;
        assert!(replica.rows == database.rows_at(0, database.end()));
    }
}
