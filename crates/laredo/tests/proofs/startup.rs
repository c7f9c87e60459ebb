//! A server whose database is away. It reports that, continues as soon as it can, and stops when it
//! is asked to.

use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, eventually, free_port};
use tokio::net::TcpListener;

use super::bad_input::run;
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};

fn unreachable_config(port: u16) -> ServerProcessConfig {
    ServerProcessConfig::new(format!("postgresql://nobody@127.0.0.1:{port}/db"), [TableName::new("public", "t")])
}

async fn stops_as_asked(server: &ServerProcess) {
    server.process.terminate();
    assert_eq!(server.process.wait(PATIENCE).await.unwrap().code(), Some(0), "{:?}", server.process.output());
}

#[tokio::test]
async fn a_database_that_is_away_is_waited_for_and_health_says_so() {
    let server = unreachable_config(free_port().unwrap()).launch();
    server.process.wait_for_line("cannot reach the source yet").await.unwrap();
    let get = async |path| server.get(server.ports.health, path).await.unwrap();
    assert_eq!(get("/health/live").await.0, 200);
    for path in ["/health/ready", "/health/startup"] {
        let (code, said) = get(path).await;
        assert_eq!(code, 503);
        assert!(said.contains("waiting_for") && said.contains("refused"), "{said}");
    }
    stops_as_asked(&server).await;
}

#[tokio::test]
async fn a_stop_is_heard_while_the_database_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = unreachable_config(silent.local_addr().unwrap().port()).launch();
    let _connection = tokio::time::timeout(PATIENCE, silent.accept()).await.unwrap().unwrap();
    assert_eq!(server.get(server.ports.health, "/health/live").await.unwrap().0, 200);
    stops_as_asked(&server).await;
}

#[tokio::test]
async fn a_server_that_waited_serves_when_the_database_is_back() {
    let mut cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let config = ServerProcessConfig::new(cluster.url("postgres"), [TableName::new("public", "t")]);
    cluster.stop(laredo_testkit::StopMode::Fast).unwrap();
    let server = config.launch();
    server.process.wait_for_line("cannot reach the source yet").await.unwrap();
    cluster.restart().unwrap();
    server.ready().await;
    let started =
        async || server.get(server.ports.health, "/health/startup").await.is_some_and(|(code, _)| code == 200);
    eventually(PATIENCE, started).await.unwrap();
    stops_as_asked(&server).await;
}

#[tokio::test]
async fn attempts_end_where_the_configuration_says() {
    let mut config = unreachable_config(free_port().unwrap());
    config.source = "reconnect { initial_backoff = 10ms, max_attempts = 2 }".to_owned();
    config.arguments = vec!["--strict".to_owned()];
    let server = config.launch();
    assert_eq!(server.process.wait(PATIENCE).await.unwrap().code(), Some(1));
    server.process.wait_for_line("given up after 2 attempts").await.unwrap();
    let waits = server.process.output().iter().filter(|line| line.contains("cannot reach the source yet")).count();
    assert_eq!(waits, 1, "the second failure is the last");
}

#[tokio::test]
async fn all_that_is_wrong_is_said_at_once_and_nothing_is_changed() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE keyless (a int)").unwrap();
    let (url, away) = (cluster.url("postgres"), free_port().unwrap());
    let source = |name: &str, connection: &str| {
        format!(
            "{name} {{ type = postgresql, connection = \"{connection}\", publication {{ name = {name}, create = true }} }}"
        )
    };
    let table = |source: &str, table: &str| {
        format!(
            "{{ source = {source}, schema = public, table = {table}, targets = [{{ type = replication-fanout, grpc.port = 0 }}] }}"
        )
    };
    let config = format!(
        "sources {{ {}\n{}\n{}\n{} }}\ntables = [{}, {}, {}, {}]
         grpc.port = 0, health.http_port = 0, observability.metrics.port = 0",
        source("a_good", &url),
        source("b_away", &format!("postgresql://nobody@127.0.0.1:{away}/db")),
        source("c_keyless", &url),
        source("d_missing", &url),
        table("a_good", "good"),
        table("b_away", "other"),
        table("c_keyless", "keyless"),
        table("d_missing", "missing"),
    );
    let (code, said) = run(&config, &["--strict"]).await;
    assert_eq!(code, Some(2), "{said}");
    for expected in
        ["source c_keyless: table public.keyless has no primary key", "source d_missing: table public.missing"]
    {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert_eq!(cluster.psql("SELECT count(*) FROM pg_publication").unwrap(), "0");
}

#[tokio::test]
async fn a_server_with_a_client_drains_until_the_second_signal() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let table = TableName::new("public", "t");
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]);
    config.arguments = vec!["--drain-grace".to_owned(), "1h".to_owned()];
    let server = config.start().await;
    let replica = laredo_client::Replica::builder(server.url(), table).start().unwrap();
    replica.ready(PATIENCE).await.unwrap();
    server.process.terminate();
    let unready = async || server.get(server.ports.health, "/health/ready").await.is_some_and(|(code, _)| code == 503);
    eventually(PATIENCE, unready).await.unwrap();
    cluster.psql("INSERT INTO t VALUES (1)").unwrap();
    let arrived = async || replica.view().len() == 1;
    eventually(PATIENCE, arrived).await.unwrap();
    server.process.terminate();
    assert_eq!(server.process.wait(PATIENCE).await.unwrap().code(), Some(1));
}
