//! A table that cannot be followed does not affect other tables. It reports its problem, and is
//! followed again once the cause is gone.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use laredo_client::Replica;
use laredo_core::TableName;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, SmallDisk, eventually};
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::compare::view_differences;
use crate::support::server::{PATIENCE, PATIENT, ServerProcess, ServerProcessConfig};

const KEY: &[&str] = &["id"];

/// Starts a database with two tables, and a role that may follow them.
async fn two_tables() -> (Cluster, Client, [TableName; 2]) {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let create = "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, 'a' FROM generate_series(1, 100) i;
                  CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b SELECT i, 'b' FROM generate_series(1, 100) i;
                  CREATE ROLE follower LOGIN REPLICATION; ALTER TABLE a OWNER TO follower; ALTER TABLE b OWNER TO follower;
                  GRANT CREATE ON DATABASE postgres TO follower";
    cluster.psql(create).unwrap();
    let sql = cluster.connect().await.unwrap();
    (cluster, sql, [TableName::new("public", "a"), TableName::new("public", "b")])
}

fn config(cluster: &Cluster, tables: &[TableName]) -> ServerProcessConfig {
    let url = cluster.url("postgres").replace("postgres@", "follower@");
    ServerProcessConfig::new(url, tables.iter().cloned()).slot("laredo_tables").target(PATIENT)
}

fn replica(server: &ServerProcess, table: &TableName) -> Replica {
    Replica::builder(server.url(), table.clone()).start().unwrap()
}

/// Returns the health report of a table.
async fn report(server: &ServerProcess, table: &TableName) -> Value {
    let (_, health) = server.health().await;
    let is_it = |report: &&Value| report["schema"] == table.schema && report["table"] == table.table;
    health["tables"].as_array().and_then(|tables| tables.iter().find(is_it)).cloned().unwrap_or_default()
}

async fn is_in(server: &ServerProcess, table: &TableName, state: &str) {
    let is_there = async || report(server, table).await["state"] == state;
    if eventually(PATIENCE, is_there).await.is_err() {
        panic!("{table} is not {state}: {}\n{}", report(server, table).await, server.process.output().join("\n"));
    }
}

/// Waits until a replica has everything, and compares it with the database.
async fn is_equal(sql: &Client, server: &ServerProcess, replica: &Replica, table: &TableName) {
    let position = flushed(sql).await.unwrap();
    let reached = async || replica.view().position() >= position;
    if eventually(PATIENCE, reached).await.is_err() {
        let (status, report) = (replica.status(), report(server, table).await);
        panic!("{table} does not reach {position}: {status:?}\n{report}\n{}", server.process.output().join("\n"));
    }
    let rows = rows_at_rest(sql, table, KEY, "true").await.unwrap();
    let differences = view_differences(&replica.view(), &rows, KEY);
    assert!(differences.is_empty(), "{table}:\n{differences}");
}

async fn code(server: &ServerProcess, path: &str) -> u16 {
    server.get(server.ports.health, path).await.expect("health answers").0
}

