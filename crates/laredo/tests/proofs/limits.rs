//! Resources that run out and peers that do not answer have bounds: descriptors, time, temporary
//! files, and the settings of a role.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use laredo_client::{Replica, ReplicaError};
use laredo_core::TableName;
use laredo_testkit::oracle::flushed;
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use serde_json::json;

use super::bad_input::run;
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::support::snapshotter::{SnapshotterProcess, table as archived};

fn table() -> TableName {
    TableName::new("public", "t")
}

fn cluster() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one')").unwrap();
    cluster
}

async fn replica(server: &ServerProcess) -> Replica {
    let replica = Replica::builder(server.url(), table()).start().unwrap();
    replica.ready(PATIENCE).await.unwrap();
    replica
}

/// Returns a process's limit of open files, and its number of open files.
fn descriptors(server: &ServerProcess) -> (Rlimit, u64) {
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.process.id())).unwrap().count();
    (set_limit(server, None), open as u64)
}

fn set_limit(server: &ServerProcess, current: Option<u64>) -> Rlimit {
    let pid = Pid::from_raw(server.process.id().cast_signed()).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.process.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().ok());
    let found = Rlimit { current: numbers.next().unwrap(), maximum: numbers.next().unwrap() };
    if current.is_some() {
        prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum: found.maximum }).unwrap();
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_wait_for_descriptors_and_the_journal_continues() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let journal = format!(
        "journal {{ max_bytes = 1MiB, memory_max_bytes = 1MiB, store = local, store_config {{ path = \"{}\" }} }}",
        folder.path().display()
    );
    let server =
        ServerProcessConfig::new(cluster.url("postgres"), [table()]).slot("limits").target(&journal).start().await;
    let (limit, open) = descriptors(&server);
    assert_eq!(limit.current, Some(limit.maximum.unwrap_or(u64::MAX).min(1 << 20)), "the soft limit was raised");
    let follows = replica(&server).await;

    // Leave a few descriptors, which are then used up. A connection with a started request stays
    // open longer than one without.
    set_limit(&server, Some(open + 12));
    let clients: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut client = TcpStream::connect(("127.0.0.1", server.ports.fanout)).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
            client
        })
        .collect();
    server.process.wait_for_line("too many open files").await.unwrap();
    let before = server.process.cpu_time().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = server.process.cpu_time().unwrap() - before;
    assert!(used < Duration::from_secs(1), "it spins: {used:?} of 2 s");
    for port in [server.ports.health, server.ports.metrics] {
        let path = if port == server.ports.health { "/health/live" } else { "/metrics" };
        assert_eq!(server.get(port, path).await.unwrap().0, 200, "probes are answered");
    }
    assert!(server.metrics().await.contains("\nlaredo_ports_waiting 1\n"));

    // Make files of the journal, bases, and temporary files of large transactions.
    for round in 0..4 {
        let sql = format!(
            "INSERT INTO t SELECT {round} * 1000 + g, repeat(md5(g::text), 100) FROM generate_series(2, 900) g"
        );
        cluster.psql(&sql).unwrap();
    }
    let end = flushed(&cluster.connect().await.unwrap()).await.unwrap();
    let has_all = async || server.is_live_at(end).await && follows.view().len() == 1 + 4 * 899;
    eventually(PATIENCE, has_all).await.unwrap();

    drop(clients);
    let newcomer = replica(&server).await;
    assert_eq!(newcomer.view().len(), 1 + 4 * 899);
    server.process.wait_for_line("connections are accepted again").await.unwrap();
}

/// Returns the name of the newest journal file in a folder of journals.
fn newest_journal(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let names = entries.filter_map(|path| match path.is_dir() {
        true => newest_journal(&path),
        false => Some(path.file_name()?.to_str()?.to_owned()).filter(|name| name.ends_with(".journal")),
    });
    names.max()
}

