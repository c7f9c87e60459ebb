//! The numbers of a client as metrics of the facade `metrics`.

use std::collections::BTreeMap;
use std::time::Duration;

use laredo_client::{Subscription, SubscriptionEvent, TableName};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

use crate::support::*;

/// The metrics of a recorder. Counts add up, because each snapshot of a recorder resets them.
struct RecordedMetrics {
    snapshotter: Snapshotter,
    labels: [(&'static str, &'static str); 2],
    counts: BTreeMap<String, u64>,
    states: BTreeMap<String, f64>,
}

impl RecordedMetrics {
    fn new(recorder: &DebuggingRecorder, client_id: &'static str) -> RecordedMetrics {
        let labels = [("table", "public.t"), ("client_id", client_id)];
        let (counts, states) = (BTreeMap::new(), BTreeMap::new());
        RecordedMetrics { snapshotter: recorder.snapshotter(), labels, counts, states }
    }

    fn read(&mut self) {
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let labels: Vec<_> = key.key().labels().map(|label| (label.key(), label.value())).collect();
            assert_eq!(labels, self.labels, "{key:?}");
            let name = key.key().name().trim_start_matches("laredo_client_").to_owned();
            match value {
                DebugValue::Counter(count) => *self.counts.entry(name).or_default() += count,
                DebugValue::Gauge(value) => drop(self.states.insert(name, value.into_inner())),
                DebugValue::Histogram(_) => panic!("{name} is a histogram"),
            }
        }
    }

    /// Reads until a condition holds.
    async fn read_until(&mut self, is_so: impl Fn(&RecordedMetrics) -> bool) {
        let read = async {
            self.read();
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.read();
            }
        };
        if tokio::time::timeout(LONG, read).await.is_err() {
            panic!("{:?} {:?}", self.counts, self.states);
        }
    }

    fn is_at(&self, position: f64) -> bool {
        self.states.get("position_bytes") == Some(&position)
    }

    fn count(&self, name: &str) -> u64 {
        self.counts[&format!("{name}_total")]
    }
}

/// Returns a server that cuts the first stream inside of the history, and then sends all of it.
async fn cutting_server() -> ScriptedServer {
    ScriptedServer::start(|number, request| {
        let (journal, mut messages) = (history(), history().answer(&request));
        if number == 0 {
            messages.truncate(6);
            return Ok(then_cut(messages));
        }
        messages.push(heartbeat(journal.head_sequence(), Some(journal.head())));
        Ok(then_hang(messages))
    })
    .await
}

// The recorder is that of this thread, which also runs the client's tasks.
#[tokio::test]
async fn a_replica_reports_its_numbers() {
    let recorder = DebuggingRecorder::new();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    let mut recorded = RecordedMetrics::new(&recorder, "me");
    let server = cutting_server().await;
    let replica = server.replica().client_id("me").start().unwrap();
    let head = history().head().0 as f64;
    recorded.read_until(|recorded| recorded.is_at(head) && recorded.states["ready"] == 1.0).await;
    assert_eq!(recorded.count("reconnects"), 1);
    assert_eq!((recorded.count("full_snapshots"), recorded.count("deltas")), (1, 1));
    assert_eq!((recorded.count("applied_transactions"), recorded.count("applied_changes")), (7, 15));
    assert_eq!((recorded.count("resyncs"), recorded.count("checksum_mismatches")), (0, 0));
    let states = ["connected", "rows", "lag_bytes"].map(|name| recorded.states[name]);
    assert_eq!(states, [1.0, 1.0, 0.0]);
    assert!((0.0..LONG.as_secs_f64()).contains(&recorded.states["age_seconds"]), "{:?}", recorded.states);
    let status = replica.status();
    assert_eq!((status.transactions, status.changes, status.server_position), (7, 15, history().head()));

    replica.stop().await;
    // The last numbers are those of a stopped client.
    recorded.read_until(|recorded| recorded.is_at(head) && recorded.states["connected"] == 0.0).await;
}

#[tokio::test]
async fn a_subscription_reports_what_it_has_returned() {
    let recorder = DebuggingRecorder::new();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    let mut recorded = RecordedMetrics::new(&recorder, "archive");
    let server = cutting_server().await;
    let table = TableName::new("public", "t");
    let mut subscription = Subscription::builder(&server.url, table).client_id("archive").seed(1).start().unwrap();
    while !matches!(subscription.next().await, SubscriptionEvent::Current { .. }) {}
    let head = history().head().0 as f64;
    recorded.read_until(|recorded| recorded.is_at(head)).await;
    assert_eq!((recorded.count("applied_transactions"), recorded.count("reconnects")), (7, 1));
    assert!(recorded.states.contains_key("age_seconds") && !recorded.states.contains_key("rows"));
}
