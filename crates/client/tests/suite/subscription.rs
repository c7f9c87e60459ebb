//! The stream under a replica, for a consumer that keeps the rows itself. The consumer receives
//! each transaction once, wherever the stream is cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::*;
use futures_util::{StreamExt as _, stream};
use laredo_client::{GrpcCode, ReplicaError, ResumePoint, StartError, Subscription, SubscriptionEvent, TableName};
use laredo_core::{Lsn, TableState};
use laredo_proto::replication::{GoAway, SyncRequest, sync_response};
use tonic::Status;

fn table() -> TableName {
    TableName::new("public", "t")
}

/// A consumer that keeps the table state itself.
struct SubscriptionConsumer {
    subscription: Subscription,
    state: Option<Box<TableState>>,
    position: Lsn,
    /// The rows at every commit.
    states: BTreeMap<Lsn, BTreeSet<Vec<u8>>>,
    snapshots: usize,
}

impl SubscriptionConsumer {
    fn new(server: &ScriptedServer, states: BTreeMap<Lsn, BTreeSet<Vec<u8>>>) -> SubscriptionConsumer {
        let subscription = Subscription::builder(&server.url, table()).client_id("me").seed(1).start().unwrap();
        SubscriptionConsumer { subscription, state: None, position: Lsn::ZERO, states, snapshots: 0 }
    }

    async fn reach(&mut self, position: Lsn) {
        let reached = async {
            while self.position < position || self.state.is_none() {
                let event = self.subscription.next().await;
                self.take(event);
            }
        };
        if tokio::time::timeout(LONG, reached).await.is_err() {
            panic!("at {}: {:?}", self.position, self.subscription);
        }
    }

    fn take(&mut self, event: SubscriptionEvent) {
        let position = match event {
            SubscriptionEvent::Restart { .. } => {
                self.state = None;
                return;
            }
            SubscriptionEvent::State { table, position, .. } => {
                self.state = Some(table);
                self.snapshots += 1;
                assert!(position >= self.position, "went back to {position}");
                position
            }
            SubscriptionEvent::Transaction(transaction) => {
                self.state.as_mut().unwrap().apply(&transaction).unwrap();
                assert!(transaction.position > self.position, "{} again", transaction.position);
                transaction.position
            }
            SubscriptionEvent::Resumed { position, .. } => {
                assert_eq!(position, self.position);
                position
            }
            SubscriptionEvent::Current { .. } => return,
            SubscriptionEvent::Ended { reason } => panic!("{reason}"),
        };
        self.position = position;
        assert_eq!(Some(&rows_of(self.state.as_ref().unwrap())), self.states.get(&position), "at {position}");
    }
}