/// A limit of 128 is that of a careless container, and 200 idle sockets on each port are a scanner.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_few_descriptors_outlives_idle_sockets_on_every_port() {
    const SOCKETS: usize = 200;
    // The sockets are ones of this process, too.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum.map(|maximum| maximum.min(1 << 16)), ..limit })
        .unwrap();
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let journal = format!(
        "journal {{ max_bytes = 1MiB, memory_max_bytes = 1MiB, store = local, store_config {{ path = \"{}\" }} }}",
        folder.path().display()
    );
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table()]).slot("few").target(&journal);
    config.descriptors_max = Some(128);
    let server = config.start().await;
    server.process.wait_for_line("\"limit\":128").await.unwrap();
    let follows = replica(&server).await;
    let before = newest_journal(folder.path()).unwrap();

    let ports = [server.ports.grpc, server.ports.fanout, server.ports.health, server.ports.metrics];
    let idle: Vec<TcpStream> =
        (0..SOCKETS * 4).map(|number| TcpStream::connect(("127.0.0.1", ports[number % 4])).unwrap()).collect();
    server.process.wait_for_line("too many open files").await.unwrap();
    let cpu_before = server.process.cpu_time().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = server.process.cpu_time().unwrap() - cpu_before;
    assert!(used < Duration::from_secs(1), "it spins: {used:?} of 2 s");
    let is_alive = async || server.get(server.ports.health, "/health/live").await.is_some_and(|(code, _)| code == 200);
    eventually(PATIENCE, is_alive).await.expect("probes are answered meanwhile");
    for round in 0..4 {
        let sql = format!(
            "INSERT INTO t SELECT {round} * 1000 + g, repeat(md5(g::text), 100) FROM generate_series(2, 900) g"
        );
        cluster.psql(&sql).unwrap();
    }
    eventually(PATIENCE, async || follows.view().len() == 1 + 4 * 899).await.expect("commits arrive meanwhile");
    let is_rotated = async || newest_journal(folder.path()).is_some_and(|newest| newest > before);
    eventually(PATIENCE, is_rotated).await.expect("the journal has a new file");

    drop(idle);
    server.process.wait_for_line("connections are accepted again").await.unwrap();
    assert!(is_alive().await);
    assert_eq!(server.get(server.ports.metrics, "/metrics").await.unwrap().0, 200);
    cluster.psql("INSERT INTO t VALUES (-1, 'after')").unwrap();
    eventually(PATIENCE, async || follows.view().len() == 2 + 4 * 899).await.expect("commits arrive after it");
    assert_eq!(replica(&server).await.view().len(), 2 + 4 * 899);
    assert_eq!(follows.status().connects, 1, "the stream was never cut");
}

