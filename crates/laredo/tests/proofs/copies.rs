//! Copies of a table while eight sessions write to it. After each copy the client has the
//! database's rows. The database has exactly the committed rows, because a copy must never harm its
//! source.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use laredo_core::TableName;
use laredo_proto::oam::ReloadTableRequest;
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually, is_full};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::support::fleet::{CategoryFilter, ClientPair};
use crate::support::server::{PATIENCE, PATIENT, ServerProcess, ServerProcessConfig};

const WRITERS: i64 = 8;
const KEY: &[&str] = &["id"];

#[tokio::test(flavor = "multi_thread")]
async fn copies_under_load_are_equal_and_harm_nothing() {
    let copies = if is_full() { 200 } else { 20 };
    let cluster = Cluster::start(ClusterOptions::default().set("logical_decoding_work_mem", "64kB")).unwrap();
    let create = "CREATE TABLE ledger (id bigint PRIMARY KEY, n int, v text, pad varchar(100));
                  INSERT INTO ledger SELECT -i, 0, 'old', repeat('x', 60) FROM generate_series(1, 5000) i";
    cluster.psql(create).unwrap();
    let table = TableName::new("public", "ledger");
    let config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]).slot("laredo_copies");
    // The journal's limit forces a new base with every other copy.
    let server = config.target(PATIENT).target("journal { max_entries = 20000 }").start().await;
    let pair = ClientPair::start(&server.url(), &table, KEY, CategoryFilter::All);
    let sql = cluster.connect().await.unwrap();
    let ledger = BookkeepingWriters::start(&cluster).await;
    for copy in 1..=copies {
        let before = server.metric("laredo_copies_total", &table).await.unwrap();
        let how = provoke(&sql, &server, copy).await;
        let copied = async || server.metric("laredo_copies_total", &table).await > Some(before);
        assert!(eventually(PATIENCE, copied).await.is_ok(), "copy {copy}: {how} led to none");
        let at_rest = ledger.gate.clone().write_owned().await;
        let mark = -copy;
        let insert = format!("INSERT INTO ledger VALUES (0, {mark}) ON CONFLICT (id) DO UPDATE SET n = {mark}");
        sql.batch_execute(&insert).await.unwrap();
        pair.reach(flushed(&sql).await.unwrap(), mark).await;
        let rows = rows_at_rest(&sql, &table, KEY, "true").await.unwrap();
        pair.settle(&rows).await;
        let differences = pair.differences(&rows);
        assert!(differences.is_empty(), "copy {copy}, after {how}:\n{differences}");
        ledger.check(&sql, &how).await;
        drop(at_rest);
    }
    assert!(ledger.committed.load(Ordering::SeqCst) > 10 * copies as u64, "the writers hardly wrote");
    ledger.stop().await;
    assert!(server.bases() > 0, "no base was merged");
    let status = pair.replica.status();
    assert_eq!((status.connects, status.resyncs), (1, 0), "a copy shows as changes, never as a new start: {status:?}");
    assert_eq!(pair.simple.state().snapshots, 1);
}

/// Causes one of the events after which a table has to be copied again.
async fn provoke(sql: &Client, server: &ServerProcess, copy: i32) -> String {
    let statement = match copy % 4 {
        0 if copy % 8 == 0 => {
            let channel = tonic::transport::Channel::from_shared(server.oam_url()).unwrap().connect().await.unwrap();
            let mut operator = LaredoOamServiceClient::new(channel);
            let request =
                ReloadTableRequest { schema: "public".to_owned(), table: "ledger".to_owned(), ..Default::default() };
            assert!(operator.reload_table(request).await.unwrap().into_inner().accepted);
            return "a reload".to_owned();
        }
        // Rewrite the same rows into another file.
        0 => "ALTER TABLE ledger ALTER pad TYPE varchar(100) USING pad || ''".to_owned(),
        1 if copy % 8 == 1 => "ALTER TABLE ledger REPLICA IDENTITY FULL".to_owned(),
        1 => "ALTER TABLE ledger REPLICA IDENTITY DEFAULT".to_owned(),
        2 => format!("ALTER TABLE ledger ADD c{copy} int DEFAULT {copy}"),
        _ => {
            drop_slot(sql).await;
            return "the slot's end".to_owned();
        }
    };
    sql.batch_execute(&statement).await.unwrap();
    statement
}

