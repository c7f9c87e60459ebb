//! The configuration of a running server: it is compared and reloaded, and the streams of tables
//! that are not concerned continue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laredo_client::{GrpcCode, Replica, ReplicaError};
use laredo_core::TableName;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, StopMode, StorageCopy, clean_command, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinHandle;

use crate::support::compare::view_differences;
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};

const APPLIED: &str = "the configuration was read again and applied";

fn table(name: &str) -> TableName {
    TableName::new("public", name)
}

/// Starts a cluster with the tables `a`, `b`, and `c`, each with 100 rows.
fn cluster() -> Cluster {
    cluster_with(ClusterOptions::default())
}

fn cluster_with(options: ClusterOptions) -> Cluster {
    let cluster = Cluster::start(options).unwrap();
    for name in ["a", "b", "c"] {
        let sql = "CREATE TABLE $t (id int PRIMARY KEY, n int NOT NULL, note text);
                   INSERT INTO $t SELECT i, i % 7, 'row ' || i FROM generate_series(1, 100) i";
        cluster.psql(&sql.replace("$t", name)).unwrap();
    }
    cluster
}

fn config(cluster: &Cluster, tables: &[&str]) -> ServerProcessConfig {
    ServerProcessConfig::new(cluster.url("postgres"), tables.iter().copied().map(table))
}

/// Runs `laredo config` with these arguments. Returns true if it has succeeded, and its output.
fn laredo_config(server: &ServerProcess, arguments: &[&str]) -> (bool, String) {
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
    command.arg("config").args(arguments).args(["--timeout", "60", "--oam", &server.oam_url()]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.success(), text)
}

fn hang_up(server: &ServerProcess) {
    kill_process(Pid::from_raw(server.process.id().cast_signed()).unwrap(), Signal::HUP).unwrap();
}

async fn replica(server: &ServerProcess, name: &str) -> Replica {
    let replica = Replica::builder(server.url(), table(name)).client_id(name).start().unwrap();
    if let Err(error) = replica.ready(PATIENCE).await {
        panic!("{name}: {error}, {:?}\n{}", replica.status(), server.process.output().join("\n"));
    }
    replica
}