/// Returns true if the server ends a connection on which only these bytes were sent.
fn is_ended(port: u16, sent: &[u8]) -> bool {
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(sent).unwrap();
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_mute_is_let_go() {
    let cluster = cluster();
    let server = ServerProcessConfig::new(cluster.url("postgres"), [table()]).start().await;
    let ports = server.ports;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let cases: [(u16, &'static [u8]); 7] = [
        (ports.fanout, b""),
        (ports.grpc, b"PRI * HT"),
        // This client speaks HTTP/2, but answers no ping.
        (ports.fanout, preface),
        (ports.fanout, b"POST / HTTP/1.1\r\nHost: x\r\n"),
        (ports.health, b""),
        (ports.health, b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-A: "),
        (ports.metrics, b"G"),
    ];
    let ended = cases.map(|(port, sent)| tokio::task::spawn_blocking(move || is_ended(port, sent)));
    for (case, ended) in ended.into_iter().enumerate() {
        assert!(ended.await.unwrap(), "case {case}");
    }
    // A client that speaks stays.
    let follows = replica(&server).await;
    assert_eq!(follows.status().connects, 1);
}

/// A server that accepts connections and is silent. The connections stay open until it is dropped.
struct SilentServer(u16, Arc<AtomicUsize>);

impl SilentServer {
    fn start() -> SilentServer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        std::thread::spawn(move || {
            let mut accepted = Vec::new();
            for connection in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                accepted.push(connection);
            }
        });
        SilentServer(port, count)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_mute_is_given_up_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut waits = Vec::new();
    for scheme in ["http", "https"] {
        let mute = SilentServer::start();
        let url = format!("{scheme}://127.0.0.1:{}", mute.0);
        let replica = Replica::builder(&url, table()).start().unwrap();
        let snapshotter = SnapshotterProcess::launch(
            &[archived(&url, &table(), &folder.path().join(scheme), &json!({}))],
            &json!({}),
            &[],
        );
        waits.push((scheme, replica, snapshotter, mute));
    }
    for (scheme, replica, snapshotter, _mute) in &waits {
        let has_failed = async || replica.status().last_error.is_some();
        eventually(PATIENCE, has_failed).await.unwrap();
        let error = replica.status().last_error.unwrap();
        assert!(!matches!(error, ReplicaError::Refused { .. }), "{scheme}: {error}");
        snapshotter.process.wait_for_line("reconnecting").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_mute_is_given_up_and_tried_again() {
    let mute = SilentServer::start();
    let url = format!("postgresql://postgres@127.0.0.1:{}/db?connect_timeout=1", mute.0);
    let mut server = ServerProcessConfig::new(url, [table()]).launch();
    server.ends_unverified();
    server.process.wait_for_line("no answer for 1 s").await.unwrap();
    // The same reason is not logged again, but the server tries again.
    let is_tried_again = async || mute.1.load(Ordering::SeqCst) >= 3;
    eventually(PATIENCE, is_tried_again).await.unwrap();
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_ends_the_server_before_it_changes_the_database() {
    let cluster = cluster();
    let file = tempfile::NamedTempFile::new().unwrap();
    for folder in [Path::new("/no/such/folder"), Path::new("/proc"), file.path()] {
        let config = format!(
            "sources {{ db {{ type = postgresql, connection = \"{}\", slot_mode = stateful, slot_name = s
                              publication {{ name = p, create = true }} }} }}
             tables = [{{ source = db, schema = public, table = t, targets = [{{ type = replication-fanout, grpc.port = 0 }}] }}]
             grpc.port = 0, health.http_port = 0, observability.metrics.port = 0, temp_dir = \"{}\"",
            cluster.url("postgres"),
            folder.display()
        );
        let (code, said) = run(&config, &[]).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(&format!("cannot write temporary files in {} (temp_dir)", folder.display())), "{said}");
    }
    let made = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(cluster.psql(made).unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_files_are_where_temp_dir_says_and_in_memory_only_with_a_warning() {
    let (cluster, folder) = (cluster(), tempfile::tempdir_in("/dev/shm").unwrap());
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table()]);
    config.extra = format!("temp_dir = \"{}\"", folder.path().display());
    config.environment = vec![("TMPDIR", "/no/such/folder".to_owned())];
    let server = config.start().await;
    server.process.wait_for_line("temporary files are in memory").await.unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.process.id())).unwrap();
    let targets: Vec<_> = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect();
    assert!(targets.iter().any(|target| target.starts_with(folder.path())), "{targets:?}");
}

