//! A client with a filter has exactly the matching rows, however updates change the match.

use std::collections::BTreeMap;

use crate::support::{SimpleReplica, prefix, request, serve, serve_with};
use laredo_core::Lsn;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{RowEncoding, SyncRequest};
use laredo_testkit::SimChange::{Delete, Insert, Rekey, Truncate, Update};
use laredo_testkit::{SimChange, SimDatabase, SimRows};

const ENCODINGS: [RowEncoding; 2] = [RowEncoding::Struct, RowEncoding::PostgresBinary];

fn on(text: &str) -> String {
    format!("on {text}")
}

fn off(text: &str) -> String {
    format!("off {text}")
}

fn filtered(encoding: RowEncoding) -> SyncRequest {
    SyncRequest { filters: vec![prefix("on ")], ..request(encoding) }
}

fn matching(rows: SimRows) -> SimRows {
    rows.into_iter().filter(|(_, body)| body.starts_with("on ")).collect()
}

/// Returns transactions in which rows enter, change inside and leave the filter. Some match
/// nothing. Large ones span frames and end in changes that do not match.
fn history() -> Vec<Vec<SimChange>> {
    let large = |start: &str| format!("{start}{}", "x".repeat(100_000));
    vec![
        vec![Update(1, off("1")), Update(2, on("2")), Update(3, on("3 again"))],
        vec![Update(1, off("1 again"))],
        vec![Insert(10, on("10")), Insert(11, off("11"))],
        (20..28).map(|i| Insert(i, large(if i < 23 { "on " } else { "off " }))).collect(),
        (30..38).map(|i| Insert(i, large("off "))).collect(),
        vec![Rekey(20, 200, on("moved")), Rekey(30, 300, on("moved in")), Rekey(21, 210, off("moved out"))],
        vec![Delete(22), Delete(31)],
        vec![Truncate, Insert(1, on("1")), Insert(2, off("2")), Delete(1), Insert(3, on("3"))],
        vec![Insert(4, off("4"))],
    ]
}

fn begin() -> SimDatabase {
    let database = SimDatabase::new(2);
    database.commit(0, vec![Insert(1, on("1")), Insert(2, off("2")), Insert(3, on("3")), Insert(4, off("4"))]);
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_and_go_as_they_match() {
    for encoding in ENCODINGS {
        let database = begin();
        let server = serve(&database, "a").await;
        let mut stream = server.sync(filtered(encoding)).await;
        let mut replica = SimpleReplica::default();
        replica.read_to(&mut stream, database.end()).await;
        assert_eq!(replica.rows, matching(database.rows_at(0, database.end())));
        for changes in history() {
            let end = database.commit(0, changes);
            let wanted = matching(database.rows_at(0, end));
            // Batches carry positions even if nothing matched. Structs carry only matching changes.
            while replica.rows != wanted || (encoding == RowEncoding::PostgresBinary && replica.position < end) {
                replica.read(&mut stream).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_after_any_message_and_resumed_it_ends_equal() {
    for encoding in ENCODINGS {
        let database = begin();
        let start = database.end();
        let (one, two) = (serve(&database, "one").await, serve(&database, "two").await);
        one.ready().await;
        two.ready().await;
        for changes in history() {
            database.commit(0, changes);
        }
        // The last row matches, so that clients of both kinds know when they have everything.
        let end = database.commit(0, vec![Insert(1000, on("end"))]);
        let wanted = matching(database.rows_at(0, end));
        let mut uncut = SimpleReplica::default();
        uncut.read_to(&mut one.sync(filtered(encoding)).await, end).await;
        assert_eq!(uncut.rows, wanted);
        for cut in 1..=uncut.messages {
            let mut stream = one.sync(filtered(encoding)).await;
            let mut replica = SimpleReplica::default();
            for _ in 0..cut {
                // A new client that connects later receives fewer messages.
                if replica.position >= end {
                    break;
                }
                replica.read(&mut stream).await;
            }
            drop(stream);
            let mut elsewhere = replica.clone();
            let mut stream = one.sync(replica.by_sequence(filtered(encoding))).await;
            replica.read(&mut stream).await;
            replica.read_to(&mut stream, end).await;
            assert_eq!(replica.rows, wanted, "{encoding:?} by sequence, cut after {cut}");
            let mut stream = two.sync(elsewhere.by_position(filtered(encoding))).await;
            elsewhere.read(&mut stream).await;
            elsewhere.read_to(&mut stream, end).await;
            assert_eq!(elsewhere.rows, wanted, "{encoding:?} by position, cut after {cut}");
            assert!(elsewhere.position >= start);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_client_learns_how_far_the_table_is() {
    let database = begin();
    let server = serve_with(&database, "a", 2, |_| {}).await;
    let mut stream = server.sync(filtered(RowEncoding::PostgresBinary)).await;
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, database.end()).await;
    let sequence = replica.sequence;
    // A change that does not match advances the sequence. A change to another table advances only
    // the position.
    database.commit(0, vec![Update(1, on("1")), Update(2, off("2")), Update(2, off("3"))]);
    let end = database.commit(0, vec![Insert(50, off("50"))]);
    replica.read_to(&mut stream, end).await;
    assert_eq!(replica.sequence, sequence.plus(4));
    let end = database.commit(1, vec![Insert(1, on("elsewhere"))]);
    replica.read_to(&mut stream, end).await;
    assert_eq!((replica.sequence, replica.snapshots), (sequence.plus(4), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_one_filter_share_one_projection() {
    let database = begin();
    let server = serve(&database, "a").await;
    let mut clients = Vec::new();
    for encoding in ENCODINGS {
        for _ in 0..4 {
            let mut stream = server.sync(filtered(encoding)).await;
            let mut replica = SimpleReplica::default();
            replica.read_to(&mut stream, database.end()).await;
            clients.push((replica, stream));
        }
    }
    let count = 1000;
    let mut end = Lsn::ZERO;
    for i in 0..count {
        end = database.commit(0, vec![Insert(1000 + i, on("row"))]);
    }
    for (replica, stream) in &mut clients {
        replica.read_to(stream, end).await;
        assert_eq!(replica.rows, matching(database.rows_at(0, end)));
    }
    // Each change is encoded once for all clients and projected once for each of the two groups.
    // The projections include the base's four rows.
    let count = count as f64;
    assert_eq!(server.metric("laredo_encoded_entries_total{table=\"public.t0\"}").await, count);
    for kind in ["struct", "filtered"] {
        let name = format!("laredo_projected_entries_total{{table=\"public.t0\",kind=\"{kind}\"}}");
        assert_eq!(server.metric(&name).await, count + 4.0, "{kind}");
    }
    drop(clients);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filtered_snapshot_says_how_many_rows_it_sent() {
    for encoding in ENCODINGS {
        let database = begin();
        let server = serve(&database, "a").await;
        let mut stream = server.sync(filtered(encoding)).await;
        let mut replica = SimpleReplica::default();
        let mut counts = BTreeMap::new();
        while counts.len() < 2 {
            match replica.read(&mut stream).await {
                Message::SnapshotBegin(begin) => drop(counts.insert("begin", begin.row_count)),
                Message::SnapshotEnd(end) => drop(counts.insert("end", end.rows_sent)),
                _ => {}
            }
        }
        assert_eq!(counts, BTreeMap::from([("begin", 0), ("end", 2)]), "unknown, then counted");
    }
}
