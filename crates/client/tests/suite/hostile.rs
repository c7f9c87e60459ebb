//! A replica never panics on any server input, and never shows rows that its indexes do not
//! contain.
//!
//! Whole streams are damaged in many ways. The test takes some seconds. With `LAREDO_TEST_FULL=1`
//! it takes a minute.

use std::time::{Duration, Instant};

use crate::support::*;
use futures_util::StreamExt;
use laredo_client::{ReplicaError, View};
use laredo_core::Change;
use laredo_proto::replication::{SyncRequest, SyncResponse};
use laredo_testkit::is_full;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The number of replicas that run at the same time.
const ABREAST: usize = 8;

/// Returns the journal whose streams are damaged.
fn history() -> ScriptedJournal {
    let mut journal = ScriptedJournal::new(&[row(1, &["a", "x"]), row(2, &["b", "x"]), row(3, &["c", "y"])]);
    journal.commit(vec![insert(4, "d", "y")]);
    journal.commit(vec![update(1, "a2", "y"), delete(2), insert(5, "e", "x"), insert(6, "f", "x"), delete(4)]);
    journal.commit(vec![]);
    journal.commit(vec![Change::Schema(table_schema(&["note"])), Change::Update(row(1, &["a3", "x", "n"]))]);
    journal.commit(vec![
        Change::Truncate,
        Change::Insert(row(1, &["a", "z", "n"])),
        Change::Insert(row(9, &["i", "z", "n"])),
    ]);
    journal.commit(vec![delete(1)]);
    journal
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_streams_never_harm() {
    let until = Instant::now() + Duration::from_secs(if is_full() { 60 } else { 3 });
    let seeds = (0_u64..).take_while(|seed| *seed < 50 || Instant::now() < until);
    let refused = futures_util::stream::iter(seeds).map(|seed| async move {
        // The seed alone reproduces a failure.
        tokio::spawn(run(seed)).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"))
    });
    let refused: Vec<bool> = refused.buffer_unordered(ABREAST).collect().await;
    let count = refused.iter().filter(|refused| **refused).count();
    println!("{count} of {} damaged streams were refused", refused.len());
    assert!(count > 10 && count < refused.len(), "{count} of {}: damage is too little or too much", refused.len());
}

/// Sends a damaged stream to a replica. Returns true if the replica refused the stream.
async fn run(seed: u64) -> bool {
    let server = ScriptedServer::start(move |number, _| {
        let mut messages = history().answer(&SyncRequest::default());
        let mut rng = StdRng::seed_from_u64(seed);
        if number == 0 {
            (0..rng.random_range(1..4)).for_each(|_| damage(&mut messages, &mut rng));
        }
        Ok(then_cut(messages))
    })
    .await;
    let replica = server.replica().start().unwrap();
    let mut status = replica.watch_status();
    let looked_at = async {
        while status.current().last_error.is_none() {
            check(&replica.view());
            // Also check between the changes of the status.
            let _ = tokio::time::timeout(Duration::from_millis(1), status.changed()).await;
        }
    };
    tokio::time::timeout(LONG, looked_at).await.expect("the stream ends");
    let error = status.current().last_error.unwrap();
    check(&replica.view());
    assert!(!replica.status().stopped, "{error}");
    replica.stop().await;
    check(&replica.view());
    !matches!(error, ReplicaError::Ended { .. })
}

/// Checks that the rows, their number and the indexes agree. The cells and the server's description
/// of the columns may be nonsense.
fn check(view: &View<'_>) {
    let rows: Vec<_> = view.rows().collect();
    assert_eq!(rows.len(), view.len());
    for row in rows {
        if let Ok(id) = row.get::<i64>("id")
            && let Ok(found) = view.get(id)
        {
            assert_eq!(found, Some(row), "the key {id} leads elsewhere");
        }
        if let Ok(name) = row.get::<&str>("name") {
            assert!(view.lookup(name).unwrap().is_some(), "{name} is not in its index");
        }
        if let Ok(group) = row.get::<&str>("group") {
            assert!(
                view.index("by_group", group).unwrap().any(|found| found == row),
                "{group} lacks a row in its index"
            );
        }
    }
}

fn damage(messages: &mut Vec<SyncResponse>, rng: &mut StdRng) {
    let at = rng.random_range(0..messages.len());
    let other = rng.random_range(0..messages.len());
    match rng.random_range(0..8) {
        0 => messages.swap(at, other),
        1 if messages.len() > 1 => drop(messages.remove(at)),
        2 => messages.insert(other, messages[at].clone()),
        _ => {
            // Bytes that do not decode are never delivered as a message. Only damage that still
            // decodes counts.
            for _ in 0..100 {
                if let Ok(changed) = SyncResponse::decode(flipped(&messages[at], &messages[other], rng).as_slice()) {
                    messages[at] = changed;
                    return;
                }
            }
        }
    }
}

/// Returns the damaged bytes of a message.
fn flipped(message: &SyncResponse, other: &SyncResponse, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    let at = rng.random_range(0..bytes.len().max(1));
    match rng.random_range(0..5) {
        0 => bytes.truncate(at),
        1 if !bytes.is_empty() => bytes[at] ^= 1 << rng.random_range(0..8),
        2 if !bytes.is_empty() => bytes[at] = rng.random(),
        // A length or a count with a special value.
        3 if bytes.len() > at + 4 => {
            let values = [0, 1, u32::MAX, i32::MAX.cast_unsigned(), 0xffff];
            bytes[at..at + 4].copy_from_slice(&values[rng.random_range(0..values.len())].to_be_bytes());
        }
        _ => {
            let other = other.encode_to_vec();
            bytes.truncate(at);
            bytes.extend_from_slice(&other[other.len().min(at)..]);
        }
    }
    bytes
}
