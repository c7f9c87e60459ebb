//! A private cluster starts, restarts, crashes, and leaves nothing behind.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use laredo_testkit::{ChildProcess, Cluster, ClusterOptions, ClusterTls, StopMode, eventually};

#[tokio::test]
async fn it_is_ready_for_logical_replication() {
    let cluster = Cluster::start(ClusterOptions::default().set("work_mem", "5MB")).unwrap();
    let client = cluster.connect().await.unwrap();
    let row = client
        .query_one(
            "SELECT current_setting('wal_level'), current_setting('fsync'), current_setting('work_mem'), \
             current_setting('server_version_num')::int / 10000",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "logical");
    assert_eq!(row.get::<_, &str>(1), "off");
    assert_eq!(row.get::<_, &str>(2), "5MB");
    assert_eq!(u32::try_from(row.get::<_, i32>(3)).unwrap(), cluster.major_version());
    assert!(cluster.bin("pg_recvlogical").is_absolute());
}

#[test]
fn psql_runs_statements_and_reports_the_first_error() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    assert_eq!(cluster.psql("CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'x'), (2, NULL);").unwrap(), "");
    assert_eq!(cluster.psql("SELECT * FROM t ORDER BY a").unwrap(), "1|x\n2|");
    let error = cluster.psql("SELECT 1;\nSELECT nothing;").unwrap_err().to_string();
    assert!(error.contains("column \"nothing\" does not exist"), "{error}");
}

#[test]
fn what_was_committed_survives_a_restart_and_a_crash() {
    let mut cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let port = cluster.port();
    cluster.psql("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").unwrap();
    cluster.restart().unwrap();
    cluster.psql("INSERT INTO t VALUES (2)").unwrap();
    cluster.stop(StopMode::Immediate).unwrap();
    assert!(cluster.psql("SELECT 1").is_err(), "it is stopped");
    cluster.restart().unwrap();
    assert_eq!(cluster.psql("SELECT sum(a) FROM t").unwrap(), "3");
    assert_eq!(cluster.port(), port);
    assert!(cluster.log().contains("was not properly shut down"), "the crash was one");
}

#[tokio::test]
async fn a_password_is_asked_for_on_tcp() {
    let options = ClusterOptions { password: Some("it's".to_owned()), ..ClusterOptions::default() };
    let cluster = Cluster::start(options).unwrap();
    let (client, connection) = tokio_postgres::connect(&cluster.url("postgres"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.simple_query("SELECT 1").await.unwrap();
    let wrong = cluster.url("postgres").replace("it's", "its");
    assert!(tokio_postgres::connect(&wrong, tokio_postgres::NoTls).await.is_err());
}

#[test]
fn tls_is_offered_with_a_certificate_that_verifies() {
    let options = ClusterOptions {
        tls: Some(ClusterTls::default()),
        hba: vec!["hostnossl all all all reject".to_owned()],
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options).unwrap();
    let psql = |host: &str, mode: &str| {
        let url = format!(
            "host={host} hostaddr=127.0.0.1 port={} user=postgres sslmode={mode} sslrootcert={}",
            cluster.port(),
            cluster.ca_path().display()
        );
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        Command::new(cluster.bin("psql")).args(["-XAtc", sql, &url]).output().unwrap()
    };
    assert_eq!(psql("localhost", "verify-full").stdout, b"t\n");
    assert!(!psql("another.host", "verify-full").status.success());
    assert!(!psql("localhost", "disable").status.success());
}

#[test]
fn copies_of_the_template_share_an_identity_and_own_identity_does_not() {
    let identity = |own_identity| {
        let options = ClusterOptions { own_identity, ..ClusterOptions::default() };
        let cluster = Cluster::start(options).unwrap();
        cluster.psql("SELECT system_identifier FROM pg_control_system()").unwrap()
    };
    assert_eq!(identity(false), identity(false));
    assert_ne!(identity(true), identity(false));
}

#[test]
fn nothing_is_left_when_it_is_dropped_or_the_test_panics() {
    let (send, receive) = std::sync::mpsc::channel::<(PathBuf, String)>();
    let about = |cluster: &Cluster| (cluster.socket_dir().to_owned(), postmaster(&cluster.data_dir()));
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let dropped = about(&cluster);
    drop(cluster);
    let panicked = catch_unwind(move || {
        let cluster = Cluster::start(ClusterOptions::default()).unwrap();
        send.send(about(&cluster)).unwrap();
        panic!("on purpose");
    });
    assert!(panicked.is_err());
    for (dir, pid) in [dropped, receive.recv().unwrap()] {
        assert!(!dir.exists(), "{} is left", dir.display());
        assert!(!is_running(&pid), "{pid} is left");
    }
}

/// Runs as a process of its own, which the test below starts and kills.
#[tokio::test]
#[ignore = "only a part of the next test"]
async fn part_that_is_killed() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    println!("dir={}", cluster.socket_dir().display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn nothing_is_left_when_the_test_process_is_killed() {
    let mut part = Command::new(std::env::current_exe().unwrap());
    part.args(["cluster::part_that_is_killed", "--exact", "--ignored", "--nocapture"]);
    let part = ChildProcess::spawn(part).unwrap();
    let line = part.wait_for_line("dir=").await.unwrap();
    let dir = PathBuf::from(line.split_once("dir=").unwrap().1);
    let pid = postmaster(&dir.join("data"));
    assert!(is_running(&pid));
    part.kill9();
    let gone = || async { !dir.exists() && !is_running(&pid) };
    eventually(Duration::from_secs(30), gone).await.unwrap();
}

fn postmaster(data_dir: &Path) -> String {
    let file = std::fs::read_to_string(data_dir.join("postmaster.pid")).unwrap();
    file.lines().next().unwrap().to_owned()
}

/// Returns true if the process exists and is not a zombie. The container's first process may never
/// reap zombies.
fn is_running(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
