//! Sources that cannot be followed. Each reports the reason, does not affect the others, and is
//! followed again once the cause is gone, without a restart. Each server is compared with the
//! database when its test ends.

use std::time::Duration;

use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, StopMode, clean_command, eventually, free_port};
use serde_json::Value;
use tokio::time::Instant;

use super::command::answer;
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};

/// The longest time until a source is followed again after its fault is gone.
const HEALED: Duration = Duration::from_secs(30);
/// The longest time until another server takes over.
const TAKEN_OVER: Duration = Duration::from_secs(10);

pub(super) fn table(name: &str) -> TableName {
    TableName::new("public", name)
}

/// Returns the health report of a source.
async fn source(server: &ServerProcess, name: &str) -> Value {
    // The server may not answer yet.
    let Some((_, body)) = server.get(server.ports.health, "/health/ready").await else { return Value::Null };
    let health: Value = serde_json::from_str(&body).unwrap_or_default();
    let sources = health["sources"].as_array().cloned().unwrap_or_default();
    sources.into_iter().find(|source| source["source"] == name).unwrap_or_default()
}

pub(super) async fn await_state(server: &ServerProcess, name: &str, state: &str, words: &str) {
    await_state_within(PATIENCE, server, name, state, words).await;
}

async fn await_state_within(patience: Duration, server: &ServerProcess, name: &str, state: &str, words: &str) {
    let seen = async || {
        let source = source(server, name).await;
        source["state"] == state && source["reason"].as_str().unwrap_or_default().contains(words)
    };
    if eventually(patience, seen).await.is_err() {
        panic!("not {state} for {words}: {:#}", source(server, name).await);
    }
}

pub(super) async fn has_rows(server: &ServerProcess, table: &TableName, rows: u64) {
    let has = async || server.metric("laredo_rows", table).await == Some(rows);
    eventually(HEALED, has).await.unwrap_or_else(|_| panic!("{table} does not come to {rows} rows"));
}

/// Returns a server's configuration with two sources. The source `good` has `public.a` in the
/// database `postgres`, and `db` has `public.b` in `other`.
pub(super) fn two_sources(cluster: &Cluster, connection: &str) -> ServerProcessConfig {
    let mut config = ServerProcessConfig::new(connection, [table("b")]).slot("states_b");
    config.extra = format!(
        "sources {{ good {{ type = postgresql, connection = \"{}\", slot_mode = stateful, slot_name = states_a
            publication {{ name = states_a, create = true }} }} }}
         tables += {{ source = good, schema = public, table = a, targets = [{{ type = replication-fanout, grpc {{ port = {} }} }}] }}",
        cluster.url("postgres"),
        free_port().unwrap(),
    );
    config
}

