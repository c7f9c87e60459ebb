//! `laredo verify --clients` against clients of every kind. It reports each client by name, and if
//! the client equals the server.

use std::time::{Duration, Instant};

use laredo_client::{ColumnPredicate, Replica};
use laredo_core::TableName;
use laredo_testkit::oracle::flushed;
use laredo_testkit::{ChildProcess, Cluster, ClusterOptions, clean_command, eventually};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::support::simple::SimpleClient;
use crate::support::snapshotter::{self, SnapshotterProcess};

/// The time that a server gives its clients to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

struct QuietServer {
    // Before the cluster: when the server is dropped, it is verified.
    server: ServerProcess,
    cluster: Cluster,
    sql: Client,
    table: TableName,
}

impl QuietServer {
    /// Starts a server without heartbeats, so that a wrong client on an idle table does not soon
    /// notice by itself.
    async fn start() -> QuietServer {
        let cluster = Cluster::start(ClusterOptions::default().set("autovacuum", "off")).unwrap();
        let schema = "CREATE TABLE t (id int PRIMARY KEY, n int, body text);
            INSERT INTO t SELECT i, 0, 'row ' || i FROM generate_series(1, 3000) i";
        cluster.psql(schema).unwrap();
        let table = TableName::new("public", "t");
        let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]);
        config.target = "heartbeat_interval = 1h".to_owned();
        let server = config.start().await;
        let sql = cluster.connect().await.unwrap();
        QuietServer { cluster, sql, server, table }
    }

    async fn replica(&self, client_id: &str) -> Replica {
        let replica = Replica::builder(self.server.url(), self.table.clone()).client_id(client_id).start().unwrap();
        replica.ready(PATIENCE).await.unwrap();
        replica
    }

    /// Starts a replica in a process of its own.
    async fn tail(&self) -> (ChildProcess, String) {
        let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
        command.args(["tail", "public.t", "--server", &self.server.url()]);
        let tail = ChildProcess::spawn(command).unwrap();
        tail.wait_for_line("following public.t").await.unwrap();
        let client_id = format!("laredo-tail-{}", tail.id());
        (tail, client_id)
    }

    /// Changes a row, and waits until the server has it.
    async fn touch(&self) {
        self.sql.batch_execute("UPDATE t SET n = n + 1 WHERE id = 1").await.unwrap();
        let position = flushed(&self.sql).await.unwrap();
        eventually(PATIENCE, async || self.server.is_live_at(position).await).await.unwrap();
    }

    async fn verify(&self) -> ClientVerifyResults {
        let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
        command.args(["verify", "public.t", "--clients", "--json", "--oam", &self.server.oam_url()]);
        // The clients of this process answer while the command runs.
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert_eq!(json["equal"], true, "{json}");
        ClientVerifyResults { code: output.status.code(), clients: json["clients"].as_array().unwrap().clone() }
    }
}

/// The results of a verification for the clients.
#[derive(Debug)]
struct ClientVerifyResults {
    code: Option<i32>,
    clients: Vec<Value>,
}

impl ClientVerifyResults {
    fn client(&self, client_id: &str) -> &Value {
        let found = self.clients.iter().find(|client| client["client_id"] == client_id);
        found.unwrap_or_else(|| panic!("no {client_id}: {self:?}"))
    }

    fn outcome(&self, client_id: &str) -> &str {
        self.client(client_id)["outcome"].as_str().unwrap()
    }

