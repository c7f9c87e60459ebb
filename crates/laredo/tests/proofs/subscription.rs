//! A consumer keeps a table from a subscription alone, and has the database's rows. This holds
//! through cut connections and a killed server, and after a start from a saved position and schema.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use laredo_client::{ResumePoint, SourceIdentity, StatusReceiver, Subscription, SubscriptionEvent};
use laredo_core::{DefinitionVersion, Lsn, TableState};
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions, WorkloadTable};
use laredo_testkit::{FaultProxy, ProxyDirection, eventually, is_full, oracle};
use tokio::task::JoinHandle;

use super::restarts::with_durable_journal;
use crate::support::compare::rows_differences;
use crate::support::fleet::{await_transactions, cluster, serve_all};
use crate::support::server::PATIENCE;

/// The data of a consumer. It could be saved to a disk in this form.
#[derive(Clone, Debug, Default)]
struct SavedConsumerData {
    table: Option<TableState>,
    position: Lsn,
    source: Option<SourceIdentity>,
    definition: DefinitionVersion,
    /// The number of times that all rows arrived.
    states: u32,
    /// The number of times that the subscription announced all rows.
    restarts: u32,
}

struct WorkloadConsumer {
    table: &'static WorkloadTable,
    kept: Arc<Mutex<SavedConsumerData>>,
    status: StatusReceiver,
    task: JoinHandle<()>,
}

impl WorkloadConsumer {
    /// Starts with the saved data, if there is any.
    fn start(url: &str, table: &'static WorkloadTable, saved: SavedConsumerData) -> WorkloadConsumer {
        let mut builder = Subscription::builder(url, table.name()).client_id("subscription").seed(1);
        if let Some(rows) = &saved.table {
            let (schema, position, source) = (rows.schema().clone(), saved.position, saved.source.clone());
            let mut resume = ResumePoint::new(schema, position);
            (resume.source, resume.definition) = (source, saved.definition);
            builder = builder.resume(resume);
        }
        let subscription = builder.start().unwrap();
        let status = subscription.watch_status();
        let kept = Arc::new(Mutex::new(saved));
        let task = tokio::spawn(consume(subscription, kept.clone()));
        WorkloadConsumer { table, kept, status, task }
    }

    fn kept(&self) -> SavedConsumerData {
        self.kept.lock().unwrap().clone()
    }

    async fn reach(&self, position: Lsn) {
        let reached = async || {
            let kept = self.kept.lock().unwrap();
            kept.table.is_some() && kept.position >= position
        };
        if eventually(PATIENCE, reached).await.is_err() {
            let (name, status) = (self.table.name(), self.status.current());
            panic!("{name} does not reach {position}: {status:?}, has ended: {}", self.task.is_finished());
        }
    }
}

impl Drop for WorkloadConsumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Consumes the events of a subscription, and cancels its wait for the next event repeatedly.
async fn consume(mut subscription: Subscription, kept: Arc<Mutex<SavedConsumerData>>) {
    let mut calls = tokio::time::interval(Duration::from_millis(2));
    loop {
        let event = tokio::select! {
            event = subscription.next() => event,
            _ = calls.tick() => continue,
        };
        let mut kept = kept.lock().unwrap();
        kept.definition = subscription.definition();
        let position = match event {
            SubscriptionEvent::Restart { .. } => {
                kept.table = None;
                kept.restarts += 1;
                continue;
            }
            SubscriptionEvent::State { table, position, source } => {
                (kept.table, kept.source) = (Some(*table), source);
                kept.states += 1;
                position
            }
            SubscriptionEvent::Resumed { position, source } => {
                assert_eq!(position, kept.position);
                kept.source = source;
                position
            }
            SubscriptionEvent::Transaction(transaction) => {
                assert!(transaction.position > kept.position, "{} again", transaction.position);
                let table = kept.table.as_mut().expect("rows come before changes");
                table.apply(&transaction).expect("each transaction fits");
                transaction.position
            }
            SubscriptionEvent::Current { position, .. } => position,
            SubscriptionEvent::Ended { reason } => panic!("{reason}"),
        };
        assert!(position >= kept.position, "taken back from {} to {position}", kept.position);
        kept.position = position;
    }
}

async fn compare(sql: &tokio_postgres::Client, consumers: &[WorkloadConsumer]) {
    let position = oracle::flushed(sql).await.unwrap();
    for consumer in consumers {
        consumer.reach(position).await;
        let (name, key) = (consumer.table.name(), consumer.table.key);
        let rows = oracle::rows_at_rest(sql, &name, key, "true").await.unwrap();
        assert!(!rows.rows.is_empty(), "{name} is empty");
        let table = consumer.kept().table.unwrap();
        let differences = rows_differences(table.schema(), table.rows(), &rows, key);
        assert!(differences.is_empty(), "{name} at {position}:\n{differences}");
    }
}

