//! Changes of definitions that an event trigger writes into the stream, where they have an exact
//! place.

use laredo_engine::source::{SourceEvent, TableIndex};
use laredo_postgres::ddl::{self, DdlWatch};
use laredo_postgres::{ConnectionOptions, PostgresOptions};
use laredo_testkit::{FaultProxy, StopMode};
use tokio::net::TcpListener;

use crate::copy::harness::{PATIENCE, announce, cluster, follow, options, requests};

const TABLES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood, v int);
    CREATE TABLE r (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
    CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100);
    CREATE TABLE marks (id int PRIMARY KEY); INSERT INTO t VALUES (1, 'sad', 0); INSERT INTO r VALUES (1, 0)";

/// Each change is reported before the transaction that made it, and before all later ones.
#[tokio::test]
async fn a_definition_is_checked_before_the_transaction_that_changed_it() {
    let cluster = cluster(TABLES);
    cluster.psql(ddl::INSTALL).unwrap();
    let options = PostgresOptions { ddl: DdlWatch::Trigger, ..options(&cluster) };
    let mut following = follow(options, &requests(&["public.t", "public.r", "public.marks"])).await;
    for table in 0..3 {
        following.copy(table).await;
    }
    for (number, (table, sql)) in (10..).zip([
        (0, "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'; ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'"),
        (0, "ALTER TABLE t ALTER v TYPE int USING v + 1"),
        (0, "ALTER PUBLICATION laredo_pub DROP TABLE t; ALTER PUBLICATION laredo_pub ADD TABLE t"),
        (1, "ALTER TABLE r DETACH PARTITION r1; UPDATE r1 SET v = 1; ALTER TABLE r ATTACH PARTITION r1 FOR VALUES FROM (0) TO (100)"),
        (1, "CREATE TABLE r2 (LIKE r INCLUDING ALL); INSERT INTO r2 VALUES (100); ALTER TABLE r ATTACH PARTITION r2 FOR VALUES FROM (100) TO (200)"),
        (1, "DROP TABLE r2"),
        (1, "SET session_replication_role = replica; ALTER TABLE r DETACH PARTITION r1; ALTER TABLE r ATTACH PARTITION r1 FOR VALUES FROM (0) TO (100)"),
    ]) {
        cluster.psql(&format!("BEGIN; INSERT INTO marks VALUES ({number}); {sql}; COMMIT")).unwrap();
        let mut has_moved = false;
        loop {
            match following.event().await {
                SourceEvent::Moved { table: moved, .. } => {
                    assert_eq!(moved, TableIndex(table), "{sql}");
                    has_moved = true;
                }
                SourceEvent::Commit(commit) => {
                    assert!(has_moved, "{sql}: {commit:?} comes first");
                    break;
                }
                event => panic!("{sql}: {event:?}"),
            }
        }
        following.copy(table).await;
    }
    // These changes concern no row, or only temporary objects.
    for (number, (sql, is_redefined)) in (100..).zip([
        ("CREATE TEMPORARY TABLE mine (id int); ALTER TABLE mine ADD x int; DROP TABLE mine", false),
        ("ALTER TABLE t ALTER v SET STATISTICS 10", true),
        ("CREATE INDEX ON t (v); COMMENT ON TABLE t IS 'a table'", false),
    ]) {
        cluster.psql(&format!("BEGIN; INSERT INTO marks VALUES ({number}); {sql}; COMMIT")).unwrap();
        let mut redefined = false;
        loop {
            match following.event().await {
                SourceEvent::Redefined { table: TableIndex(0), .. } => redefined = true,
                SourceEvent::Commit(_) => break,
                event => panic!("{sql}: {event:?}"),
            }
        }
        assert_eq!(redefined, is_redefined, "{sql}");
    }
}

#[tokio::test]
async fn without_the_event_trigger_the_catalog_is_read_as_ever() {
    for sql in ["SELECT", ddl::REMOVE, "ALTER EVENT TRIGGER laredo_ddl DISABLE"] {
        let cluster = cluster(&format!("{TABLES}; CREATE TABLE trigger (id int PRIMARY KEY, note int)"));
        if sql != "SELECT" {
            cluster.psql(ddl::INSTALL).unwrap();
            cluster.psql(sql).unwrap();
        }
        let options = PostgresOptions { ddl: DdlWatch::Trigger, ..options(&cluster) };
        let mut following = follow(options, &requests(&["public.t", "public.trigger"])).await;
        following.copy(0).await;
        cluster.psql("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'").unwrap();
        announce(&cluster);
        following.moved(0).await;
    }
}

/// The stream does not read while it waits for the check of a definition, and PostgreSQL waits
/// until the stream has read everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_shuts_down_does_not_wait_for_a_check_that_is_never_made() {
    let mut cluster = cluster(TABLES);
    cluster.psql(ddl::INSTALL).unwrap();
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", cluster.port())).await.unwrap();
    let connection = ConnectionOptions::parse(&format!("postgresql://postgres@{}/postgres", proxy.addr())).unwrap();
    let options = PostgresOptions { connection, ddl: DdlWatch::Trigger, ..options(&cluster) };
    let mut following = follow(options, &requests(&["public.t"])).await;
    following.copy(0).await;
    // Without any acknowledgement PostgreSQL would wait for none.
    cluster.psql("INSERT INTO t VALUES (2, 'ok', 0)").unwrap();
    match following.event().await {
        SourceEvent::Commit(commit) => drop(following.acknowledged.send_replace(commit.end)),
        event => panic!("{event:?}"),
    }
    // The watch of definitions connects again, and gets no answer from here on.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    proxy.retarget(silent.local_addr().unwrap());
    let watch = "application_name = 'laredo watch'";
    cluster.psql(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {watch}")).unwrap();
    let _frozen = tokio::time::timeout(PATIENCE, silent.accept()).await.expect("the watch connects").unwrap();
    cluster.psql("BEGIN; ALTER TABLE t ALTER v SET STATISTICS 10; INSERT INTO t VALUES (3, 'ok', 0); COMMIT").unwrap();
    cluster.stop(StopMode::Fast).unwrap();
}
