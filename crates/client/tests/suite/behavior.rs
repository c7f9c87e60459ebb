//! The guarantees of a replica, each tested against a scripted server.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::*;
use futures_util::StreamExt;
use laredo_client::{
    CellError, ColumnPredicate, GrpcCode, KeyError, LagError, NotReady, Replica, ReplicaError, Row, StreamMode, Unique,
};
use laredo_core::{Cell, Change, Lsn, Sequence};
use laredo_proto::replication::{GoAway, SyncMode, sync_response};
use tonic::Status;

fn small() -> ScriptedJournal {
    let mut journal = ScriptedJournal::new(&[row(1, &["a", "x"]), row(2, &["b", "x"]), row(3, &["c", "y"])]);
    journal.commit(vec![update(1, "a2", "x")]);
    journal
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_and_typed() {
    let server = ScriptedServer::start(|_, request| Ok(then_hang(small().answer(&request)))).await;
    let replica = server.replica().filter(ColumnPredicate::equals("group", "x")).start().unwrap();
    replica.ready(LONG).await.unwrap();

    let row = replica.get(1).unwrap().unwrap();
    assert_eq!(row.get::<i64>("id").unwrap(), 1);
    assert_eq!(row.get::<Option<String>>(1).unwrap().as_deref(), Some("a2"));
    assert!(!row.is_null("name") && row.is_null("nothing"));
    assert_eq!(row.cells().count(), 3);
    assert_eq!(replica.lookup("b").unwrap().unwrap().get::<i64>(0).unwrap(), 2);
    assert_eq!(replica.get(99).unwrap(), None);
    let error = row.get::<i32>("name").unwrap_err();
    assert_eq!(error.to_string(), "column `name` is text, which cannot be read as i32");
    assert!(matches!(row.get::<i32>("nope"), Err(CellError::NoColumn { .. })));

    let view = replica.view();
    assert_eq!((view.len(), view.position()), (3, Lsn(0x200)));
    assert_eq!(view.committed_at().unwrap().0, 0x200);
    assert_eq!(view.index("by_group", "x").unwrap().count(), 2);
    assert!(matches!(view.index("by_age", 1), Err(KeyError::NoIndex(_))));
    assert!(matches!(view.get((1, 2)), Err(KeyError::Count { expected: 1, found: 2 })));
    assert!(matches!(view.get("one"), Err(KeyError::Value { .. })));
    drop(view);

    let status = replica.status();
    assert_eq!((status.mode, status.rows), (Some(StreamMode::FullSnapshot), 3));
    assert_eq!(status.reason, "the script says so");
    assert_eq!(server.requests.lock().unwrap()[0].filters.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_by_several_fields_and_by_other_unique_indexes() {
    let server = ScriptedServer::start(|_, request| Ok(then_hang(small().answer(&request)))).await;
    let replica = Replica::builder(&server.url, laredo_client::TableName::new("public", "t"))
        .lookup(["group", "name"])
        .index("by_name", ["name"], Unique::Yes)
        .start()
        .unwrap();
    replica.ready(LONG).await.unwrap();
    assert_eq!(id(replica.lookup(("x", "a2")).unwrap().as_ref()), 1);
    assert_eq!(id(replica.lookup(("y", "c")).unwrap().as_ref()), 3);
    assert_eq!((replica.lookup(("x", "a")).unwrap(), replica.lookup(("a2", "x")).unwrap()), (None, None));
    let view = replica.view();
    assert!(matches!(view.lookup("x"), Err(KeyError::Count { expected: 2, found: 1 })));
    let named =
        |name: &str| view.index("by_name", name).unwrap().map(|row| row.get::<i64>("id").unwrap()).collect::<Vec<_>>();
    assert_eq!((named("b"), named("a2"), named("a")), (vec![2], vec![1], vec![]));
}

#[test]
fn a_replica_and_its_views_go_to_any_thread() {
    fn is_shared<T: Clone + Send + Sync + 'static>() {}
    fn is_sendable<T: Send + Sync>() {}
    is_shared::<Replica>();
    is_shared::<Row>();
    is_sendable::<laredo_client::View<'_>>();
    is_sendable::<laredo_client::RowRef<'_>>();
    is_sendable::<laredo_client::Transactions>();
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_is_the_head_that_the_server_had() {
    let (sender, feed) = feeder(|| {
        let mut journal = small();
        journal.commit(vec![delete(2)]);
        let mut messages = journal.snapshot_at(0);
        messages.extend(journal.batches(0));
        messages
    });
    let server = ScriptedServer::start(feed).await;
    let replica = server.replica().start().unwrap();
    until(&replica, |view| view.position() == Lsn(0x200)).await;
    assert!(!replica.status().ready);
    let waited = replica.ready(Duration::from_millis(1)).await;
    assert!(matches!(waited, Err(NotReady::Timeout { .. })), "{waited:?}");
    let mut journal = small();
    journal.commit(vec![delete(2)]);
    journal.batches(1).into_iter().for_each(|m| send(&sender, m));
    replica.ready(LONG).await.unwrap();
    assert_eq!(replica.view().position(), Lsn(0x300));
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_move_the_position_and_make_a_filtered_replica_ready_and_young() {
    let (sender, feed) = feeder(|| {
        let mut journal = small();
        let messages = journal.snapshot_at(0);
        journal.commit(vec![]);
        messages
    });
    let server = ScriptedServer::start(feed).await;
    let start = Instant::now();
    let now = Arc::new(Mutex::new(Duration::ZERO));
    let clock = now.clone();
    let replica = server.replica().clock(move || start + *clock.lock().unwrap()).start().unwrap();
    until(&replica, |view| view.is_loaded()).await;
    assert!(!replica.status().ready);
    assert_eq!(replica.view().age(), Duration::MAX);
    send(&sender, heartbeat(Sequence(9999), Some(Lsn(0x500))));
    until(&replica, |view| view.position() == Lsn(0x500)).await;
    replica.ready(LONG).await.unwrap();
    *now.lock().unwrap() = Duration::from_secs(7);
    assert_eq!(replica.view().age(), Duration::from_secs(7));
    send(&sender, heartbeat(Sequence(9999), Some(Lsn(0x600))));
    until(&replica, |view| view.position() == Lsn(0x600) && view.age() == Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_snapshot_takes_the_place_of_the_old_state_in_one_step() {
    let old = small();
    let mut new = small();
    new.commit((10..200).map(|id| insert(id, &format!("n{id}"), "z")).collect());
    new.commit(vec![delete(2)]);
    new.instance = "another".to_owned();
    let (before, after) = (old.states()[&old.head()].clone(), new.states()[&new.head()].clone());
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let opened = gate.clone();
    let server = ScriptedServer::start(move |number, request| {
        if number == 0 {
            return Ok(then_cut(small().answer(&request)));
        }
        let mut messages = new.snapshot_at(3);
        let rest = messages.split_off(messages.len() / 2);
        let gate = gate.clone();
        let rest = futures_util::stream::once(async move {
            gate.acquire().await.unwrap().forget();
            futures_util::stream::iter(rest).map(Ok)
        });
        let first = futures_util::stream::iter(messages).map(Ok);
        Ok(first.chain(rest.flatten()).chain(futures_util::stream::pending()).boxed())
    })
    .await;
    let replica = server.replica().start().unwrap();
    until(&replica, |view| view.position() == old.head()).await;
    let mut transactions = replica.transactions();
    let reader = replica.clone();
    let (wanted_before, wanted_after) = (before.clone(), after.clone());
    let polling = std::thread::spawn(move || {
        loop {
            let view = reader.view();
            let rows = rows_in(&view);
            check_indexes(&view);
            if rows == wanted_after {
                return;
            }
            assert_eq!(rows, wanted_before);
        }
    });
    let mut status = replica.watch_status();
    status.wait_for(|s| s.connects == 2).await.unwrap();
    assert_eq!(rows_in(&replica.view()), before);
    opened.add_permits(1);
    tokio::task::spawn_blocking(|| polling.join().unwrap()).await.unwrap();
    let told = transactions.next().await.unwrap().unwrap();
    assert_eq!(told.committed_at, None);
    assert_eq!(told.changes.iter().filter(|c| c.old.is_none()).count(), 190);
    let gone: Vec<i64> = told.changes.iter().filter(|c| c.new.is_none()).map(|c| id(c.old.as_ref())).collect();
    assert_eq!(gone, [2]);
    assert_eq!(told.changes.len(), 191, "rows that did not change are not told of");
    // The rows are visible before the status reports them.
    status.wait_for(|s| s.resyncs == 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_does_not_fit_ends_in_a_full_snapshot_while_the_old_state_is_served() {
    let server = ScriptedServer::start(|number, request| {
        let mut messages = small().answer(&request);
        if number == 0 {
            let mut wrong = small();
            wrong.commit(vec![update(3, "c3", "y")]);
            wrong.commit(vec![insert(2, "again", "x")]);
            messages.extend(wrong.batches(1));
            messages.extend(wrong.batches(2));
        } else {
            assert_eq!((request.last_known_source_position.as_str(), request.instance_id.as_str()), ("", ""));
            messages = mended().answer(&request);
        }
        Ok(then_hang(messages))
    })
    .await;
    let replica = server.replica().start().unwrap();
    let mut transactions = replica.transactions();
    let mut status = replica.watch_status();
    let seen = status.wait_for(|s| s.last_error.is_some()).await.unwrap();
    assert!(matches!(seen.last_error, Some(ReplicaError::State(_))), "{seen:?}");
    assert_eq!(replica.view().len(), 3);
    status.wait_for(|s| s.resyncs == 1 && s.error.is_none()).await.unwrap();
    until(&replica, |view| view.position() == mended().head()).await;
    assert_eq!(rows_in(&replica.view()), mended().states()[&mended().head()]);
    replica.stop().await;
    let mut last = Lsn::ZERO;
    while let Some(told) = transactions.next().await {
        let position = told.unwrap().position;
        assert!(position >= last, "from {last} back to {position}");
        last = position;
    }
}

/// Returns the small journal with the transactions that should have followed it.
fn mended() -> ScriptedJournal {
    let mut journal = small();
    journal.commit(vec![update(3, "c3", "y")]);
    journal.commit(vec![delete(2)]);
    journal
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_frames_end_in_a_full_snapshot() {
    // All attacks run at once, because a replica waits a little before it tries again.
    let attacks = (0..24).map(|number| async move {
        let server = ScriptedServer::start(move |stream, request| match stream {
            0 => Ok(then_hang(attack(number))),
            _ => Ok(then_hang(small().answer(&request))),
        })
        .await;
        let replica = server.replica().start().unwrap();
        let mut status = replica.watch_status();
        let seen = status.wait_for(|s| s.last_error.is_some()).await.unwrap();
        assert!(matches!(seen.last_error, Some(ReplicaError::Protocol(_))), "{number}: {seen:?}");
        until(&replica, |view| view.position() == small().head()).await;
        assert_eq!(rows_in(&replica.view()), small().states()[&small().head()]);
        let asked = server.requests.lock().unwrap().clone();
        assert!(asked.len() == 2 && asked[1].last_known_source_position.is_empty(), "{number}: {asked:?}");
        replica.stop().await;
    });
    futures_util::future::join_all(attacks).await;
}

/// Returns a snapshot with a damaged batch inside or after it. The higher the number, the more it
/// resembles a batch: random bytes, unknown actions, lengths past the end, torn cells.
fn attack(number: usize) -> Vec<laredo_proto::replication::SyncResponse> {
    let mut messages = small().snapshot_at(0);
    let random = |i: usize| (number.wrapping_mul(31).wrapping_add(i * i * 17) % 251) as u8;
    let mut bytes: Vec<u8> = (0..number * 5).map(random).collect();
    if number.is_multiple_of(3) && bytes.len() > 9 {
        bytes[..5].copy_from_slice(&[1, 0, 0, 0, 4]);
    }
    let place = if number.is_multiple_of(2) { messages.len() - 1 } else { messages.len() };
    let mut bad = small().batches(0).remove(0);
    let Some(sync_response::Message::Batch(batch)) = &mut bad.message else { panic!("{bad:?}") };
    match number {
        0 => batch.count = 7,
        1 => batch.position = 0,
        _ => (batch.entries, batch.count) = (bytes.into(), u32::MAX),
    }
    messages.insert(place, bad);
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_returned_at_once() {
    let server = ScriptedServer::start(|_, _| Err(Status::not_found("no table public.t"))).await;
    let replica = server.replica().start().unwrap();
    let refused = replica.ready(LONG).await.unwrap_err();
    assert!(matches!(&refused, NotReady::Definite(ReplicaError::Refused { code: GrpcCode::NotFound, .. })));
    assert_eq!(refused.to_string(), "the server refuses public.t: no table public.t (NotFound)");

    let server = ScriptedServer::start(|_, request| Ok(then_hang(small().answer(&request)))).await;
    let replica = server.replica().index("by_age", ["age"], Unique::No).start().unwrap();
    let refused = replica.ready(LONG).await.unwrap_err();
    assert!(matches!(refused, NotReady::Definite(ReplicaError::Index(_))), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again() {
    let server = ScriptedServer::start(|number, request| match number {
        0 | 1 => Err(Status::unavailable("starting")),
        _ => Ok(then_hang(small().answer(&request))),
    })
    .await;
    let replica = server.replica().start().unwrap();
    replica.ready(LONG).await.unwrap();
    assert!(matches!(replica.status().last_error, Some(ReplicaError::Ended { code: GrpcCode::Unavailable, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farewell_moves_the_replica_to_the_next_stream() {
    let server = ScriptedServer::start(|number, request| {
        let mut messages = small().answer(&request);
        if number == 0 {
            let farewell = GoAway { reason: "draining".to_owned(), drain_deadline_unix_ms: 0 };
            messages.push(message(sync_response::Message::GoAway(farewell)));
        }
        Ok(then_hang(messages))
    })
    .await;
    let replica = server.replica().start().unwrap();
    let mut status = replica.watch_status();
    let status = status.wait_for(|s| s.connects == 2).await.unwrap();
    assert_eq!(status.mode, Some(StreamMode::Delta));
    assert_eq!(server.requests.lock().unwrap()[1].last_known_source_position, "0/200");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_stream_is_read_until_another_server_has_granted_one() {
    let mut journal = small();
    let last = [journal.commit(vec![delete(1)]), journal.commit(vec![delete(2)])];
    let old: Vec<_> = (1..3).map(|i| journal.batches(i)).collect();
    let mut newer = journal.on_another_server();
    let end = newer.commit(vec![insert(9, "i", "x")]);
    let states = newer.states();
    let mut first = small().answer(&Default::default());
    first.push(message(sync_response::Message::GoAway(GoAway::default())));
    let (to_old, from_old) = then_fed(first);
    let (to_new, from_new) = then_fed(Vec::new());
    let streams = Mutex::new(vec![from_new, from_old]);
    let (asked, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let server = ScriptedServer::start(move |number, request| {
        asked.send(request).unwrap();
        match number {
            1 => Err(Status::unavailable("not there yet")),
            _ => Ok(streams.lock().unwrap().pop().unwrap()),
        }
    })
    .await;
    let replica = server.replica().start().unwrap();
    let mut transactions = replica.transactions();
    // The server refuses the first attempt, then accepts one without an answer. The old stream
    // continues.
    for _ in 0..2 {
        requests.recv().await.unwrap();
    }
    let resume = requests.recv().await.unwrap();
    assert_eq!(resume.last_known_source_position, "0/200");
    old.into_iter().flatten().for_each(|m| to_old.send(m).unwrap());
    until(&replica, |view| view.position() == last[1]).await;
    assert_eq!((replica.status().connects, replica.status().connected), (1, true));
    // The new stream repeats the transactions since its request. The replica does not apply them
    // twice.
    newer.answer(&resume).into_iter().for_each(|m| to_new.send(m).unwrap());
    until(&replica, |view| view.position() == end).await;
    assert_eq!(rows_in(&replica.view()), states[&end]);
    let status = replica.status();
    assert_eq!((status.connects, status.resyncs, status.last_error), (2, 0, None));
    replica.stop().await;
    let mut positions = Vec::new();
    while let Some(told) = transactions.next().await {
        positions.push(told.unwrap().position);
    }
    assert!(positions.is_sorted_by(|a, b| a < b) && positions.ends_with(&[last[0], last[1], end]), "{positions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_head_is_behind_does_not_take_the_replica_back() {
    let server = ScriptedServer::start(|number, request| match number {
        0 => Ok(then_cut(small().answer(&request))),
        1 => Ok(then_hang(ScriptedJournal::new(&[row(1, &["a", "x"])]).snapshot_at(0))),
        _ => Ok(then_hang(small().answer(&request))),
    })
    .await;
    let replica = server.replica().start().unwrap();
    let mut status = replica.watch_status();
    status
        .wait_for(|s| matches!(s.last_error, Some(ReplicaError::Behind { ours: Lsn(0x200), theirs: Lsn(0x100) })))
        .await
        .unwrap();
    assert_eq!(replica.view().position(), Lsn(0x200));
    status.wait_for(|s| s.connects == 3 && s.error.is_none()).await.unwrap();
    assert_eq!(replica.view().position(), Lsn(0x200));
    assert_eq!(server.requests.lock().unwrap()[2].last_known_source_position, "0/200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_older_than_what_was_shown_is_caught_up_out_of_sight() {
    let mut newer = small();
    newer.commit(vec![delete(2)]);
    newer.instance = "another".to_owned();
    let (head, states) = (newer.head(), newer.states());
    let (sender, feed) = feeder(move || newer.snapshot_at(0));
    let server = ScriptedServer::start(move |number, request| match number {
        0 => Ok(then_cut(small().answer(&request))),
        _ => feed(number, request),
    })
    .await;
    let replica = server.replica().start().unwrap();
    until(&replica, |view| view.position() == Lsn(0x200)).await;
    let mut transactions = replica.transactions();
    let mut status = replica.watch_status();
    status.wait_for(|s| s.connects == 2).await.unwrap();
    let mut newer = small();
    newer.commit(vec![delete(2)]);
    newer.batches(0).into_iter().for_each(|m| send(&sender, m));
    // Nothing differs from the rows shown at this position, and the snapshot becomes visible in one
    // step.
    let told = transactions.next().await.unwrap().unwrap();
    assert_eq!((told.position, told.changes.len()), (Lsn(0x200), 0));
    assert_eq!(rows_in(&replica.view()), states[&Lsn(0x200)]);
    status.wait_for(|s| s.resyncs == 1).await.unwrap();
    newer.batches(1).into_iter().for_each(|m| send(&sender, m));
    let told = transactions.next().await.unwrap().unwrap();
    assert_eq!((told.position, told.changes.len()), (head, 1));
    assert_eq!(rows_in(&replica.view()), states[&head]);
    assert_eq!(replica.status().last_error.map(|e| matches!(e, ReplicaError::Ended { .. })), Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_shows_a_state_that_only_lacked_the_position() {
    let (sender, feed) = feeder(|| small().snapshot_at(0));
    let server = ScriptedServer::start(move |number, request| match number {
        0 => Ok(then_cut(small().answer(&request))),
        _ => feed(number, request),
    })
    .await;
    let replica = server.replica().start().unwrap();
    until(&replica, |view| view.position() == Lsn(0x200)).await;
    let mut status = replica.watch_status();
    status.wait_for(|s| s.connects == 2).await.unwrap();
    send(&sender, heartbeat(Sequence(9999), Some(Lsn(0x150))));
    send(&sender, heartbeat(Sequence(9999), Some(Lsn(0x250))));
    until(&replica, |view| view.position() == Lsn(0x250)).await;
    assert_eq!(replica.view().len(), 3);
    status.wait_for(|s| s.resyncs == 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_another_definition_are_not_read_as_the_replicas_own() {
    let mut renamed = ScriptedJournal::new(&[row(1, &["a", "x"])]);
    renamed.commit(vec![Change::Schema(table_schema_with("title", &[])), update(1, "b", "x")]);
    let server = ScriptedServer::start(move |number, request| match number {
        0 => Ok(then_cut(ScriptedJournal::new(&[row(1, &["a", "x"])]).answer(&request))),
        // This server had the new definition before the position that both servers are at.
        1 => {
            let mut messages = vec![renamed.handshake_in(SyncMode::Delta, &table_schema_with("title", &[]))];
            let mut later = ScriptedJournal::new(&[row(1, &["a", "x"])]);
            later.commit(vec![update(1, "b", "x")]);
            messages.extend(later.batches(0));
            Ok(then_hang(messages))
        }
        _ => Ok(then_hang(renamed.answer(&request))),
    })
    .await;
    let replica = Replica::builder(&server.url, laredo_client::TableName::new("public", "t")).seed(1).start().unwrap();
    let mut status = replica.watch_status();
    let is_reported =
        |s: &laredo_client::ReplicaStatus| matches!(s.last_error, Some(ReplicaError::Schema { position: Lsn(0x100) }));
    status.wait_for(is_reported).await.unwrap();
    until(&replica, |view| view.position() == Lsn(0x200)).await;
    assert_eq!(replica.get(1).unwrap().unwrap().get::<&str>("title").unwrap(), "b");
    let requests = server.requests.lock().unwrap().clone();
    assert_eq!(requests[1].last_known_source_position, "0/100");
    assert_eq!((requests[2].last_known_source_position.as_str(), requests[2].instance_id.as_str()), ("", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_lags_gets_an_error() {
    let mut journal = ScriptedJournal::new(&[]);
    for id in 0..20 {
        journal.commit(vec![insert(id, &format!("n{id}"), "x")]);
    }
    let head = journal.head();
    let (sender, feed) = feeder(|| ScriptedJournal::new(&[]).snapshot_at(0));
    let server = ScriptedServer::start(feed).await;
    let replica = server.replica().pending_changes_max(5).start().unwrap();
    until(&replica, |view| view.is_loaded()).await;
    let mut slow = replica.transactions();
    (0..20).flat_map(|i| journal.batches(i)).for_each(|m| send(&sender, m));
    until(&replica, |view| view.position() == head).await;
    // The view may show transactions before the stream reports them. So the test waits until all
    // are delivered or counted as left out.
    let (mut left_out, mut told) = (0, 0);
    while left_out + told < 20 {
        match slow.next().await.unwrap() {
            Ok(_) => told += 1,
            Err(LagError { transactions, .. }) => left_out += transactions,
        }
    }
    assert!(left_out > 0 && left_out + told == 20, "{left_out} left out, {told} told");
    let next = journal.commit(vec![delete(3)]);
    journal.batches(20).into_iter().for_each(|m| send(&sender, m));
    let told = slow.next().await.unwrap().unwrap();
    assert_eq!((told.position, id(told.changes[0].old.as_ref())), (next, 3));
    replica.stop().await;
    assert!(slow.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_get_old_and_new_and_one_that_panics_harms_no_other() {
    let (sender, feed) = feeder(|| ScriptedJournal::new(&[row(1, &["a", "x"])]).snapshot_at(0));
    let server = ScriptedServer::start(feed).await;
    let replica = server.replica().start().unwrap();
    until(&replica, |view| view.is_loaded()).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let list = heard.clone();
    let name = |row: Option<&Row>| row.map(|row| row.get::<String>("name").unwrap());
    let _bad = replica.listen(|_, _| panic!("a listener that panics"));
    let looking = replica.clone();
    let good = replica.listen(move |old, new| {
        assert_eq!(looking.get(1).unwrap().as_ref(), new, "a change is told of when it is visible");
        list.lock().unwrap().push((name(old), name(new)));
    });
    let mut journal = ScriptedJournal::new(&[row(1, &["a", "x"])]);
    journal.commit(vec![update(1, "b", "x")]);
    journal.batches(0).into_iter().for_each(|m| send(&sender, m));
    until(&replica, |view| view.position() == journal.head()).await;
    journal.commit(vec![Change::Truncate]);
    journal.batches(1).into_iter().for_each(|m| send(&sender, m));
    let mut after = replica.transactions();
    until(&replica, |view| view.is_empty()).await;
    drop(good);
    journal.commit(vec![insert(1, "c", "x")]);
    journal.batches(2).into_iter().for_each(|m| send(&sender, m));
    while replica.view().is_empty() {
        after.next().await.unwrap().unwrap();
    }
    let some = |s: &str| Some(s.to_owned());
    assert_eq!(*heard.lock().unwrap(), [(some("a"), some("b")), (some("b"), None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_view_stops_the_stream_and_its_end_lets_it_continue() {
    let mut journal = ScriptedJournal::new(&[]);
    let wide = "w".repeat(10_000);
    for id in 0..400 {
        journal.commit(vec![insert(id, &format!("{id}{wide}"), "x")]);
    }
    let (head, states) = (journal.head(), journal.states());
    let (sender, feed) = feeder(|| ScriptedJournal::new(&[]).snapshot_at(0));
    let server = ScriptedServer::start(feed).await;
    let replica = server.replica().pending_bytes_max(50_000).start().unwrap();
    until(&replica, |view| view.is_loaded()).await;
    (0..2).flat_map(|i| journal.batches(i)).for_each(|m| send(&sender, m));
    until(&replica, |view| view.len() == 2).await;
    let held = replica.view();
    let (position, rows) = (held.position(), rows_in(&held));
    (2..400).flat_map(|i| journal.batches(i)).for_each(|m| send(&sender, m));
    // While the view is held, other readers see at most one newer state.
    let seen: BTreeSet<Lsn> = (0..1000).map(|_| replica.view().position()).collect();
    assert!(seen.iter().all(|p| *p >= position) && !seen.contains(&head) && seen.len() <= 2, "{seen:?} {position}");
    assert_eq!((held.position(), rows_in(&held)), (position, rows));
    drop(held);
    until(&replica, |view| view.position() == head).await;
    assert_eq!(rows_in(&replica.view()), states[&head]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_stream_is_reported_while_a_view_delays_the_replica() {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let receiver = Mutex::new(Some(receiver));
    let server = ScriptedServer::start(move |_, request| match receiver.lock().unwrap().take() {
        Some(mut receiver) => Ok(futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)).boxed()),
        None => Ok(then_hang(mended().answer(&request))),
    })
    .await;
    let replica = server.replica().start().unwrap();
    let feed = |messages: Vec<_>| messages.into_iter().for_each(|message| sender.send(Ok(message)).unwrap());
    feed(mended().snapshot_at(0));
    until(&replica, |view| view.is_loaded()).await;
    let held = replica.view();
    feed(mended().batches(0));
    until(&replica, |view| view.position() == Lsn(0x200)).await;
    // The next state would replace the state that the view holds, so the replica waits for the
    // view.
    feed(mended().batches(1));
    let mut status = replica.watch_status();
    assert!(status.current().connected);
    drop(sender);
    tokio::time::timeout(LONG, status.wait_for(|s| !s.connected)).await.expect("it is told").unwrap();
    assert_eq!(replica.view().position(), Lsn(0x200));
    drop(held);
    until(&replica, |view| view.position() == mended().head()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_replica_serves_what_it_had() {
    let server = ScriptedServer::start(|_, request| Ok(then_hang(small().answer(&request)))).await;
    let replica = server.replica().start().unwrap();
    replica.ready(LONG).await.unwrap();
    let other = replica.clone();
    let held = other.view();
    replica.stop().await;
    assert_eq!(rows_in(&held), small().states()[&small().head()]);
    assert!(replica.status().stopped && !replica.status().connected);
    assert_eq!(replica.lookup("b").unwrap().unwrap().get::<i64>("id").unwrap(), 2);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_thread_panics_is_stopped_and_serves_what_it_had() {
    struct PanickingWaker;
    impl std::task::Wake for PanickingWaker {
        fn wake(self: Arc<Self>) {
            panic!("a waker that panics, on the replica's own thread");
        }
    }
    let (sender, feed) = feeder(|| small().snapshot_at(0));
    let server = ScriptedServer::start(feed).await;
    let replica = server.replica().start().unwrap();
    until(&replica, |view| view.is_loaded()).await;
    let mut transactions = replica.transactions();
    let waker = Arc::new(PanickingWaker).into();
    assert!(transactions.poll_next_unpin(&mut std::task::Context::from_waker(&waker)).is_pending());
    small().batches(0).into_iter().for_each(|m| send(&sender, m));
    let mut status = replica.watch_status();
    tokio::time::timeout(LONG, status.wait_for(|s| s.stopped)).await.expect("it is told").unwrap();
    tokio::time::timeout(LONG, replica.stop()).await.expect("it does not hang");
    assert_eq!(replica.view().len(), 3);
}

#[tokio::test]
async fn addresses_are_checked_at_the_start() {
    let table = laredo_client::TableName::new("public", "t");
    for server in ["", "laredo:4002", "ftp://laredo"] {
        let started = Replica::builder(server, table.clone()).start();
        assert!(started.is_err(), "{server}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nulls_are_nulls() {
    let mut null = laredo_core::TupleBuf::new();
    null.push(Cell::Value(&5_i64.to_be_bytes()));
    null.push(Cell::Null);
    null.push(Cell::Null);
    let journal = ScriptedJournal::new(&[null.as_ref().to_tuple()]);
    let server = ScriptedServer::start(move |_, request| Ok(then_hang(journal.answer(&request)))).await;
    let replica = server.replica().start().unwrap();
    replica.ready(LONG).await.unwrap();
    let row = replica.lookup(None::<&str>).unwrap().unwrap();
    assert!(row.is_null("name"));
    assert_eq!(row.get::<Option<&str>>("name").unwrap(), None);
    assert!(matches!(row.get::<&str>("name"), Err(CellError::Value { .. })));
}

fn id(row: Option<&Row>) -> i64 {
    row.unwrap().get("id").unwrap()
}

type ScriptResponseSender =
    Arc<Mutex<Option<tokio::sync::mpsc::UnboundedSender<laredo_proto::replication::SyncResponse>>>>;

/// Returns a script of one stream: first these messages, then the messages that the test sends.
fn feeder(
    messages: impl Fn() -> Vec<laredo_proto::replication::SyncResponse> + Send + Sync + 'static,
) -> (
    ScriptResponseSender,
    impl Fn(usize, laredo_proto::replication::SyncRequest) -> Result<SyncResponseStream, Status> + Send + Sync + 'static,
) {
    let sender = ScriptResponseSender::default();
    let place = sender.clone();
    (sender, move |_, _| {
        let (sender, stream) = then_fed(messages());
        *place.lock().unwrap() = Some(sender);
        Ok(stream)
    })
}

fn send(sender: &ScriptResponseSender, message: laredo_proto::replication::SyncResponse) {
    sender.lock().unwrap().as_ref().expect("the stream is open").send(message).unwrap();
}
