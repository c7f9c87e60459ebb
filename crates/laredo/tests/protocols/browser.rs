//! The page of `examples/browser` in a real browser. It is bundled from npm's packages, and served
//! from another origin than the server's. It follows a table until it has PostgreSQL's rows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use laredo_testkit::{ChildProcess, eventually};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::support::server::{PATIENCE, ServerProcessConfig};
use super::{CHANGES, cluster, item, plain, rows_in};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs Chromium, and npm's packages in examples/browser: ./dev test --full has both"]
async fn a_page_follows_a_table_in_every_protocol_and_only_where_it_may() {
    let site = BrowserSite::start().await;
    let cluster = cluster();
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), [item()]);
    config.extra = format!("grpc.allowed_origins = [\"{}\"]", site.origin("127.0.0.1"));
    let server = config.start().await;
    let protocols = ["connect", "connect-json", "grpc-web"];
    let ask = |protocol: &str| format!("server={}&schema=public&table=item&protocol={protocol}", server.url());
    let pages: Vec<_> = protocols.iter().map(|name| site.open("127.0.0.1", name, &ask(name))).collect();
    let all_have = async |expected: Value| {
        let have = async || protocols.iter().all(|name| site.rows(name).as_ref() == Some(&expected));
        let waited = eventually(PATIENCE, have).await;
        assert!(waited.is_ok(), "other rows than {expected}: {:?}", site.reports.lock().unwrap());
    };
    all_have(rows_in(&cluster)).await;
    for change in CHANGES {
        cluster.psql(change).unwrap();
        all_have(rows_in(&cluster)).await;
    }
    // The same page under an origin that the server does not allow.
    let _stranger = site.open("localhost", "stranger", &ask("connect"));
    let refused = async || site.report("stranger").is_some_and(|report| report["error"].is_string());
    eventually(PATIENCE, refused).await.expect("the browser does not let it");
    drop(pages);
}

/// A web server that serves the page and receives its reports.
struct BrowserSite {
    port: u16,
    folder: TempDir,
    /// The last report of each page.
    reports: Arc<Mutex<HashMap<String, Value>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for BrowserSite {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl BrowserSite {
    async fn start() -> BrowserSite {
        let folder = tempfile::tempdir().unwrap();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/browser");
        let bundled = Command::new("node_modules/.bin/esbuild")
            .args(["main.js", "--bundle", "--format=esm", "--log-level=warning"])
            .arg(format!("--outfile={}", folder.path().join("page.js").display()))
            .current_dir(&example)
            .status();
        assert!(bundled.expect("`npm ci` was run in examples/browser").success());
        std::fs::copy(example.join("index.html"), folder.path().join("index.html")).unwrap();
        std::fs::write(folder.path().join("laredo.bin"), laredo_proto::FILE_DESCRIPTOR_SET).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reports = Arc::new(Mutex::new(HashMap::new()));
        let serving = tokio::spawn(serve(listener, folder.path().to_owned(), reports.clone()));
        BrowserSite { port, folder, reports, serving }
    }

    fn origin(&self, host: &str) -> String {
        format!("http://{host}:{}", self.port)
    }

    /// Opens the page in a browser of its own, which ends when the process is dropped.
    fn open(&self, host: &str, name: &str, ask: &str) -> ChildProcess {
        let mut browser = Command::new(browser());
        browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]);
        browser.arg(format!("--user-data-dir={}", self.folder.path().join(name).display()));
        browser.arg(format!("{}/?{ask}&report=/reports/{name}", self.origin(host)));
        ChildProcess::spawn(browser).expect("the browser starts")
    }

    fn report(&self, name: &str) -> Option<Value> {
        self.reports.lock().unwrap().get(name).cloned()
    }

    /// Returns the rows of a page, sorted by ID.
    fn rows(&self, name: &str) -> Option<Value> {
        let mut report = plain(self.report(name)?);
        let rows = report["rows"].as_array_mut()?;
        rows.sort_by(|a, b| a["id"].as_f64().partial_cmp(&b["id"].as_f64()).unwrap());
        Some(report["rows"].take())
    }
}

/// Returns the browser that `LAREDO_TEST_BROWSER` names, or one that Debian packages.
fn browser() -> PathBuf {
    if let Some(named) = std::env::var_os("LAREDO_TEST_BROWSER") {
        return named.into();
    }
    let names = ["chromium-headless-shell", "chromium", "google-chrome"];
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&paths).flat_map(|folder| names.map(|name| folder.join(name))).find(|p| p.exists());
    found.expect("Chromium is installed, or LAREDO_TEST_BROWSER names it")
}

async fn serve(listener: TcpListener, folder: PathBuf, reports: Arc<Mutex<HashMap<String, Value>>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (connection, _) = listener.accept().await.unwrap();
        let (folder, reports) = (folder.clone(), reports.clone());
        connections.spawn(async move {
            // A browser may close a connection at any time.
            let _ = answer(connection, &folder, &reports).await;
        });
    }
}

/// Answers one request of a connection, with as much HTTP as this page needs.
async fn answer(connection: TcpStream, folder: &Path, reports: &Mutex<HashMap<String, Value>>) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    let (mut first, mut length) = (String::new(), 0);
    connection.read_line(&mut first).await?;
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    let path = first.split([' ', '?']).nth(1).unwrap_or("/").trim_start_matches('/');
    let (status, kind, body) = match path.strip_prefix("reports/") {
        Some(name) => {
            reports.lock().unwrap().insert(name.to_owned(), serde_json::from_slice(&body)?);
            ("204 No Content", "text/plain", Vec::new())
        }
        None => match std::fs::read(folder.join(if path.is_empty() { "index.html" } else { path })) {
            Ok(file) if path.ends_with(".js") => ("200 OK", "text/javascript", file),
            Ok(file) => ("200 OK", "text/html", file),
            Err(_) => ("404 Not Found", "text/plain", Vec::new()),
        },
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(&[head.as_bytes(), &body].concat()).await?;
    connection.shutdown().await
}