    fn differs(&self, client_id: &str) -> bool {
        self.clients.iter().any(|client| client["client_id"] == client_id && client["outcome"] == "differs")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_every_kind_are_named_with_their_result() {
    let setting = QuietServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut archived = snapshotter::table(&setting.server.url(), &setting.table, folder.path(), &json!({}));
    archived["source"]["client_id"] = json!("archive");
    let snapshotter = SnapshotterProcess::launch(&[archived], &json!({}), &[]);
    snapshotter.ready().await;
    let full = setting.replica("full").await;
    let filtered = Replica::builder(setting.server.url(), setting.table.clone()).client_id("filtered");
    let filtered = filtered.filter(ColumnPredicate::equals("n", 0.0)).start().unwrap();
    filtered.ready(PATIENCE).await.unwrap();
    let simple = SimpleClient::start(&setting.server.url(), &setting.table, &["id"], Vec::new());
    eventually(PATIENCE, async || simple.state().is_loaded).await.unwrap();
    let (_tail, tail) = setting.tail().await;
    setting.touch().await;

    let found = setting.verify().await;
    assert_eq!((found.code, found.clients.len()), (Some(0), 5), "{found:?}");
    for (client_id, rows) in [("full", json!(3000)), (&tail, json!(3000)), ("archive", Value::Null)] {
        let client = found.client(client_id);
        assert_eq!((&client["outcome"], &client["rows"]), (&json!("equal"), &rows), "{found:?}");
    }
    for (client_id, reason) in [("filtered", "filters"), ("simple", "Structs")] {
        let client = found.client(client_id);
        assert_eq!(client["outcome"], "not_comparable", "{found:?}");
        assert!(client["reason"].as_str().unwrap().contains(reason), "{found:?}");
    }
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
    command.args(["verify", "public.t", "--clients", "--oam", &setting.server.oam_url()]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("clients: 3 equal to the server, 2 that cannot be compared\n"), "{text}");
    assert!(text.contains("full") && text.contains("3,000  at "), "{text}");
    full.stop().await;
    filtered.stop().await;
}

#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_went_wrong_is_found_named_and_heals() {
    use laredo_core::CanaryFault;

    let setting = QuietServer::start().await;
    let right = setting.replica("right").await;
    let mut differing = 0;
    for canary in CanaryFault::ALL {
        // A background process of PostgreSQL may write at any time. Then the client finds the
        // canary by itself at once.
        let wrong = loop {
            let wrong = setting.replica("wrong").await;
            setting.touch().await;
            assert_eq!(setting.verify().await.outcome("wrong"), "equal", "{canary:?}");
            assert!(wrong.plant(canary).await, "{canary:?}");
            let found = setting.verify().await;
            assert_eq!(found.outcome("right"), "equal", "{canary:?}: {found:?}");
            if !found.differs("wrong") {
                assert_eq!(wrong.status().checksum_mismatches, 1, "{canary:?}: {found:?}");
                wrong.stop().await;
                continue;
            }
            let client = found.client("wrong");
            let rows = match canary {
                CanaryFault::ChangedCell => 3000,
                CanaryFault::MissingRow => 2999,
                CanaryFault::ExtraRow => 3001,
            };
            assert_eq!((found.code, &client["rows"]), (Some(1), &json!(rows)), "{canary:?}: {found:?}");
            let checksum = |whose: &str| client[whose].as_str().unwrap().to_owned();
            assert_ne!(checksum("client_checksum"), checksum("server_checksum"), "{canary:?}");
            assert!(client["position"].as_str().unwrap().contains('/'), "{canary:?}: {found:?}");
            break wrong;
        };
        differing += 1;
        let metric = setting.server.metric("laredo_clients_differing_total", &setting.table).await;
        assert_eq!(metric, Some(differing), "{canary:?}");
        let log = setting.server.process.output();
        let told = log.iter().filter(|line| line.contains("a client's rows differ from the server's")).count();
        assert_eq!(u64::try_from(told).unwrap(), differing, "{canary:?}");
        // The client loads the table again by itself.
        let healed = async || wrong.status().resyncs == 1;
        assert!(eventually(PATIENCE, healed).await.is_ok(), "{canary:?}: {:?}", wrong.status());
        let found = setting.verify().await;
        assert_eq!((found.code, found.outcome("wrong")), (Some(0), "equal"), "{canary:?}: {found:?}");
        assert_eq!(wrong.status().checksum_mismatches, 1, "{canary:?}");
        wrong.stop().await;
    }
    assert_eq!(right.status().checksum_mismatches, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stands_still_does_not_answer_and_delays_no_other() {
    let setting = QuietServer::start().await;
    let replica = setting.replica("running").await;
    let (tail, client_id) = setting.tail().await;
    assert_eq!(setting.verify().await.code, Some(0));
    tail.freeze();
    let began = Instant::now();
    let found = setting.verify().await;
    let took = began.elapsed();
    assert_eq!((found.code, found.outcome(&client_id), found.outcome("running")), (Some(1), "no_answer", "equal"));
    assert!(took >= ANSWER_MAX && took < ANSWER_MAX + PATIENCE, "{took:?}");
    tail.thaw();
    let answers = async || setting.verify().await.outcome(&client_id) == "equal";
    eventually(PATIENCE, answers).await.unwrap();
    tail.interrupt();
    tail.wait(PATIENCE).await.unwrap();
    assert_eq!(setting.verify().await.clients.len(), 1, "it is not asked after it has left");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_and_go_while_the_table_changes_are_never_wrong() {
    let setting = QuietServer::start().await;
    let stays = setting.replica("stays").await;
    let (server, table) = (setting.server.url(), setting.table.clone());
    let guests = tokio::spawn(async move {
        for turn in 0_u64.. {
            let guest = Replica::builder(&server, table.clone()).client_id("guest").seed(turn).start().unwrap();
            guest.ready(PATIENCE).await.unwrap();
            match turn % 2 {
                0 => guest.stop().await,
                _ => drop(guest),
            }
        }
    });
    let (writer, follower) = (setting.cluster.connect().await.unwrap(), stays.clone());
    let writing = tokio::spawn(async move {
        for turn in 1_i32.. {
            writer.batch_execute("UPDATE t SET n = n + 1 WHERE id % 10 = 0").await.unwrap();
            // The server has to keep up, because a verification waits for the stream.
            let has_it = async || follower.get(10).unwrap().is_some_and(|row| row.get::<i32>("n").unwrap() == turn);
            eventually(PATIENCE, has_it).await.unwrap();
        }
    });
    let mut seen = 0;
    for _ in 0..10 {
        let found = setting.verify().await;
        assert_eq!((found.code, found.outcome("stays")), (Some(0), "equal"), "{found:?}");
        let outcomes = found.clients.iter().map(|client| client["outcome"].as_str().unwrap());
        assert!({ outcomes }.all(|outcome| ["equal", "left"].contains(&outcome)), "{found:?}");
        seen += found.clients.len() - 1;
    }
    assert!(!guests.is_finished() && !writing.is_finished(), "both go on meanwhile");
    guests.abort();
    writing.abort();
    assert!(seen > 0, "a guest was there at some time");
    assert_eq!(stays.status().checksum_mismatches, 0);
    stays.stop().await;
}
