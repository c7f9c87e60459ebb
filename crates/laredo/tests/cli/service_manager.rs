//! The reports of the programs to a service manager, as systemd receives them.

use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use laredo_core::TableName;
use laredo_testkit::free_port;
use serde_json::json;
use tempfile::TempDir;

use crate::support::server::{PATIENCE, ServerProcessConfig};
use crate::support::snapshotter::{self, SnapshotterProcess};

/// Reads reports as a service manager does.
struct ServiceManagerStub {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: TempDir,
}

impl ServiceManagerStub {
    fn new() -> ServiceManagerStub {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        ServiceManagerStub { socket, path, _folder: folder }
    }

    /// Returns the lines of the next report.
    fn report(&self) -> Vec<String> {
        self.next().unwrap_or_else(|error| panic!("no report: {error}"))
    }

    fn next(&self) -> io::Result<Vec<String>> {
        let mut bytes = [0; 1024];
        let length = self.socket.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned).collect())
    }

    /// Waits for a report with this line, and returns the reports before it, and it.
    fn wait_for(&self, line: &str) -> Vec<Vec<String>> {
        let mut reports = Vec::new();
        loop {
            reports.push(self.report());
            if reports.last().is_some_and(|report| report.iter().any(|found| found == line)) {
                return reports;
            }
        }
    }

    /// Asserts that no report waits. The program must have ended.
    fn assert_silent(&self) {
        self.socket.set_nonblocking(true).unwrap();
        assert_eq!(self.next().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

/// Returns a server whose database is away, so that no first copy can end.
fn unreachable_server(environment: Vec<(&'static str, String)>) -> ServerProcessConfig {
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres", free_port().unwrap());
    ServerProcessConfig { environment, ..ServerProcessConfig::new(url, [TableName::new("public", "t")]) }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "100000");

#[tokio::test(flavor = "multi_thread")]
async fn a_server_reports_that_it_is_ready_before_its_first_copy_and_that_it_works_and_stops() {
    let manager = ServiceManagerStub::new();
    let environment = vec![("NOTIFY_SOCKET", text(&manager.path)), (WATCHDOG.0, WATCHDOG.1.to_owned())];
    let mut server = unreachable_server(environment).launch();
    server.ends_unverified();
    let ready = manager.wait_for("READY=1").pop().unwrap();
    assert!(ready[1].starts_with("STATUS=the ports are open"), "{ready:?}");
    let ports = server.ports;
    for port in [ports.grpc, ports.fanout, ports.health, ports.metrics] {
        TcpStream::connect(("127.0.0.1", port)).expect("every port is open");
    }
    assert_eq!(server.health().await.0, 503, "the first copy has not begun");
    for _ in 0..3 {
        assert_eq!(manager.report(), ["WATCHDOG=1"]);
    }
    server.process.terminate();
    let stopping = manager.wait_for("STOPPING=1");
    assert_eq!(stopping.last().unwrap()[1], "STATUS=stopping");
    assert!(server.process.wait(PATIENCE).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_drained_reports_the_stop_first() {
    let manager = ServiceManagerStub::new();
    let config = unreachable_server(vec![("NOTIFY_SOCKET", text(&manager.path))]);
    let mut server = ServerProcessConfig { arguments: vec!["--drain-grace=600s".to_owned()], ..config }.launch();
    server.ends_unverified();
    assert_eq!(manager.wait_for("READY=1").len(), 1, "without a watchdog nothing else is sent");
    server.process.terminate();
    assert_eq!(manager.report()[0], "STOPPING=1");
    assert!(server.process.wait(PATIENCE).await.unwrap().success());
    manager.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_misconfigured_is_never_ready() {
    let manager = ServiceManagerStub::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = unreachable_server(vec![("NOTIFY_SOCKET", text(&manager.path))]);
    config.arguments = vec![format!("--health-port={}", taken.local_addr().unwrap().port())];
    let mut server = config.launch();
    server.ends_unverified();
    assert_eq!(server.process.wait(PATIENCE).await.unwrap().code(), Some(2));
    manager.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_runs_without_a_service_manager() {
    let missing = tempfile::tempdir().unwrap().path().join("notify");
    let complaint = "cannot report to the service manager";
    for (environment, complains) in [
        (vec![(WATCHDOG.0, WATCHDOG.1.to_owned())], false),
        (vec![("NOTIFY_SOCKET", text(&missing)), (WATCHDOG.0, WATCHDOG.1.to_owned())], true),
    ] {
        let mut server = unreachable_server(environment).launch();
        server.ends_unverified();
        server.process.wait_for_line("cannot reach the source yet").await.unwrap();
        server.process.terminate();
        assert!(server.process.wait(PATIENCE).await.unwrap().success());
        let output = server.process.output();
        assert_eq!(output.iter().any(|line| line.contains(complaint)), complains, "{}", output.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshotter_reports_that_it_is_ready_works_and_stops() {
    let manager = ServiceManagerStub::new();
    let folder = tempfile::tempdir().unwrap();
    let server = format!("127.0.0.1:{}", free_port().unwrap());
    let table = snapshotter::table(&server, &TableName::new("public", "t"), folder.path(), &json!({}));
    let environment = [("NOTIFY_SOCKET", manager.path.to_str().unwrap()), WATCHDOG];
    let snapshotter = SnapshotterProcess::launch(&[table], &json!({}), &environment);
    let ready = manager.wait_for("READY=1").pop().unwrap();
    assert!(ready[1].starts_with("STATUS=the port is open"), "{ready:?}");
    TcpStream::connect(("127.0.0.1", snapshotter.port)).expect("the port is open");
    assert_eq!(manager.wait_for("WATCHDOG=1").len(), 1);
    snapshotter.process.terminate();
    assert_eq!(manager.wait_for("STOPPING=1").last().unwrap()[1], "STATUS=stopping");
    assert!(snapshotter.process.wait(PATIENCE).await.unwrap().success());
}
