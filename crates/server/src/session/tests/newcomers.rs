//! Tests of snapshots for clients that read Structs. At the end of the snapshot the client has the
//! state of the head then, in whole transactions.

use std::collections::BTreeMap;

use laredo_proto::replication::{FieldPredicate, ReplicationJournalEntry, SnapshotEnd, field_predicate};
use laredo_testkit::SimRows;
use prost_types::Struct;
use prost_types::value::Kind;

use super::*;

fn cell(row: &Struct) -> (i64, String) {
    match (&row.fields["id"].kind, &row.fields["body"].kind) {
        (Some(Kind::NumberValue(id)), Some(Kind::StringValue(body))) => (*id as i64, body.clone()),
        other => panic!("{other:?}"),
    }
}

/// The part of its snapshot that a client has been sent.
#[derive(Default)]
struct ReceivedSnapshot {
    rows: SimRows,
    /// The number of rows of the base.
    base_rows: i64,
    entries: Vec<ReplicationJournalEntry>,
    ended: Option<(SnapshotEnd, ReplicationJournalEntry)>,
}

impl ReceivedSnapshot {
    /// Processes the next messages.
    async fn pull(&mut self, stream: &mut SessionStream) {
        let mut messages = pull(stream).await.into_iter();
        while let Some(message) = messages.next() {
            match message {
                Message::Handshake(_) | Message::SnapshotBegin(_) => {}
                Message::SnapshotRow(row) => {
                    self.base_rows += 1;
                    self.rows.extend([cell(&row.row.unwrap())]);
                }
                Message::JournalEntry(entry) => self.entry(entry),
                Message::SnapshotEnd(end) => {
                    let Some(Message::JournalEntry(marker)) = messages.next() else { panic!("no marker") };
                    assert_eq!((marker.action.as_str(), marker.sequence), ("", end.sequence));
                    self.ended = Some((end, marker));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn entry(&mut self, entry: ReplicationJournalEntry) {
        assert_eq!(entry.source_position, "0/0", "no client resumes from inside a snapshot");
        match (entry.action.as_str(), &entry.old_values, &entry.new_values) {
            ("INSERT", None, Some(new)) | ("UPDATE", Some(_), Some(new)) => self.rows.extend([cell(new)]),
            ("DELETE", Some(old), None) => assert!(self.rows.remove(&cell(old).0).is_some()),
            other => panic!("{other:?}"),
        }
        self.entries.push(entry);
    }

    /// Processes the rest of the snapshot, and returns the position that it shows.
    async fn finish(&mut self, stream: &mut SessionStream) -> laredo_core::Lsn {
        while self.ended.is_none() {
            self.pull(stream).await;
        }
        let (end, marker) = self.ended.as_ref().unwrap();
        assert_eq!(end.rows_sent, self.base_rows, "entries are not counted");
        marker.source_position.parse().unwrap()
    }
}

async fn commit(quiet: &IdleServer, changes: Vec<SimChange>) -> laredo_core::Lsn {
    let end = quiet.database.commit(0, changes);
    quiet.journal().watch_head().wait_for(|head| head.position >= end).await.unwrap();
    end
}

fn insert(id: i64, body: &str) -> SimChange {
    SimChange::Insert(id, body.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_is_sent_what_is_there_and_not_how_it_came_to_be() {
    let quiet = IdleServer::new().await;
    commit(&quiet, (0..100).map(|id| insert(id, "0")).collect()).await;
    for round in 1..40 {
        commit(&quiet, (0..10).map(|id| SimChange::Update(id, round.to_string())).collect()).await;
    }
    let mut stream = quiet.stream(RowEncoding::Struct);
    let mut loading = ReceivedSnapshot::default();
    let position = loading.finish(&mut stream).await;
    assert_eq!(position, quiet.journal().head().position);
    assert_eq!(loading.rows, quiet.database.rows_at(0, position));
    assert_eq!((loading.base_rows, loading.entries.len()), (100, 0));
    assert!(is_silent(&mut stream).await, "nothing of it comes later");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_ends_with_the_position_of_the_head_where_only_other_tables_changed() {
    let quiet = IdleServer::new().await;
    commit(&quiet, vec![insert(1, "a")]).await;
    let position = quiet.elsewhere(1).await;
    let mut loading = ReceivedSnapshot::default();
    assert_eq!(loading.finish(&mut quiet.stream(RowEncoding::Struct)).await.to_string(), position);
}

/// Commits changes of every kind while a client loads its snapshot.
async fn changes_meanwhile(quiet: &IdleServer) {
    commit(quiet, vec![insert(1000, "new"), SimChange::Delete(3), SimChange::Update(4, "b".to_owned())]).await;
    commit(quiet, vec![SimChange::Rekey(5, 1005, "moved".to_owned())]).await;
    commit(quiet, vec![SimChange::Update(1000, "newer".to_owned())]).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_loads_slowly_has_what_was_committed_meanwhile_at_the_snapshots_end() {
    let quiet = IdleServer::new().await;
    commit(&quiet, (0..100).map(|id| insert(id, "a")).collect()).await;
    let mut stream = quiet.stream(RowEncoding::Struct);
    let mut loading = ReceivedSnapshot::default();
    while loading.rows.is_empty() {
        loading.pull(&mut stream).await;
    }
    changes_meanwhile(&quiet).await;
    advance(Duration::from_millis(1001)).await;
    let position = loading.finish(&mut stream).await;
    assert_eq!(position, quiet.journal().head().position);
    assert_eq!(loading.rows, quiet.database.rows_at(0, position));
    assert_eq!((loading.base_rows, loading.entries.len()), (100, 6));
    assert!(is_silent(&mut stream).await, "nothing comes twice");
    // The following entries carry the client's position as usual.
    let end = commit(&quiet, vec![insert(2000, "later")]).await;
    let later = pull(&mut stream).await;
    let [Message::JournalEntry(later)] = later.as_slice() else { panic!("{later:?}") };
    assert_eq!(later.source_position, end.to_string());
}

#[tokio::test(start_paused = true)]
async fn what_is_committed_within_a_second_follows_the_snapshots_end() {
    let quiet = IdleServer::new().await;
    commit(&quiet, (0..100).map(|id| insert(id, "a")).collect()).await;
    let mut stream = quiet.stream(RowEncoding::Struct);
    let mut loading = ReceivedSnapshot::default();
    while loading.rows.is_empty() {
        loading.pull(&mut stream).await;
    }
    changes_meanwhile(&quiet).await;
    advance(Duration::from_millis(500)).await;
    let position = loading.finish(&mut stream).await;
    assert_eq!(loading.rows, quiet.database.rows_at(0, position));
    assert!(loading.entries.is_empty() && position < quiet.journal().head().position);
    let later = pull(&mut stream).await;
    assert_eq!(later.iter().filter(|m| matches!(m, Message::JournalEntry(_))).count(), 6, "{later:?}");
}

#[tokio::test(start_paused = true)]
async fn a_filter_holds_for_what_is_committed_before_the_snapshots_end() {
    let quiet = IdleServer::new().await;
    commit(&quiet, (0..100).map(|id| insert(id, if id % 2 == 0 { "a" } else { "b" })).collect()).await;
    let prefix = Some(field_predicate::Match::Prefix("a".to_owned()));
    let filters = vec![FieldPredicate { field: "body".to_owned(), r#match: prefix }];
    let mut stream = quiet.ask(SyncRequest { filters, ..SyncRequest::default() });
    let mut loading = ReceivedSnapshot::default();
    while loading.rows.is_empty() {
        loading.pull(&mut stream).await;
    }
    let leaves = SimChange::Update(0, "b, left".to_owned());
    let comes = SimChange::Update(1, "a, came".to_owned());
    commit(&quiet, vec![leaves, comes, SimChange::Update(3, "b".to_owned()), insert(200, "b")]).await;
    // The filter lets nothing of the last transaction through.
    commit(&quiet, vec![insert(201, "b")]).await;
    advance(Duration::from_millis(1001)).await;
    let position = loading.finish(&mut stream).await;
    assert_eq!(position, quiet.journal().head().position);
    let all = quiet.database.rows_at(0, position);
    let wanted: BTreeMap<_, _> = all.into_iter().filter(|(_, body)| body.starts_with('a')).collect();
    assert_eq!(loading.rows, wanted);
    assert_eq!((loading.base_rows, loading.entries.len()), (50, 2));
}

/// Returns changes that are larger than a segment, so that the journal has them in several pieces.
fn large(first: i64) -> Vec<SimChange> {
    (first..first + 40).map(|id| insert(id, &"x".repeat(100_000))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_never_ends_inside_a_transaction() {
    let quiet = IdleServer::new().await;
    commit(&quiet, vec![insert(0, "a")]).await;
    let mut stream = quiet.stream(RowEncoding::Struct);
    let mut loading = ReceivedSnapshot::default();
    while loading.rows.is_empty() {
        loading.pull(&mut stream).await;
    }
    let mut first = 1000;
    commit(&quiet, large(first)).await;
    advance(Duration::from_millis(1001)).await;
    // Each takes so long that another one is committed meanwhile, until the time limit is over.
    while loading.ended.is_none() {
        advance(Duration::from_millis(700)).await;
        loading.pull(&mut stream).await;
        if loading.entries.last().is_some_and(|last| last.sequence >= quiet.journal().head().sequence.to_wire()) {
            first += 100;
            commit(&quiet, large(first)).await;
        }
    }
    let position = loading.finish(&mut stream).await;
    assert!(loading.entries.len() > 40 && loading.entries.len() % 40 == 0, "{}", loading.entries.len());
    assert_eq!(loading.rows, quiet.database.rows_at(0, position));
}

#[tokio::test(start_paused = true)]
async fn a_client_slower_than_the_writers_is_not_kept_from_its_snapshots_end() {
    let quiet = IdleServer::new().await;
    commit(&quiet, vec![insert(0, "a")]).await;
    let mut stream = quiet.stream(RowEncoding::Struct);
    let mut loading = ReceivedSnapshot::default();
    while loading.rows.is_empty() {
        loading.pull(&mut stream).await;
    }
    let (began, mut id) = (Instant::now(), 1);
    while loading.ended.is_none() {
        commit(&quiet, vec![insert(id, "a")]).await;
        id += 1;
        advance(Duration::from_millis(1500)).await;
        loading.pull(&mut stream).await;
        assert!(began.elapsed() < Duration::from_secs(120), "it is kept for ever");
    }
    assert!(began.elapsed() > Duration::from_secs(30), "it would have been there soon");
    let position = loading.finish(&mut stream).await;
    assert_eq!(loading.rows, quiet.database.rows_at(0, position));
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_hears_the_handshake_at_once_and_then_that_the_stream_lives() {
    let quiet = IdleServer::new().await;
    commit(&quiet, vec![insert(0, "a")]).await;
    // A thread makes the base. It is blocked until this one waits for it.
    let mut stream = quiet.stream(RowEncoding::Struct);
    let first = pull(&mut stream).await;
    let [Message::Handshake(handshake)] = first.as_slice() else { panic!("{first:?}") };
    assert_eq!(handshake.mode(), SyncMode::FullSnapshot);
    let next = pull(&mut stream).await;
    let [Message::SnapshotBegin(begin)] = next.as_slice() else { panic!("{next:?}") };
    assert_eq!((begin.snapshot_id.as_str(), begin.row_count), (handshake.snapshot_id.as_str(), 1));
    assert_eq!(begin.sequence, quiet.journal().head().sequence.to_wire());
}

#[tokio::test(start_paused = true)]
async fn who_reads_batches_is_sent_the_newest_base_and_what_follows() {
    let quiet = IdleServer::new().await;
    quiet.rows(0..3).await;
    let mut stream = quiet.stream(RowEncoding::PostgresBinary);
    assert!(begins(&pull(&mut stream).await));
    assert!(matches!(pull(&mut stream).await.as_slice(), [Message::SnapshotEnd(end)] if end.rows_sent == 0));
    assert_eq!(quiet.journal().info().bases, 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_follows_keeps_no_base() {
    let quiet = IdleServer::new().await;
    commit(&quiet, vec![insert(0, "a")]).await;
    let mut stream = quiet.stream(RowEncoding::Struct);
    ReceivedSnapshot::default().finish(&mut stream).await;
    assert!(is_silent(&mut stream).await);
    let first = Arc::downgrade(&quiet.journal().base());
    commit(&quiet, vec![insert(1, "a")]).await;
    advance(Duration::from_secs(1)).await;
    let mut newcomer = quiet.stream(RowEncoding::Struct);
    ReceivedSnapshot::default().finish(&mut newcomer).await;
    assert_eq!(quiet.journal().info().bases, 3);
    assert!(first.upgrade().is_none(), "its file takes room");
}