/// Starts a cluster with a role that logs in with a password.
pub(super) fn two_databases() -> (Cluster, String) {
    let hba = vec!["host all states_b 127.0.0.1/32 scram-sha-256".to_owned()];
    let cluster = Cluster::start(ClusterOptions { hba, ..ClusterOptions::default() }).unwrap();
    cluster.psql("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").unwrap();
    cluster.psql("CREATE ROLE states_b LOGIN REPLICATION PASSWORD 'right'").unwrap();
    cluster.psql("CREATE DATABASE other OWNER states_b").unwrap();
    let create = "CREATE TABLE b (id int PRIMARY KEY); ALTER TABLE b OWNER TO states_b; INSERT INTO b VALUES (1)";
    cluster.psql_in("other", create).unwrap();
    let url = cluster.url("other").replace("postgres@", "states_b:right@");
    (cluster, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_changed_concerns_one_source_until_it_is_put_back() {
    let (cluster, url) = two_databases();
    let mut server = two_sources(&cluster, &url).start().await;
    let change = "ALTER ROLE states_b PASSWORD 'wrong';
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'states_b'";
    cluster.psql(change).unwrap();
    await_state(&server, "db", "refused", "password authentication failed").await;
    cluster.psql("INSERT INTO a VALUES (2)").unwrap();
    cluster.psql_in("other", "INSERT INTO b VALUES (2)").unwrap();
    has_rows(&server, &table("a"), 2).await;
    assert_eq!(server.metric("laredo_rows", &table("b")).await, Some(1), "its rows are served as they were");
    let metrics = server.metrics().await;
    assert!(metrics.contains("laredo_source_state{source=\"db\",state=\"refused\"} 1"), "{metrics}");
    let logged = |server: &ServerProcess| {
        server.process.output().iter().filter(|line| line.contains("is refused until")).count()
    };
    // The server tries again more than once, and logs the reason once.
    let began = Instant::now();
    let again = async || cluster.log().matches("password authentication failed").count() > 4;
    eventually(Duration::from_secs(60), again)
        .await
        .unwrap_or_else(|_| panic!("looked at again in {:?}", began.elapsed()));
    assert_eq!(logged(&server), 1, "{:#?}", server.process.output());
    cluster.psql("ALTER ROLE states_b PASSWORD 'right'").unwrap();
    has_rows(&server, &table("b"), 2).await;
    // A restart with the wrong password serves the other source.
    cluster.psql("ALTER ROLE states_b PASSWORD 'wrong'").unwrap();
    server.relaunch().await;
    has_rows(&server, &table("a"), 2).await;
    await_state(&server, "db", "refused", "password authentication failed").await;
    cluster.psql("ALTER ROLE states_b PASSWORD 'right'").unwrap();
    has_rows(&server, &table("b"), 2).await;
    server.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_at_the_start_is_waited_for() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let create = "CREATE TABLE b (id int PRIMARY KEY)";
    cluster.psql(&format!("CREATE ROLE plain LOGIN; {create}")).unwrap();
    cluster.psql("CREATE DATABASE filled").unwrap();
    cluster.psql_in("filled", create).unwrap();
    let as_role = |role: &str, database: &str| cluster.url(database).replace("postgres@", &format!("{role}@"));
    let faults = [
        (
            as_role("postgres", "elsewhere"),
            "elsewhere",
            "database \"elsewhere\" does not exist",
            "CREATE DATABASE elsewhere TEMPLATE filled",
        ),
        (
            as_role("nobody_yet", "postgres"),
            "postgres",
            "role \"nobody_yet\" does not exist",
            "CREATE ROLE nobody_yet LOGIN SUPERUSER",
        ),
        (
            as_role("plain", "postgres"),
            "postgres",
            "may not replicate; as a superuser run ALTER ROLE",
            "ALTER ROLE plain SUPERUSER",
        ),
    ];
    for (number, (url, database, words, remedy)) in faults.into_iter().enumerate() {
        let mut config = ServerProcessConfig::new(url, [table("b")]);
        config.publication = format!("states_{number}");
        let server = config.launch();
        await_state(&server, "db", "refused", words).await;
        let live = server.get(server.ports.health, "/health/live").await;
        assert_eq!(live.map(|(code, _)| code), Some(200));
        cluster.psql(remedy).unwrap();
        let began = Instant::now();
        server.ready().await;
        assert!(began.elapsed() < HEALED, "{:?}", began.elapsed());
        let insert = format!("INSERT INTO b VALUES ({number})");
        cluster.psql_in(database, &insert).unwrap();
        let rows: u64 = cluster.psql_in(database, "SELECT count(*) FROM b").unwrap().parse().unwrap();
        has_rows(&server, &table("b"), rows).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_gone_is_waited_for_and_then_everything_is_copied() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE a (id int PRIMARY KEY)").unwrap();
    cluster.psql("CREATE PUBLICATION p FOR TABLE b").unwrap();
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table("b")]).slot("states_gone");
    config.publication = "p".to_owned();
    // The server may not create a publication.
    config.source = format!("{}\npublication.create = false", config.source);
    let server = config.start().await;
    for round in 0..2 {
        let gone = ["DROP PUBLICATION p", "ALTER PUBLICATION p RENAME TO q"][round];
        let back = ["CREATE PUBLICATION p FOR TABLE b", "ALTER PUBLICATION q RENAME TO p"][round];
        cluster.psql(&format!("{gone}; INSERT INTO b VALUES ({round})")).unwrap();
        await_state(&server, "db", "refused", "run CREATE PUBLICATION").await;
        cluster.psql(&format!("INSERT INTO b VALUES (10 + {round}); {back}")).unwrap();
        has_rows(&server, &table("b"), 2 * (round as u64 + 1)).await;
        server.ready().await;
    }
}

/// PostgreSQL 18 and newer send nothing, and no error, while the publication is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_publication_loses_no_row_once_it_exists_again() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE b (id int PRIMARY KEY)").unwrap();
    let server = ServerProcessConfig::new(cluster.url("postgres"), [table("b")]).slot("states_dropped").start().await;
    let publication = cluster.psql("SELECT pubname FROM pg_publication").unwrap();
    let dropped = |row: u32| format!("DROP PUBLICATION {publication}; INSERT INTO b VALUES ({row})");
    // The server creates it again: once with no change after the drop, and once with one.
    cluster.psql(&format!("DROP PUBLICATION {publication}")).unwrap();
    let exists = async || cluster.psql("SELECT count(*) FROM pg_publication").unwrap() == "1";
    eventually(HEALED, exists).await.unwrap();
    cluster.psql("INSERT INTO b VALUES (1)").unwrap();
    has_rows(&server, &table("b"), 1).await;
    cluster.psql(&dropped(2)).unwrap();
    has_rows(&server, &table("b"), 2).await;
    // Another role does, before a check finds it missing.
    cluster.psql(&format!("{}; CREATE PUBLICATION {publication} FOR TABLE b", dropped(3))).unwrap();
    has_rows(&server, &table("b"), 3).await;
    server.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_to_reload_has_a_refused_source_looked_at_now() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE b (id int PRIMARY KEY); CREATE ROLE plain LOGIN").unwrap();
    let server =
        ServerProcessConfig::new(cluster.url("postgres").replace("postgres@", "plain@"), [table("b")]).launch();
    await_state(&server, "db", "refused", "may not replicate").await;
    cluster.psql("ALTER ROLE plain SUPERUSER").unwrap();
    let arguments = ["reload", "public.b", "--oam", &server.oam_url()];
    let ordered = clean_command(env!("CARGO_BIN_EXE_laredo")).args(arguments).output().unwrap();
    assert!(!ordered.status.success(), "nothing was reloaded: {ordered:?}");
    server.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_stands_by_and_takes_over_without_a_copy() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let journal = format!("journal {{ store = local, store_config.path = \"{}\" }}", folder.path().display());
    let config =
        ServerProcessConfig::new(cluster.url("postgres"), [table("b")]).slot("states_rolling").target(&journal);
    let mut servers = vec![config.start().await];
    for round in 2..=3 {
        let next = config.launch();
        await_state(&next, "db", "standby", "replication slot states_rolling is used by process").await;
        cluster.psql(&format!("INSERT INTO b VALUES ({round})")).unwrap();
        let before = servers.pop().unwrap();
        has_rows(&before, &table("b"), round).await;
        assert_eq!(next.health().await.0, 503);
        next.get(next.ports.health, "/health/live").await.expect("it is alive");
        let mut before = before;
        before.ends_unverified();
        before.process.terminate();
        before.process.wait(PATIENCE).await.unwrap();
        let ready = async || next.health().await.0 == 200;
        eventually(TAKEN_OVER, ready).await.expect("it takes over");
        has_rows(&next, &table("b"), round).await;
        assert_eq!(next.metric("laredo_copies_total", &table("b")).await, Some(0));
        assert_eq!(next.source_metric("laredo_slot_losses_total").await, Some(0));
        servers.push(next);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_server_has_is_waited_for() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let journal = format!("journal {{ store = local, store_config.path = \"{}\" }}", folder.path().display());
    let config = ServerProcessConfig::new(cluster.url("postgres"), [table("b")]).target(&journal);
    // Each server has a slot of its own.
    let mut first = config.clone().slot("states_first").start().await;
    let second = config.slot("states_second").launch();
    await_state(
        &second,
        "db",
        "standby",
        &format!("is in use by another laredo-server (process {} on", first.process.id()),
    )
    .await;
    first.ends_unverified();
    first.process.terminate();
    first.process.wait(PATIENCE).await.unwrap();
    let ready = async || second.health().await.0 == 200;
    eventually(TAKEN_OVER, ready).await.expect("it takes over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_source_lets_postgres_shut_down_and_continues_after_its_start() {
    let mut cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE b (id int PRIMARY KEY, v text)").unwrap();
    let server = ServerProcessConfig::new(cluster.url("postgres"), [table("b")]).slot("states_paused").start().await;
    let oam = server.oam_url();
    answer(&["pause", "--oam", &oam]);
    await_state(&server, "db", "paused", "an operator paused it").await;
    // Write more than fits into queues and sockets.
    let write = "DO $$ BEGIN FOR i IN 1..1500 LOOP
        INSERT INTO b SELECT i * 50 + g, repeat('x', 1000) FROM generate_series(1, 50) g; COMMIT; END LOOP; END $$";
    cluster.psql(write).unwrap();
    // The server gives the connection up after a minute.
    let patience = PATIENCE + Duration::from_secs(60);
    await_state_within(patience, &server, "db", "paused", "the connection was given up").await;
    let began = Instant::now();
    cluster.stop(StopMode::Fast).unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "it waited for {:?}", began.elapsed());
    cluster.restart().unwrap();
    answer(&["resume", "--oam", &oam]);
    has_rows(&server, &table("b"), 75_000).await;
    server.ready().await;
    assert_eq!(server.metric("laredo_copies_total", &table("b")).await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_says_when_it_is_tried_again() {
    let url = format!("postgresql://nobody@127.0.0.1:{}/db", free_port().unwrap());
    let mut server = ServerProcessConfig::new(url, [table("b")]).launch();
    server.ends_unverified();
    await_state(&server, "db", "retrying", "cannot connect to PostgreSQL").await;
    let source = source(&server, "db").await;
    assert!(source["next_attempt_ms"].as_u64().is_some_and(|ms| ms <= 10_000), "{source}");
}