/// A writer of all tables. Half of its transactions write several of them.
struct TableWriter {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl TableWriter {
    async fn start(cluster: &Cluster) -> TableWriter {
        let (sql, stop) = (cluster.connect().await.unwrap(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (id, new) = (1 + n * 37 % 100, 1000 + n);
                let names: &[&str] = if n % 2 == 0 { &["a", "b", "c"] } else { &[["a", "b", "c"][n % 3]] };
                let change = |name: &&str| {
                    format!(
                        "UPDATE {name} SET n = {n}, note = note || '.' WHERE id = {id}; INSERT INTO {name} VALUES ({new}, {n}, NULL) ON CONFLICT (id) DO UPDATE SET n = excluded.n;
                         DELETE FROM {name} WHERE id = {old}",
                        old = 1000_usize.max(new.saturating_sub(40))
                    )
                };
                let changes: Vec<String> = names.iter().map(change).collect();
                sql.batch_execute(&format!("BEGIN; {}; COMMIT", changes.join("; "))).await.unwrap();
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        });
        TableWriter { stop, task }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// Waits until replicas have everything, and compares them with the database at rest. `filter` is
/// the condition of the rows that are served.
async fn compare(cluster: &Cluster, replicas: &[(&str, &Replica, &str)]) {
    let sql = cluster.connect().await.unwrap();
    let position = flushed(&sql).await.unwrap();
    for (name, replica, filter) in replicas {
        let reached = async || replica.view().position() >= position;
        assert!(eventually(PATIENCE, reached).await.is_ok(), "{name} at {position}: {:?}", replica.status());
        let rows = rows_at_rest(&sql, &table(name), &["id"], filter).await.unwrap();
        let differences = view_differences(&replica.view(), &rows, &["id"]);
        assert!(differences.is_empty() && !rows.rows.is_empty(), "{name} at {position}:\n{differences}");
        assert_eq!(replica.status().checksum_mismatches, 0);
    }
}

/// Waits until a replica has the database's rows, which may be those of another history.
async fn become_equal(cluster: &Cluster, name: &str, replica: &Replica) {
    let sql = cluster.connect().await.unwrap();
    let rows = rows_at_rest(&sql, &table(name), &["id"], "true").await.unwrap();
    let differences = || view_differences(&replica.view(), &rows, &["id"]);
    let is_equal = async || differences().is_empty();
    assert!(eventually(PATIENCE, is_equal).await.is_ok(), "{name}: {:?}\n{}", replica.status(), differences());
}

/// Asserts that the stream of a replica is still its first one.
fn is_untouched(replica: &Replica) {
    let status = replica.status();
    assert_eq!((status.connects, status.resyncs, status.last_error.is_none()), (1, 0, true), "{status:?}");
}

/// Asserts that the server has noticed neither a fork nor a lost slot.
async fn is_one_history(server: &ServerProcess) {
    let source = &server.health().await.1["sources"][0];
    // A number of forks is shown if there were any.
    assert_eq!((source["forks"].as_u64().unwrap_or(0), source["losses"].as_u64()), (0, Some(0)), "{source}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_added_begun_again_and_removed_while_the_others_are_streamed() {
    let (mut cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let journal = format!("journal {{ store = local, store_config {{ path = \"{}\" }} }}", folder.path().display());
    let with = |tables: &[&str]| config(&cluster, tables).slot("laredo_reload").target(&journal);
    let (ab, abc, ac) = (with(&["a", "b"]), with(&["a", "b", "c"]), with(&["a", "c"]));
    let mut server = ab.start().await;
    let (a, b) = (replica(&server, "a").await, replica(&server, "b").await);
    let writer = TableWriter::start(&cluster).await;
    // A transaction that wrote the table before it is published is never streamed whole.
    let open = cluster.connect().await.unwrap();
    open.batch_execute("BEGIN; INSERT INTO c VALUES (5000, 1, 'early')").await.unwrap();

    server.write_config(&abc);
    assert_eq!(
        laredo_config(&server, &["diff"]),
        (true, "+ table public.c is added: it is copied, and then served\n".into())
    );
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(is_applied && text.ends_with("applied\n"), "{text}");
    assert_eq!(laredo_config(&server, &["diff"]), (true, "nothing differs\n".into()));
    assert_eq!(server.get(server.ports.health, "/health/ready").await.unwrap().0, 200);
    open.batch_execute("INSERT INTO c VALUES (5001, 1, 'late'); COMMIT").await.unwrap();
    let c = replica(&server, "c").await;
    writer.end().await;
    compare(&cluster, &[("a", &a, "true"), ("b", &b, "true"), ("c", &c, "true")]).await;

    // Commits are sent again after a restart of PostgreSQL, and prove the history. Those from
    // before the table was added are not among them.
    cluster.stop(StopMode::Fast).unwrap();
    cluster.restart().unwrap();
    let writer = TableWriter::start(&cluster).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    writer.end().await;
    compare(&cluster, &[("a", &a, "true"), ("b", &b, "true"), ("c", &c, "true")]).await;
    is_one_history(&server).await;
    [&a, &b, &c].into_iter().for_each(is_untouched);

    // The table begins again, and nothing else does.
    let place = "table = \"b\", \n targets = [{ type = replication-fanout\n";
    server.edit_config(place, &format!("{place}journal.max_entries = 90000\n"));
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(is_applied && text.contains("~ table public.b targets[0].journal.max_entries: 100000 -> 90000"), "{text}");
    cluster.psql("INSERT INTO b VALUES (6001, 1, 'x')").unwrap();
    compare(&cluster, &[("a", &a, "true"), ("b", &b, "true"), ("c", &c, "true")]).await;
    // Its journal continues, so it is sent what differs.
    assert!(b.status().connects > 1 && b.status().resyncs == 0, "{:?}", b.status());
    [&a, &c].into_iter().for_each(is_untouched);

    // Other rows need another journal.
    server.write_config(&abc);
    let filter = "filters = [{ type = field-equals, field = n, value = 3 }]\n";
    server.edit_config(place, &format!("{place}{filter}"));
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(is_applied && text.contains("~ table public.b targets[0].filters[0].field: none -> "), "{text}");
    let is_filtered =
        async || b.status().connects > 1 && b.view().rows().all(|row| row.get::<i32>("n").is_ok_and(|n| n == 3));
    assert!(eventually(PATIENCE, is_filtered).await.is_ok(), "{:?}", b.status());
    cluster.psql("INSERT INTO b VALUES (7001, 3, 'in'), (7002, 4, 'out')").unwrap();
    compare(&cluster, &[("a", &a, "true"), ("b", &b, "n = 3"), ("c", &c, "true")]).await;

    server.write_config(&ac);
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(is_applied && text.contains("- table public.b is removed"), "{text}");
    let is_refused = async || {
        let error = b.status().error;
        matches!(error, Some(ReplicaError::Refused { code: GrpcCode::NotFound, .. })) && !b.status().connected
    };
    assert!(eventually(PATIENCE, is_refused).await.is_ok(), "{:?}", b.status());
    let metrics = server.metrics().await;
    assert!(metrics.contains("table=\"public.c\"") && !metrics.contains("table=\"public.b\""), "{metrics}");
    cluster.psql("INSERT INTO a VALUES (8001, 1, 'x'); INSERT INTO c VALUES (8001, 1, 'x')").unwrap();
    compare(&cluster, &[("a", &a, "true"), ("c", &c, "true")]).await;
    for replica in [&a, &c] {
        is_untouched(replica);
    }

    // The next start follows the tables where this process leaves them.
    server.restart().await;
    cluster.psql("INSERT INTO a VALUES (9001, 1, 'x'); INSERT INTO c VALUES (9001, 1, 'x')").unwrap();
    compare(&cluster, &[("a", &a, "true"), ("c", &c, "true")]).await;
    is_one_history(&server).await;
    for replica in [&a, &c] {
        assert_eq!(replica.status().resyncs, 0, "{:?}", replica.status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_applies_everything_or_nothing() {
    let cluster = cluster();
    let mut server = config(&cluster, &["a"]).start().await;
    let a = replica(&server, "a").await;
    let is_unchanged = |text: &str| {
        assert!(text.ends_with("not applied\n"), "{text}");
        is_untouched(&a);
    };

    // A broken file.
    server.write_config(&config(&cluster, &["a", "b"]));
    server.edit_config("log", "lgo");
    server.edit_config("grpc {", "grpc { prot = 1,");
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(!is_applied && text.contains("laredo.conf:") && text.contains("prot"), "{text}");
    is_unchanged(&text);
    assert!(!laredo_config(&server, &["diff"]).0);

    // A table that the database does not have.
    server.write_config(&config(&cluster, &["a", "b", "missing"]));
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(!is_applied && text.contains("table public.missing does not exist"), "{text}");
    is_unchanged(&text);

    // A key that needs a restart.
    let port = format!("http_port = {}", server.ports.health);
    server.write_config(&config(&cluster, &["a", "b"]));
    server.edit_config(&port, "http_port = 1");
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(!is_applied && text.contains("! health.http_port: ") && text.contains("need a restart"), "{text}");
    is_unchanged(&text);
    hang_up(&server);
    server.process.wait_for_line("need a restart: health.http_port").await.unwrap();
    assert_eq!(server.health().await.1["tables"].as_array().unwrap().len(), 1);
    let (is_applied, text) = laredo_config(&server, &["reload", "--skip-restart"]);
    assert!(is_applied, "{text}");
    let b = replica(&server, "b").await;
    let text = laredo_config(&server, &["diff"]).1;
    assert!(text.contains("health.http_port") && !text.contains("public.b"), "{text}");
    server.edit_config("http_port = 1", &port);

    // Limits and the log level.
    let limit = "client_buffer { max_size = 7 }, max_clients = 1";
    server.write_config(&config(&cluster, &["a", "b"]).target(limit));
    server.edit_config("level = info", "level = error");
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(is_applied && text.contains("= observability.logging.level: info -> error (at once)"), "{text}");
    assert!(text.contains("= table public.a targets[0].grpc.max_clients"), "{text}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let lines = server.process.output().len();
    let second = Replica::builder(server.url(), table("a")).start().unwrap();
    let is_refused = async || format!("{:?}", second.status()).contains("maximum");
    assert!(eventually(PATIENCE, is_refused).await.is_ok(), "{:?}", second.status());
    second.stop().await;
    let new: Vec<String> = server.process.output().split_off(lines);
    assert!(new.is_empty(), "nothing of this is an error: {new:?}");

    // The signal does what the command does.
    server.write_config(&config(&cluster, &["a", "c"]));
    hang_up(&server);
    server.process.wait_for_nth_line(APPLIED, 2).await.unwrap();
    let c = replica(&server, "c").await;
    compare(&cluster, &[("a", &a, "true"), ("c", &c, "true")]).await;
    let is_refused = async || matches!(b.status().error, Some(ReplicaError::Refused { code: GrpcCode::NotFound, .. }));
    assert!(eventually(PATIENCE, is_refused).await.is_ok(), "{:?}", b.status());
    assert_eq!(laredo_config(&server, &["diff"]), (true, "nothing differs\n".into()));
    is_untouched(&a);
    let verified = server.verify();
    assert!(verified.failures.is_empty() && verified.tables == 2, "{verified:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_at_once_and_without_a_database_are_exact() {
    let mut cluster = cluster();
    let with = |tables: &[&str]| config(&cluster, tables).slot("laredo_once");
    let (only_a, ab, abc) = (with(&["a"]), with(&["a", "b"]), with(&["a", "b", "c"]));
    let server = only_a.start().await;
    let a = replica(&server, "a").await;
    server.write_config(&ab);
    let outputs = std::thread::scope(|scope| {
        let reloads = [(); 2].map(|()| scope.spawn(|| laredo_config(&server, &["reload"])));
        reloads.map(|reload| reload.join().unwrap())
    });
    assert!(outputs.iter().all(|(is_applied, _)| *is_applied), "{outputs:?}");
    let added = outputs.iter().filter(|(_, text)| text.contains("+ table public.b")).count();
    assert_eq!(added, 1, "{outputs:?}");
    let b = replica(&server, "b").await;
    assert_eq!(server.health().await.1["tables"].as_array().unwrap().len(), 2);

    cluster.stop(StopMode::Fast).unwrap();
    server.write_config(&abc);
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(!is_applied && text.contains("source db cannot be asked, so nothing is applied"), "{text}");
    // A change that concerns no table of the database needs none.
    server.write_config(&ab);
    server.edit_config("level = info", "level = debug");
    let (is_applied, text) = laredo_config(&server, &["reload"]);
    assert!(is_applied, "{text}");
    cluster.restart().unwrap();
    server.write_config(&abc);
    let reloaded = async || laredo_config(&server, &["reload"]).0;
    assert!(eventually(PATIENCE, reloaded).await.is_ok(), "{}", laredo_config(&server, &["reload"]).1);
    let c = replica(&server, "c").await;
    cluster.psql("INSERT INTO a VALUES (9001, 1, 'x'); INSERT INTO b VALUES (9001, 1, 'x')").unwrap();
    compare(&cluster, &[("a", &a, "true"), ("b", &b, "true"), ("c", &c, "true")]).await;
    for replica in [&a, &b, &c] {
        assert_eq!(replica.status().connects, 1, "{:?}", replica.status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_returns_in_another_history_has_every_row_of_it() {
    // The storage is put back, a standby that lacks WAL takes over, and one that has everything.
    let changes: [fn(&mut Cluster, &StorageCopy); 3] = [
        |cluster, copy| cluster.put_back(copy, StopMode::Fast).unwrap(),
        |cluster, copy| cluster.promote(copy, StopMode::Fast).unwrap(),
        |cluster, _| cluster.begin_timeline(StopMode::Fast).unwrap(),
    ];
    for (number, change_history) in changes.into_iter().enumerate() {
        let options = ClusterOptions::default().set("restore_command", "false").set("wal_keep_size", "512MB");
        let (mut cluster, folder) = (cluster_with(options), tempfile::tempdir().unwrap());
        let path = |name: &str| serde_json::Value::from(folder.path().join(name).to_string_lossy());
        let stores = format!(
            "journal {{ store = local, store_config.path = {} }}
             snapshot {{ interval = 1s, store = local, store_config.path = {} }}",
            path("journal"),
            path("snapshots")
        );
        let with = |tables: &[&str]| config(&cluster, tables).slot("laredo_returns").target(&stores);
        let (only_a, ab) = (with(&["a"]), with(&["a", "b"]));
        let mut server = ab.start().await;
        let (a, b) = (replica(&server, "a").await, replica(&server, "b").await);
        let copy = cluster.copy_storage(StopMode::Fast).unwrap();
        // The table that leaves has a position that the next history has not reached.
        cluster.psql("INSERT INTO b SELECT i, i, repeat('lost', 100) FROM generate_series(1000, 3000) i").unwrap();
        compare(&cluster, &[("a", &a, "true"), ("b", &b, "true")]).await;
        server.write_config(&only_a);
        assert!(laredo_config(&server, &["reload"]).0);

        change_history(&mut cluster, &copy);
        cluster.psql("INSERT INTO a VALUES (5000, 1, 'new'); INSERT INTO b VALUES (5000, 1, 'new')").unwrap();
        become_equal(&cluster, "a", &a).await;
        server.write_config(&ab);
        let (is_applied, text) = laredo_config(&server, &["reload"]);
        assert!(is_applied, "{number}: {text}");
        cluster.psql("INSERT INTO b VALUES (5001, 2, 'later'); DELETE FROM b WHERE id = 7").unwrap();
        let returned = replica(&server, "b").await;
        cluster.psql("INSERT INTO b VALUES (5002, 3, 'last')").unwrap();
        for (name, replica) in [("a", &a), ("b", &returned), ("b", &b)] {
            become_equal(&cluster, name, replica).await;
        }
        let verified = server.verify();
        assert!(verified.failures.is_empty() && verified.tables == 2, "{number}: {verified:?}");
    }
}