/// A snapshotter needs the folder only for tables without a local destination.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshotter_stages_artifacts_where_temp_dir_says() {
    let (memory, archive) = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir().unwrap());
    let none = [("TMPDIR", "/no/such/folder")];
    let bucket =
        json!({ "destinations": [{ "type": "s3", "bucket": "b", "endpoint": "http://127.0.0.1:1", "region": "r" }] });
    let in_bucket = || archived("localhost:1", &table(), archive.path(), &bucket);
    let in_folder = || archived("localhost:1", &table(), archive.path(), &json!({}));
    for (keys, words) in [
        (json!({}), "(the default, which the variable TMPDIR sets; snapshotter.temp_dir is not set)"),
        (json!({ "temp_dir": "/no/such/other" }), "/no/such/other (snapshotter.temp_dir)"),
    ] {
        let refused = SnapshotterProcess::launch(&[in_bucket()], &keys, &none);
        assert_eq!(refused.process.wait(PATIENCE).await.unwrap().code(), Some(2));
        let said = refused.process.output().join("\n");
        assert!(said.contains("cannot write temporary files in ") && said.contains(words), "{said}");
    }
    for (table, keys) in [(in_folder(), json!({})), (in_bucket(), json!({ "temp_dir": memory.path() }))] {
        let runs = SnapshotterProcess::launch(&[table], &keys, &none);
        runs.process.wait_for_line("listening").await.unwrap();
        runs.status().await;
        let warns = runs.process.output().iter().any(|line| line.contains("temporary files are in memory"));
        assert_eq!(warns, keys["temp_dir"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_role_and_of_a_database_do_not_reach_a_session() {
    let cluster = cluster();
    let mut settings = vec![
        "statement_timeout = '200ms'",
        "lock_timeout = '100ms'",
        "idle_session_timeout = '500ms'",
        "idle_in_transaction_session_timeout = '20ms'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "DateStyle = 'German'",
        "IntervalStyle = 'sql_standard'",
        "TimeZone = 'Asia/Kathmandu'",
        "search_path = nowhere",
        "transform_null_equals = on",
        "standard_conforming_strings = off",
        "quote_all_identifiers = on",
        "wal_sender_timeout = '700ms'",
    ];
    if cluster.major_version() >= 17 {
        settings.push("transaction_timeout = '200ms'");
    }
    cluster.psql("CREATE ROLE strict LOGIN SUPERUSER").unwrap();
    for (number, setting) in settings.into_iter().enumerate() {
        let whose = if number % 2 == 0 { "ROLE strict" } else { "DATABASE postgres" };
        // The next connection of psql already has the settings of the database.
        cluster.psql(&format!("SET default_transaction_read_only = off; ALTER {whose} SET {setting}")).unwrap();
    }
    let url = cluster.url("postgres").replace("postgres@", "strict@");
    assert!(url.contains("strict@"), "{url}");
    let mut holder = cluster.connect().await.unwrap();
    holder
        .batch_execute("SET default_transaction_read_only = off; SET idle_in_transaction_session_timeout = 0")
        .await
        .unwrap();
    let held = holder.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let server = ServerProcessConfig::new(url, [table()]).launch();
    // Wait longer than the lock timeout and the statement timeout.
    tokio::time::sleep(Duration::from_secs(2)).await;
    held.commit().await.unwrap();
    server.ready().await;
    let follows = replica(&server).await;
    // Wait longer than the idle timeouts.
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.psql("SET default_transaction_read_only = off; INSERT INTO public.t VALUES (2, 'two')").unwrap();
    let arrived = async || follows.view().len() == 2;
    eventually(PATIENCE, arrived).await.unwrap();
    let broken: Vec<String> = server.process.output().into_iter().filter(|line| line.contains("broke")).collect();
    assert!(broken.is_empty(), "{broken:?}");
    assert_eq!(server.metric("laredo_copies_total", &table()).await, Some(1));
}

/// Starts a server that answers each login as PgBouncer does for an unknown parameter.
fn pooler() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut startup = [0; 4096];
            if stream.read(&mut startup).is_err() {
                continue;
            }
            let fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            let _ = stream.write_all(&[b"E", length.as_slice(), fields].concat());
        }
    });
    port
}

#[tokio::test]
async fn a_pooler_is_named_in_one_sentence() {
    let config = format!(
        "sources {{ db {{ type = postgresql, connection = \"postgresql://u@127.0.0.1:{}/d?sslmode=disable\" }} }}
         tables = [{{ source = db, schema = public, table = t, targets = [{{ type = replication-fanout, grpc.port = 0 }}] }}]
         grpc.port = 0, health.http_port = 0, observability.metrics.port = 0",
        pooler()
    );
    let (code, said) = run(&config, &["--strict"]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("unsupported startup parameter: replication; a connection pooler"), "{said}");
}