/// Runs a consumer against servers that cut the n-th stream after `cuts[n]` messages.
async fn run(cuts: Vec<usize>, another_server: bool) {
    let (states, head, snapshot) = (history().states(), history().head(), history().snapshot_at(0).len());
    let is_whole = cuts.iter().any(|cut| *cut >= snapshot);
    let server = ScriptedServer::cutting(cuts, another_server).await;
    let mut consumer = SubscriptionConsumer::new(&server, states);
    consumer.reach(head).await;
    assert_eq!(consumer.snapshots, 1);
    let requests = server.requests.lock().unwrap().clone();
    // If nothing was left to send, the client need not have asked again yet.
    if let [_, .., last] = requests.as_slice() {
        assert_eq!(last.last_known_source_position.is_empty(), !is_whole, "{requests:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_after_every_frame_it_has_each_transaction_once() {
    for cut in 0..=history().answer(&SyncRequest::default()).len() {
        run(vec![cut], false).await;
        run(vec![cut], true).await;
    }
    run(vec![5, 7, 3, 2, 4, 3, 0, 4, 2], true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_begins_at_a_position_and_a_schema() {
    let server =
        ScriptedServer::start(|_, request| Ok(then_hang(history().on_another_server().answer(&request)))).await;
    let states = history().states();
    let mut consumer = SubscriptionConsumer::new(&server, states.clone());
    consumer.reach(Lsn(0x300)).await;
    let state = consumer.state.take().unwrap();
    let point = ResumePoint::new(state.schema().clone(), consumer.position);
    consumer.subscription = Subscription::builder(&server.url, table()).resume(point).start().unwrap();
    consumer.state = Some(state);
    consumer.reach(history().head()).await;
    assert_eq!(consumer.snapshots, 1);
    assert_eq!(server.requests.lock().unwrap()[1].last_known_source_position, "0/300");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leaves_is_followed_by_another_without_a_gap() {
    let server = ScriptedServer::start(|number, request| {
        let mut messages = history().answer(&request);
        if number == 0 {
            messages.truncate(8);
            messages.push(message(sync_response::Message::GoAway(GoAway::default())));
            return Ok(then_hang(messages));
        }
        Ok(then_hang(history().on_another_server().answer(&request)))
    })
    .await;
    let mut consumer = SubscriptionConsumer::new(&server, history().states());
    consumer.reach(history().head()).await;
    let status = consumer.subscription.status();
    assert_eq!((status.connects, status.full_snapshots, status.last_error), (2, 1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cause_of_a_wait_is_reported_elsewhere() {
    let server = ScriptedServer::start(|number, request| match number {
        0 => Err(Status::not_found("no such table")),
        _ => Ok(then_hang(history().answer(&request))),
    })
    .await;
    let mut consumer = SubscriptionConsumer::new(&server, history().states());
    let mut status = consumer.subscription.watch_status();
    let refused = tokio::time::timeout(LONG, async {
        tokio::select! {
            () = consumer.reach(history().head()) => panic!("there is no such table"),
            status = status.wait_for(|status| status.error.is_some()) => status.unwrap().error,
        }
    });
    let refused = refused.await.unwrap();
    assert!(matches!(refused, Some(ReplicaError::Refused { code: GrpcCode::NotFound, .. })), "{refused:?}");
}

/// The transport's own windows come on top, so the bound is not exact.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_takes_nothing_is_sent_no_more() {
    const ROW: usize = 1 << 20;
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let server = ScriptedServer::start(move |_, request| {
        let mut journal = ScriptedJournal::new(&[]);
        let first = journal.answer(&request);
        journal.commit(vec![insert(1, &"x".repeat(ROW), "x")]);
        let count = count.clone();
        let endless = stream::iter(0_u64..100).map(move |number| {
            count.fetch_add(1, Ordering::SeqCst);
            let mut message = journal.batches(0).remove(0);
            if let Some(sync_response::Message::Batch(batch)) = &mut message.message {
                batch.position += number;
            }
            Ok(message)
        });
        Ok(stream::iter(first).map(Ok).chain(endless).chain(stream::pending()).boxed())
    })
    .await;
    let subscription = Subscription::builder(&server.url, table()).pending_bytes_max(1 << 20).start();
    let mut subscription = subscription.unwrap();
    while !matches!(subscription.next().await, SubscriptionEvent::State { .. }) {}
    let mut before = 0;
    while before == 0 || sent.load(Ordering::SeqCst) > before {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 60, "{before} MiB were sent to somebody who takes nothing");
    for _ in 0..100 {
        let event = tokio::time::timeout(LONG, subscription.next()).await.unwrap();
        assert!(matches!(event, SubscriptionEvent::Transaction(_)), "{event:?}");
    }
}

#[test]
fn without_a_runtime_it_is_not_started() {
    let started = Subscription::builder("http://127.0.0.1:1", table()).start();
    assert!(matches!(started, Err(StartError::NoRuntime)), "{started:?}");
}

#[tokio::test]
async fn a_token_is_not_sent_in_plain_text_to_another_machine() {
    let builder = || Subscription::builder("http://192.0.2.1:4002", table()).token("secret");
    let started = builder().start();
    assert!(
        matches!(&started, Err(StartError::PlaintextToken { server }) if server.contains("192.0.2.1")),
        "{started:?}"
    );
    assert!(!started.unwrap_err().to_string().contains("secret"));
    let _reconnects = builder().allow_plaintext_token().start().unwrap();
}