/// Drops the slot without the server's knowledge. The server misses commits until it has created
/// another one.
async fn drop_slot(sql: &Client) {
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'laredo_copies'";
    let dropped = async || {
        sql.batch_execute(end).await.unwrap();
        sql.batch_execute("SELECT pg_drop_replication_slot('laredo_copies')").await.is_ok()
    };
    eventually(PATIENCE, dropped).await.unwrap();
}

/// Writers that each have their own IDs, so that the expected rows are known without asking the
/// database.
struct BookkeepingWriters {
    gate: Arc<RwLock<()>>,
    stopped: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    books: Vec<Arc<Mutex<BTreeMap<i64, i32>>>>,
    writers: JoinSet<()>,
}

impl BookkeepingWriters {
    async fn start(cluster: &Cluster) -> BookkeepingWriters {
        let mut ledger = BookkeepingWriters {
            gate: Arc::default(),
            stopped: Arc::default(),
            committed: Arc::default(),
            books: (0..WRITERS).map(|_| Arc::default()).collect(),
            writers: JoinSet::new(),
        };
        for (writer, book) in (0_i64..).zip(&ledger.books) {
            let (sql, book) = (cluster.connect().await.unwrap(), book.clone());
            let (gate, stopped, committed) = (ledger.gate.clone(), ledger.stopped.clone(), ledger.committed.clone());
            ledger.writers.spawn(async move {
                let mut rng = StdRng::seed_from_u64(writer.unsigned_abs());
                let mut next = 1;
                while !stopped.load(Ordering::SeqCst) {
                    let turn = gate.read().await;
                    let mut after = book.lock().unwrap().clone();
                    let mut statements = vec!["BEGIN".to_owned()];
                    for _ in 0..rng.random_range(1..6) {
                        statements.push(change(&mut rng, &mut after, &mut next, writer));
                    }
                    let commits = rng.random_ratio(9, 10);
                    statements.push(if commits { "COMMIT" } else { "ROLLBACK" }.to_owned());
                    for statement in &statements {
                        sql.batch_execute(statement).await.unwrap();
                    }
                    if commits {
                        *book.lock().unwrap() = after;
                        committed.fetch_add(1, Ordering::SeqCst);
                    }
                    drop(turn);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        ledger
    }

    /// Compares the database's rows with the committed ones.
    async fn check(&self, sql: &Client, how: &str) {
        let rows = sql.query("SELECT id, n FROM ledger WHERE id > 0", &[]).await.unwrap();
        let has: BTreeMap<i64, i32> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let committed: BTreeMap<i64, i32> = self.books.iter().flat_map(|book| book.lock().unwrap().clone()).collect();
        assert!(
            has == committed,
            "after {how} the database has {} rows, {} were committed",
            has.len(),
            committed.len()
        );
        let old: i64 = sql.query_one("SELECT count(*) FROM ledger WHERE id < 0", &[]).await.unwrap().get(0);
        assert_eq!(old, 5000, "after {how}");
    }

    async fn stop(mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        while let Some(ended) = self.writers.join_next().await {
            ended.unwrap();
        }
    }
}

/// Returns one statement of a writer, and applies it to the writer's rows.
fn change(rng: &mut StdRng, book: &mut BTreeMap<i64, i32>, next: &mut i64, writer: i64) -> String {
    let n = rng.random_range(0..1000);
    let known = book.keys().nth(rng.random_range(0..book.len().max(1))).copied();
    // Keep the rows few, so that a comparison takes no time.
    let deletes = if book.len() > 300 { 6 } else { 2 };
    match (rng.random_range(0..10), known) {
        (dice, Some(id)) if dice < deletes => {
            book.remove(&id);
            format!("DELETE FROM ledger WHERE id = {id}")
        }
        (6..8, Some(id)) => {
            book.insert(id, n);
            format!("UPDATE ledger SET n = {n} WHERE id = {id}")
        }
        _ => {
            let id = *next * WRITERS + writer;
            *next += 1;
            book.insert(id, n);
            format!("INSERT INTO ledger (id, n, v, pad) VALUES ({id}, {n}, 'new', repeat('y', {}))", n % 100)
        }
    }
}