fn laredo(server: &ServerProcess, arguments: &[&str]) -> (i32, String) {
    let program = Path::new(env!("CARGO_BIN_EXE_laredo-server")).with_file_name("laredo");
    let output =
        laredo_testkit::clean_command(program).args(arguments).args(["--oam", &server.oam_url()]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

/// Each fault ends the copies of one table, and passes after a while. The catalog shows none of
/// them as a change of the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_passing_fault_heals_without_an_operator() {
    let (cluster, sql, [a, b]) = two_tables().await;
    let server = config(&cluster, &[a.clone(), b.clone()]).start().await;
    let (follows_a, follows_b) = (replica(&server, &a), replica(&server, &b));
    for (begins, ends) in [
        // No further session is allowed. The copy's session is refused, and existing ones stay.
        ("ALTER ROLE follower CONNECTION LIMIT 0", "ALTER ROLE follower CONNECTION LIMIT -1"),
        ("ALTER ROLE follower NOLOGIN", "ALTER ROLE follower LOGIN"),
        (
            "ALTER ROLE follower SET search_path TO ''; ALTER DATABASE postgres CONNECTION LIMIT 0",
            "ALTER DATABASE postgres CONNECTION LIMIT -1",
        ),
    ] {
        sql.batch_execute(begins).await.unwrap();
        sql.batch_execute("VACUUM FULL a").await.unwrap();
        let (code, said) = laredo(&server, &["reload", "public.a"]);
        assert_eq!(code, 1, "{begins}: {said}");
        is_in(&server, &a, "retrying").await;
        let report = report(&server, &a).await;
        assert!(report["error"].is_string() && report["next_attempt_ms"].as_u64() <= Some(30_000), "{report}");
        sql.batch_execute("INSERT INTO b SELECT max(id) + 1, 'beside it' FROM b").await.unwrap();
        is_equal(&sql, &server, &follows_b, &b).await;
        sql.batch_execute(
            "INSERT INTO a SELECT max(id) + 1, 'meanwhile' FROM a; DELETE FROM a WHERE id = (SELECT min(id) FROM a)",
        )
        .await
        .unwrap();
        sql.batch_execute(ends).await.unwrap();
        is_in(&server, &a, "live").await;
        is_equal(&sql, &server, &follows_a, &a).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_pass_says_what_to_run_and_is_noticed_when_it_was_run() {
    let (cluster, sql, [a, b]) = two_tables().await;
    sql.batch_execute(
        "ALTER TABLE a OWNER TO postgres; GRANT SELECT ON a TO follower; CREATE PUBLICATION laredo_test_pub
        FOR TABLE a, b WITH (publish_via_partition_root = true); ALTER PUBLICATION laredo_test_pub OWNER TO follower",
    )
    .await
    .unwrap();
    let server = config(&cluster, &[a.clone(), b.clone()]).start().await;
    let (follows_a, follows_b) = (replica(&server, &a), replica(&server, &b));
    is_equal(&sql, &server, &follows_a, &a).await;
    for (breaks, says, mends) in [
        ("REVOKE SELECT ON a FROM follower; VACUUM FULL a", "GRANT SELECT ON", "GRANT SELECT ON a TO follower"),
        ("ALTER TABLE a DROP CONSTRAINT a_pkey", "ADD PRIMARY KEY", "ALTER TABLE a ADD PRIMARY KEY (id)"),
        ("ALTER TABLE a ENABLE ROW LEVEL SECURITY; VACUUM FULL a", "BYPASSRLS", "ALTER ROLE follower BYPASSRLS"),
        ("ALTER TABLE a RENAME TO away", "was dropped or renamed", "ALTER TABLE away RENAME TO a"),
    ] {
        sql.batch_execute("INSERT INTO a SELECT max(id) + 1, 'before' FROM a").await.unwrap();
        for statement in breaks.split("; ") {
            sql.batch_execute(statement).await.unwrap();
        }
        is_in(&server, &a, "failed").await;
        let report = report(&server, &a).await;
        assert!(report["error"].as_str().is_some_and(|error| error.contains(says)), "{breaks}: {report}");
        let (code_of_order, said) = laredo(&server, &["reload", "public.a"]);
        assert_eq!(code_of_order, 1, "{breaks}: {said}");
        assert_eq!(
            (code(&server, "/health/ready").await, code(&server, "/health/ready?table=public.b").await),
            (200, 200)
        );
        assert_eq!(code(&server, "/health/ready?table=public.a").await, 503);
        sql.batch_execute("INSERT INTO b SELECT max(id) + 1, 'beside it' FROM b").await.unwrap();
        is_equal(&sql, &server, &follows_b, &b).await;
        sql.batch_execute(mends).await.unwrap();
        sql.batch_execute("UPDATE a SET v = 'mended' WHERE id % 7 = 0").await.unwrap();
        is_in(&server, &a, "live").await;
        is_equal(&sql, &server, &follows_a, &a).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_swapped_or_made_again_is_published_and_followed() {
    let (cluster, sql, [a, b]) = two_tables().await;
    let server = config(&cluster, &[a.clone(), b.clone()]).start().await;
    let follows = replica(&server, &a);
    is_equal(&sql, &server, &follows, &a).await;
    let swap = "BEGIN; CREATE TABLE a_new (LIKE a INCLUDING ALL); ALTER TABLE a_new OWNER TO follower; INSERT INTO a_new SELECT id, 'new' FROM a;
                ALTER TABLE a RENAME TO a_old; ALTER TABLE a_new RENAME TO a; COMMIT";
    let made_again = "DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, w int, v text); ALTER TABLE a OWNER TO follower; INSERT INTO a VALUES (1, 2, 'x')";
    let by_schema = "CREATE SCHEMA side; ALTER TABLE a SET SCHEMA side; CREATE TABLE a (id int PRIMARY KEY, v text);
                     ALTER TABLE a OWNER TO follower; INSERT INTO a VALUES (5, 'other')";
    for (number, statements) in [swap, made_again, by_schema].into_iter().enumerate() {
        sql.batch_execute(statements).await.unwrap();
        sql.batch_execute(&format!("INSERT INTO a (id, v) VALUES (1000 + {number}, 'first after it')")).await.unwrap();
        let shows = async || replica_has(&follows, 1000 + number as i32);
        if eventually(PATIENCE, shows).await.is_err() {
            panic!("{statements}: {}\n{}", report(&server, &a).await, server.process.output().join("\n"));
        }
        sql.batch_execute("UPDATE a SET v = v || '!'").await.unwrap();
        is_equal(&sql, &server, &follows, &a).await;
    }
}

fn replica_has(replica: &Replica, id: i32) -> bool {
    let view = replica.view();
    view.rows().any(|row| row.get::<i32>("id").is_ok_and(|found| found == id))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_table_is_seen_to_be_drained() {
    let (cluster, _sql, [a, b]) = two_tables().await;
    let mut server = config(&cluster, &[a.clone(), b]).start().await;
    server.ends_unverified();
    let (drained, said) = laredo(&server, &["drain", "public.a"]);
    assert_eq!(drained, 0, "{said}");
    is_in(&server, &a, "drained").await;
    assert_eq!((code(&server, "/health/ready").await, code(&server, "/health/ready?table=public.a").await), (200, 503));
    let (ready, said) = laredo(&server, &["ready", "public.a"]);
    assert!(ready == 1 && said.contains("public.a: draining"), "{said}");
    let metrics = server.metrics().await;
    for line in [
        "laredo_table_state{table=\"public.a\",state=\"drained\"} 1",
        "laredo_table_state{table=\"public.a\",state=\"live\"} 0",
        "laredo_table_ready{table=\"public.a\"} 0",
        "laredo_table_problem{table=\"public.a\",reason=\"drained\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

/// The journal's disk is full: for a while, until the limit of waiting changes is reached, and
/// while the server is stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_a_journal_is_lived_through() {
    let (cluster, sql, [a, b]) = two_tables().await;
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk"), "96m").unwrap() else { return };
    let mut config = config(&cluster, &[a.clone(), b.clone()]);
    config = config.target(&format!("journal {{ store = local, store_config.path = \"{}\" }}", disk.path().display()));
    let mut server = config.start().await;
    let (follows_a, follows_b) = (replica(&server, &a), replica(&server, &b));
    is_equal(&sql, &server, &follows_a, &a).await;
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'laredo_tables'";
    let filler = disk.fill().unwrap();
    sql.batch_execute("INSERT INTO a SELECT i, repeat('x', 1000) FROM generate_series(1000, 1200) i").await.unwrap();
    server.process.wait_for_line("the journal cannot be written for now").await.unwrap();
    let before = cluster.psql(confirmed).unwrap();
    // The table is still served, and nothing is acknowledged.
    sql.batch_execute("UPDATE a SET v = 'served' WHERE id < 10").await.unwrap();
    is_equal(&sql, &server, &follows_a, &a).await;
    assert_eq!(report(&server, &a).await["problems"][0]["reason"], "journal_not_kept");
    assert_eq!(code(&server, "/health/ready").await, 200);
    assert_eq!(cluster.psql(confirmed).unwrap(), before);
    drop(filler);
    server.process.wait_for_line("the journal is written again").await.unwrap();
    let moved = async || cluster.psql(confirmed).unwrap() > before;
    sql.batch_execute("INSERT INTO b SELECT i, 'more' FROM generate_series(1000, 1100) i").await.unwrap();
    eventually(PATIENCE, moved).await.unwrap();
    // The server is stopped while the disk is full, and started when there is room. Nothing is
    // copied.
    let filler = disk.fill().unwrap();
    sql.batch_execute("UPDATE a SET v = 'unkept' WHERE id < 50; INSERT INTO b SELECT i, repeat('y', 9000) FROM generate_series(2000, 2200) i")
        .await
        .unwrap();
    is_equal(&sql, &server, &follows_b, &b).await;
    server.process.terminate();
    let ended = server.process.wait(PATIENCE).await.expect("a full disk does not keep the server from ending");
    assert_eq!(ended.code(), Some(0), "{}", server.process.output().join("\n"));
    drop(filler);
    server.restart().await;
    is_equal(&sql, &server, &follows_a, &a).await;
    is_equal(&sql, &server, &follows_b, &b).await;
    for table in [&a, &b] {
        assert_eq!(server.metric("laredo_copies_total", table).await, Some(0), "{table} was copied");
    }
}

/// More changes wait for the disk than the limit allows. That table stops following, the other one
/// does not, and both are equal in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_disk_stays_full_holds_up_no_other() {
    let (cluster, sql, [a, b]) = two_tables().await;
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk"), "300m").unwrap() else { return };
    let of_a = folder.path().join("disk/a");
    let kept_elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir_all(&kept_elsewhere).unwrap();
    let mut config = config(&cluster, std::slice::from_ref(&a));
    config = config.target(&format!("journal {{ store = local, store_config.path = \"{}\" }}", of_a.display()));
    config.extra = format!(
        "tables += {{ source = db, schema = public, table = b, targets = [{{ type = replication-fanout, grpc.port = 0, heartbeat_interval = 200ms
         journal {{ store = local, store_config.path = \"{}\" }} }}] }}",
        kept_elsewhere.display()
    );
    let server = config.start().await;
    let url = format!("http://127.0.0.1:{}", server.ports.fanout);
    let follows_a = Replica::builder(url.as_str(), a.clone()).start().unwrap();
    is_equal(&sql, &server, &follows_a, &a).await;
    let filler = disk.fill().unwrap();
    let next = AtomicI64::new(10_000);
    let has_stopped = async || {
        let id = next.fetch_add(1000, Ordering::Relaxed);
        let insert =
            format!("INSERT INTO a SELECT i, repeat(md5(i::text), 250) FROM generate_series({id}, {id} + 499) i");
        sql.batch_execute(&insert).await.unwrap();
        report(&server, &a).await["state"] == "retrying"
    };
    eventually(PATIENCE, has_stopped).await.unwrap();
    // One transaction that is larger than the limit of waiting changes.
    sql.batch_execute("UPDATE a SET v = v || 'z'; INSERT INTO b VALUES (5000, 'beside it')").await.unwrap();
    let position = flushed(&sql).await.unwrap();
    let is_past = async || {
        let text = report(&server, &b).await["position"].as_str().unwrap_or_default().to_owned();
        text.parse::<laredo_core::Lsn>().is_ok_and(|reached| reached >= position)
    };
    eventually(PATIENCE, is_past).await.expect("the other table goes on");
    drop(filler);
    is_in(&server, &a, "live").await;
    is_equal(&sql, &server, &follows_a, &a).await;
}
#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_broken_table_serves_the_others_and_then_that_one() {
    let (cluster, sql, [a, b]) = two_tables().await;
    sql.batch_execute("ALTER TABLE b DROP CONSTRAINT b_pkey").await.unwrap();
    let missing = TableName::new("public", "later");
    let server = config(&cluster, &[a.clone(), b.clone(), missing.clone()]).start().await;
    let follows_a = replica(&server, &a);
    is_equal(&sql, &server, &follows_a, &a).await;
    for table in [&b, &missing] {
        is_in(&server, table, "failed").await;
        assert_eq!(code(&server, &format!("/health/ready?table={table}")).await, 503);
    }
    let (_, health) = server.health().await;
    let not_served = health["not_served"].as_array().unwrap();
    assert!(not_served.len() == 2 && not_served[0].as_str().unwrap().starts_with("public.b: "), "{health}");
    assert_eq!(code(&server, "/health/ready?source=db").await, 200);
    assert_eq!(code(&server, "/health/ready?table=public.other").await, 404);
    sql.batch_execute("ALTER TABLE b ADD PRIMARY KEY (id); CREATE TABLE later (id int PRIMARY KEY, v text); INSERT INTO later VALUES (1, 'x');
        ALTER TABLE later OWNER TO follower")
        .await
        .unwrap();
    for table in [&b, &missing] {
        is_in(&server, table, "live").await;
        let follows = replica(&server, table);
        let update = format!("UPDATE {} SET v = 'told'", table.table);
        sql.batch_execute(&update).await.unwrap();
        is_equal(&sql, &server, &follows, table).await;
    }
}
