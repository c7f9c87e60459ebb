//! Streams that are cut anywhere and then resumed. No transaction is lost, torn or applied twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::*;
use laredo_client::Replica;
use laredo_core::Lsn;

/// Reads the replica repeatedly, and compares each view with the committed rows.
fn watch(
    replica: Replica,
    states: BTreeMap<Lsn, BTreeSet<Vec<u8>>>,
    done: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut last = Lsn::ZERO;
        while !done.load(Ordering::SeqCst) {
            let view = replica.view();
            assert!(view.position() >= last, "went back to {}", view.position());
            last = view.position();
            assert_eq!(Some(&rows_in(&view)), states.get(&last), "at {last}");
            check_indexes(&view);
            drop(view);
            std::thread::yield_now();
        }
    })
}

/// Runs a replica against servers that cut the n-th stream after `cuts[n]` messages.
async fn run(cuts: Vec<usize>, another_server: bool) {
    let (states, head) = (history().states(), history().head());
    let name = format!("{cuts:?} another={another_server}");
    let server = ScriptedServer::cutting(cuts, another_server).await;
    let replica = server.replica().start().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let watcher = watch(replica.clone(), states.clone(), done.clone());
    replica.ready(LONG).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    until(&replica, |view| view.position() == head).await;
    assert_eq!(rows_in(&replica.view()), states[&head], "{name}");
    assert_eq!(replica.status().resyncs, 0, "{name}: {:?}", replica.status());
    done.store(true, Ordering::SeqCst);
    watcher.join().unwrap();
    replica.stop().await;
}

fn frames() -> usize {
    history().answer(&laredo_proto::replication::SyncRequest::default()).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_after_every_frame_and_resumed_by_sequence() {
    for cut in 0..=frames() {
        run(vec![cut], false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_after_every_frame_and_resumed_by_position_on_another_server() {
    for cut in 0..=frames() {
        run(vec![cut], true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_again_and_again() {
    run(vec![5, 3, 2, 4, 3, 0, 4, 2], true).await;
    run(vec![7; 6], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_names_only_commits() {
    let server = ScriptedServer::start(|number, request| {
        let mut messages = history().answer(&request);
        if number == 0 {
            // The handshake, the snapshot's four messages, one whole transaction, and a part of the
            // next.
            messages.truncate(7);
            return Ok(then_cut(messages));
        }
        Ok(then_hang(messages))
    })
    .await;
    let replica = server.replica().client_id("me").start().unwrap();
    until(&replica, |view| view.position() == history().head()).await;
    let requests = server.requests.lock().unwrap().clone();
    assert_eq!(requests[0].last_known_source_position, "");
    assert_eq!(requests[0].client_id, "me");
    assert_eq!(requests[1].last_known_source_position, "0/200");
    assert_eq!((requests[1].instance_id.as_str(), requests[1].last_known_sequence), ("one", 1001));
}