/// Cuts all connections repeatedly, mostly inside a message.
async fn cut(proxy: &FaultProxy, workload: &Workload, times: u64) {
    for cut in 0..times {
        await_transactions(workload, 15).await;
        if cut % 2 == 0 {
            proxy.cut_after_bytes(ProxyDirection::ToClient, 3000 + 7919 * cut);
        }
        proxy.cut_all();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_keeps_the_state_has_what_the_database_has_and_all_rows_came_once() {
    let (rounds, cuts) = if is_full() { (10, 20) } else { (2, 6) };
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let sql = cluster.connect().await.unwrap();
    // A truncated table is copied, and a consumer inside the copy's span has to load it again.
    let options = WorkloadOptions { truncates: false, ..WorkloadOptions::default() };
    let workload = Workload::start(&cluster.url("postgres"), 21, options);
    await_transactions(&workload, 100).await;
    let mut server =
        with_durable_journal(serve_all(cluster.url("postgres")).slot("laredo_subscription"), &folder).start().await;
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.ports.fanout)).await.unwrap();
    let url = format!("http://{}", proxy.addr());
    let mut consumers: Vec<WorkloadConsumer> =
        TABLES.iter().map(|table| WorkloadConsumer::start(&url, table, SavedConsumerData::default())).collect();
    for consumer in &consumers {
        consumer.reach(Lsn(1)).await;
    }
    cut(&proxy, &workload, cuts).await;
    // Save the data of each consumer, each at its own position. The server is killed before the
    // copies are used.
    let saved: Vec<SavedConsumerData> =
        consumers.iter().map(|consumer| SavedConsumerData { states: 0, restarts: 0, ..consumer.kept() }).collect();
    cut(&proxy, &workload, cuts).await;
    server.restart().await;
    let late = TABLES.iter().zip(saved).map(|(table, saved)| WorkloadConsumer::start(&url, table, saved));
    consumers.extend(late);
    for _ in 0..rounds {
        cut(&proxy, &workload, cuts).await;
        let paused = workload.pause().await;
        compare(&sql, &consumers).await;
        workload.resume(paused);
    }
    let (early, late) = consumers.split_at(TABLES.len());
    for (consumers, expected) in [(early, 1), (late, 0)] {
        for consumer in consumers {
            let (name, kept, status) = (consumer.table.name(), consumer.kept(), consumer.status.current());
            assert_eq!((kept.states, kept.restarts), (expected, expected), "{name}: {status:?}");
            assert_eq!((status.full_snapshots, status.resyncs), (expected.into(), 0), "{name}: {status:?}");
            assert!(status.connects > 1, "{name} was never cut: {status:?}");
        }
    }
    workload.stop().await.unwrap();
}

/// A consumer finds that the changes do not fit, and a server has another history than the saved
/// one. In both cases all rows are sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_cannot_be_continued_gets_all_rows_again() {
    let cluster = cluster();
    let sql = cluster.connect().await.unwrap();
    let table = &TABLES[0];
    sql.batch_execute(&table.mark(-1)).await.unwrap();
    let server = serve_all(cluster.url("postgres")).slot("laredo_anew").start().await;
    let mut subscription = Subscription::builder(server.url(), table.name()).start().unwrap();
    let (schema, position, source) = state(&mut subscription, 1).await;
    assert!(source.is_some());
    subscription.start_over(laredo_core::StateError::KeyMissing);
    state(&mut subscription, 1).await;
    let status = subscription.status();
    assert_eq!((status.full_snapshots, status.resyncs), (2, 1), "{status:?}");
    let other = source.map(|source| SourceIdentity { system_identifier: "1".to_owned(), ..source });
    let mut point = ResumePoint::new(schema, position);
    point.source = other;
    let mut subscription = Subscription::builder(server.url(), table.name()).resume(point).start().unwrap();
    state(&mut subscription, 1).await;
    assert_eq!(subscription.status().full_snapshots, 1);
}

/// Waits for the announcement and then for a state with this number of rows.
async fn state(
    subscription: &mut Subscription,
    rows: usize,
) -> (Arc<laredo_client::Schema>, Lsn, Option<SourceIdentity>) {
    let coming = async {
        let mut is_reported = false;
        loop {
            match subscription.next().await {
                SubscriptionEvent::Restart { .. } => is_reported = true,
                SubscriptionEvent::State { table, position, source } => {
                    assert!(is_reported && table.len() == rows, "{} rows, is_reported: {is_reported}", table.len());
                    return (table.schema().clone(), position, source);
                }
                SubscriptionEvent::Current { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, coming).await.expect("all rows come")
}
