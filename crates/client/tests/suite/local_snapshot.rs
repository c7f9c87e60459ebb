//! Replicas that are stopped, and start again from their local snapshot.

use std::time::Duration;

use crate::support::*;
use laredo_client::{ColumnPredicate, Lsn, ReplicaBuilder, StreamMode};
use laredo_proto::replication::SyncRequest;
use laredo_testkit::eventually;
use tempfile::TempDir;
use tonic::Status;

fn journal() -> ScriptedJournal {
    let mut journal = ScriptedJournal::new(&[row(1, &["a", "x"]), row(2, &["b", "x"]), row(3, &["c", "y"])]);
    journal.commit(vec![update(1, "a2", "x")]);
    journal
}

/// Returns the journal of another server with the same history and one more transaction.
fn later() -> ScriptedJournal {
    let mut journal = journal().on_another_server();
    journal.commit(vec![delete(2), insert(4, "d", "y")]);
    journal
}

fn with_file(builder: ReplicaBuilder, folder: &TempDir) -> ReplicaBuilder {
    builder.local_snapshot_path(folder.path().join("cache"))
}

/// Runs a replica until it is ready and stops it. Returns the folder of its local snapshot.
async fn stopped() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start(|_, request| {
        let mut messages = journal().answer(&request);
        messages.push(heartbeat(journal().head_sequence(), Some(journal().head())));
        Ok(then_hang(messages))
    })
    .await;
    let replica = with_file(server.replica(), &folder).start().unwrap();
    replica.ready(LONG).await.unwrap();
    // The replica has also received the heartbeat that confirms the head.
    eventually(LONG, async || replica.view().age() < LONG).await.unwrap();
    replica.stop().await;
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_continues_by_position_on_another_server() {
    let folder = stopped().await;
    let (granted, from_server) = then_fed(Vec::new());
    let stream = std::sync::Mutex::new(Some(from_server));
    let (asked, mut requests) = tokio::sync::mpsc::unbounded_channel::<SyncRequest>();
    let server = ScriptedServer::start(move |_, request| {
        asked.send(request).unwrap();
        stream.lock().unwrap().take().ok_or_else(|| Status::unavailable("one stream"))
    })
    .await;
    let replica = with_file(server.replica(), &folder).start().unwrap();
    let request = requests.recv().await.unwrap();
    assert_eq!(request.last_known_source_position, "0/200");
    assert_eq!(replica.view().len(), 0, "it was not asked for, and no server has confirmed it");
    later().answer(&request).into_iter().for_each(|message| granted.send(message).unwrap());
    replica.ready(LONG).await.unwrap();
    let status = replica.status();
    assert_eq!((status.mode, status.connects, status.resyncs), (Some(StreamMode::Delta), 1, 0));
    let view = replica.view();
    assert_eq!(rows_in(&view), later().states()[&later().head()]);
    check_indexes(&view);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_is_served_at_once_where_it_is_asked_for() {
    let folder = stopped().await;
    let server = ScriptedServer::start(|_, _| Err(Status::unavailable("starting"))).await;
    let replica = with_file(server.replica(), &folder).serve_local_snapshot().start().unwrap();
    until(&replica, |view| view.position() == Lsn(0x200)).await;
    let view = replica.view();
    assert_eq!(rows_in(&view), journal().states()[&Lsn(0x200)]);
    check_indexes(&view);
    assert!(view.age() < LONG, "as old as the last word of a server: {:?}", view.age());
    drop(view);
    assert!(!replica.status().ready, "no server has said that this is all");
    // No server confirmed the state, so its recorded age stays the same.
    let before = std::fs::read(folder.path().join("cache")).unwrap();
    replica.stop().await;
    assert_eq!(std::fs::read(folder.path().join("cache")).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_state_is_gone_on_from() {
    let folder = stopped().await;
    let server = ScriptedServer::start(|number, request| match number {
        0 => Err(Status::unavailable("starting")),
        _ => Ok(then_hang(later().answer(&request))),
    })
    .await;
    let replica = with_file(server.replica(), &folder).serve_local_snapshot().start().unwrap();
    replica.ready(LONG).await.unwrap();
    assert_eq!(rows_in(&replica.view()), later().states()[&later().head()]);
    assert_eq!((replica.status().mode, replica.status().resyncs), (Some(StreamMode::Delta), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_has_what_was_saved_from_time_to_time() {
    let folder = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start(|_, request| Ok(then_hang(journal().answer(&request)))).await;
    let replica = with_file(server.replica(), &folder).local_snapshot_interval(Duration::ZERO).start().unwrap();
    replica.ready(LONG).await.unwrap();
    // Copy the file of a running replica: a killed process leaves the same file.
    let copy = tempfile::tempdir().unwrap();
    let copied = async || std::fs::copy(folder.path().join("cache"), copy.path().join("cache")).is_ok();
    eventually(LONG, copied).await.unwrap();
    let next = ScriptedServer::start(|_, request| Ok(then_hang(later().answer(&request)))).await;
    let restarted = with_file(next.replica(), &copy).start().unwrap();
    restarted.ready(LONG).await.unwrap();
    assert_eq!(restarted.status().mode, Some(StreamMode::Delta));
    assert_eq!(rows_in(&restarted.view()), later().states()[&later().head()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_other_filters_are_not_gone_on_from() {
    let folder = stopped().await;
    let server = ScriptedServer::start(|_, request| Ok(then_hang(journal().answer(&request)))).await;
    let replica = with_file(server.replica(), &folder).filter(ColumnPredicate::equals("group", "x")).start().unwrap();
    replica.ready(LONG).await.unwrap();
    assert_eq!(replica.status().mode, Some(StreamMode::FullSnapshot));
    assert_eq!(server.requests.lock().unwrap()[0].last_known_source_position, "");
    assert!(folder.path().join("cache.unusable").exists());
}
