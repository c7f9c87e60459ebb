//! TLS on every port of real processes, seen by curl and openssl: certificates that are replaced,
//! probes, and clients that are silent in the handshake.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use laredo_client::Replica;
use laredo_server::AccessToken;
use laredo_testkit::{clean_command, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::net::TcpStream;

use super::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use super::support::snapshotter::{SnapshotterProcess, table as archived};
use super::{cluster, item};

/// An authority, and the files of the certificate that it has issued last.
struct PortCertificateFolder {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl PortCertificateFolder {
    fn new() -> PortCertificateFolder {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        let certificates = PortCertificateFolder { issuer, folder };
        certificates.renew(None);
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a new certificate and its key. `until` is the year in which it expires.
    fn renew(&self, until: Option<i32>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        if let Some(until) = until {
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
        }
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(self.path("cert.pem"), pem).unwrap();
    }

    /// Returns the `tls` block of a port.
    fn block(&self, requires_client: bool) -> String {
        let of = |name: &str| self.path(name).display().to_string();
        let client = if requires_client { format!(", client_ca_path = \"{}\"", of("ca.pem")) } else { String::new() };
        format!("{{ enabled = true, cert_path = \"{}\", key_path = \"{}\"{client} }}", of("cert.pem"), of("key.pem"))
    }
}

/// Returns the serial number of the certificate that a port shows, by openssl.
fn serial(port: u16) -> String {
    let script = format!(
        "openssl s_client -connect 127.0.0.1:{port} -servername localhost </dev/null 2>/dev/null | \
         openssl x509 -noout -serial -enddate"
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn hang_up(server: &ServerProcess) {
    kill_process(Pid::from_raw(server.process.id().cast_signed()).unwrap(), Signal::HUP).unwrap();
}

fn lines(server: &ServerProcess, text: &str) -> usize {
    server.process.output().iter().filter(|line| line.contains(text)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_under_an_open_stream() {
    let (cluster, files) = (cluster(), PortCertificateFolder::new());
    let config = ServerProcessConfig::new(cluster.url("postgres"), [item()]);
    let mut server = ServerProcessConfig { extra: format!("grpc.tls {}", files.block(false)), ..config }.start().await;
    // The tools of the end speak plain text.
    server.ends_unverified();
    let url = format!("https://localhost:{}", server.ports.fanout);
    let ca = std::fs::read(files.path("ca.pem")).unwrap();
    let replica = Replica::builder(&url, item()).ca_pem(ca).start().unwrap();
    replica.ready(PATIENCE).await.unwrap();
    let first = serial(server.ports.fanout);
    assert!(first.contains("serial="), "{first}");

    files.renew(None);
    hang_up(&server);
    let is_new = async || serial(server.ports.fanout) != first && serial(server.ports.grpc) != first;
    assert!(eventually(PATIENCE, is_new).await.is_ok(), "{}", server.process.output().join("\n"));
    let second = serial(server.ports.fanout);

    // A broken file is reported once, and changes nothing.
    std::fs::write(files.path("key.pem"), "no key").unwrap();
    hang_up(&server);
    let is_reported = async || lines(&server, "the previous certificate remains") == 1;
    assert!(eventually(PATIENCE, is_reported).await.is_ok(), "{}", server.process.output().join("\n"));
    hang_up(&server);
    let is_read_again = async || lines(&server, "SIGHUP") == 3;
    assert!(eventually(PATIENCE, is_read_again).await.is_ok());
    assert_eq!(serial(server.ports.fanout), second);
    assert_eq!(lines(&server, "the previous certificate remains"), 1);

    // A certificate that expires soon is a warning. No signal is needed.
    files.renew(Some(2001));
    let is_warned = async || lines(&server, "expires soon") == 1;
    assert!(eventually(PATIENCE, is_warned).await.is_ok(), "{}", server.process.output().join("\n"));
    let metric =
        format!("laredo_tls_certificate_not_after_seconds{{file=\"{}\"}} 978307200", files.path("cert.pem").display());
    assert!(server.metrics().await.contains(&metric), "{metric}");

    cluster.psql("INSERT INTO item (id, name) VALUES (9999, 'after')").unwrap();
    assert!(eventually(PATIENCE, async || replica.view().len() == 501).await.is_ok());
    assert_eq!(replica.status().connects, 1, "the stream was not dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_has_tls_and_probes_follow() {
    let (cluster, files) = (cluster(), PortCertificateFolder::new());
    let extra =
        format!("grpc.tls {0}\nhealth.tls {1}\nobservability.metrics.tls {0}", files.block(false), files.block(true));
    let config = ServerProcessConfig { extra, ..ServerProcessConfig::new(cluster.url("postgres"), [item()]) };
    let mut server = config.launch();
    server.ends_unverified();
    let file = files.path("laredo.conf");
    std::fs::write(&file, config.to_hocon(&server.ports)).unwrap();
    let is_healthy = async || {
        let mut probe = clean_command(env!("CARGO_BIN_EXE_laredo-server"));
        probe.arg("--config").arg(&file).arg("healthcheck").output().unwrap().status.success()
    };
    assert!(eventually(PATIENCE, is_healthy).await.is_ok(), "{}", server.process.output().join("\n"));
    let metrics = format!("https://localhost:{}/metrics", server.ports.metrics);
    let (is_served, text) = curl(&files, &[&metrics]);
    assert!(is_served && text.contains("laredo_tls_certificate_not_after_seconds"), "{text}");
    let ready = format!("https://localhost:{}/health/ready", server.ports.health);
    let (is_served, text) = curl(&files, &[&ready]);
    assert!(!is_served, "the port requires a certificate: {text}");
    let (certificate, key) = (files.path("cert.pem"), files.path("key.pem"));
    let own = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    assert!(curl(&files, &[&own[..], &[&ready]].concat()).0);
    let mut status = clean_command(env!("CARGO_BIN_EXE_laredo"));
    status.args(["status", "--health", &ready, "--ca-file"]).arg(files.path("ca.pem"));
    status.arg("--cert-file").arg(&certificate).arg("--key-file").arg(&key);
    let status = status.output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    // Without --ca-file, the system's authorities are asked, and do not know this one.
    let mut stranger = clean_command(env!("CARGO_BIN_EXE_laredo"));
    let output = stranger.args(["status", "--health", &metrics]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("certificate"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_an_optional_certificate_are_proofs_on_one_port() {
    let (cluster, files, stranger) = (cluster(), PortCertificateFolder::new(), PortCertificateFolder::new());
    let token = |number: u8| AccessToken::from_random([number; 32]);
    let optional = files.block(true).replace(" }", ", client_certificates = optional }");
    let extra = format!(
        "grpc.tls {optional}\nhealth.tls {optional}\naccess {{
            identities {{
                mesh {{ certificates = [localhost] }}
                service {{ tokens = [{{ sha256 = {} }}] }}
                probe {{ tokens = [{{ sha256 = {} }}] }}
            }}
            readers = [{{ identities = [mesh, service], tables = [\"*\"] }}]
            observers = [{{ identities = [probe] }}]
            health = observers
        }}",
        token(1).hash(),
        token(2).hash()
    );
    let config = ServerProcessConfig { extra, ..ServerProcessConfig::new(cluster.url("postgres"), [item()]) };
    let mut server = config.launch();
    server.ends_unverified();
    let file = files.path("laredo.conf");
    std::fs::write(&file, config.to_hocon(&server.ports)).unwrap();
    let probe = |variable: &str, arguments: &[&str]| {
        let mut probe = clean_command(env!("CARGO_BIN_EXE_laredo-server"));
        probe.arg("--config").arg(&file).arg("healthcheck").args(arguments).env("LAREDO_TOKEN", variable);
        let output = probe.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let is_healthy = async || probe(token(2).expose(), &[]).0;
    assert!(eventually(PATIENCE, is_healthy).await.is_ok(), "{}", server.process.output().join("\n"));
    let secret = files.path("token");
    std::fs::write(&secret, format!("{}\n", token(2).expose())).unwrap();
    assert_eq!(probe("", &["--token-file", secret.to_str().unwrap()]), (true, String::new()));
    for (variable, code) in [("", "401"), (token(9).expose(), "401"), (token(1).expose(), "403")] {
        let (is_ready, said) = probe(variable, &[]);
        assert!(!is_ready && said.contains(&format!("not ready: HTTP/1.1 {code}")), "{said}");
    }

    let url = format!(
        "https://localhost:{}/laredo.replication.v1.LaredoReplicationService/GetReplicationStatus",
        server.ports.fanout
    );
    let header = |number: u8| format!("Authorization: Bearer {}", token(number).expose());
    let ask = |own: Option<&PortCertificateFolder>, token: Option<u8>| {
        let mut arguments = ["--header", "Content-Type: application/json", "--data"].map(str::to_owned).to_vec();
        arguments.extend([r#"{"schema":"public","table":"item"}"#.to_owned(), url.clone()]);
        if let Some(own) = own {
            let of = |name: &str| own.path(name).display().to_string();
            arguments.extend(["--cert".to_owned(), of("cert.pem"), "--key".to_owned(), of("key.pem")]);
        }
        arguments.extend(token.into_iter().flat_map(|number| ["--header".to_owned(), header(number)]));
        curl(&files, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for (what, own, token, is_served) in [
        ("a token alone", None, Some(1), true),
        ("a certificate alone", Some(&files), None, true),
        ("both", Some(&files), Some(1), true),
        ("neither", None, None, false),
        ("a wrong token", None, Some(9), false),
        ("a wrong token with a certificate", Some(&files), Some(9), false),
        ("a token with the certificate of a stranger", Some(&stranger), Some(1), false),
    ] {
        let (served, text) = ask(own, token);
        assert_eq!(served, is_served, "{what}: {text}");
        let is_refused = !is_served && own.is_none_or(|own| own.path("") == files.path(""));
        assert_eq!(text.contains("returned error: 401"), is_refused, "{what}: {text}");
    }
    let script = format!("openssl s_client -connect 127.0.0.1:{} </dev/null 2>/dev/null", server.ports.fanout);
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Acceptable client certificate CA names"), "a certificate is requested: {text}");
}

fn curl(files: &PortCertificateFolder, arguments: &[&str]) -> (bool, String) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "30", "--fail", "--cacert"]).arg(files.path("ca.pem"));
    let output = curl.args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_silent_sockets_do_not_delay_a_client() {
    let (cluster, files) = (cluster(), PortCertificateFolder::new());
    let extra = format!("grpc.tls {}", files.block(false));
    let config = ServerProcessConfig { extra, ..ServerProcessConfig::new(cluster.url("postgres"), [item()]) };
    let mut server = config.start().await;
    server.ends_unverified();
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(("127.0.0.1", server.ports.fanout)).await.unwrap());
    }
    let url = format!(
        "https://localhost:{}/laredo.replication.v1.LaredoReplicationService/GetReplicationStatus",
        server.ports.fanout
    );
    let ask = ["--header", "Content-Type: application/json", "--data", r#"{"schema":"public","table":"item"}"#, &url];
    // A silent handshake ends after 10 s, and this client waits for less.
    let (is_served, text) = curl(&files, &[&["--max-time", "5"], &ask[..]].concat());
    assert!(is_served && text.contains("rowCount"), "{text}");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshotter_has_tls_refuses_pages_and_survives_a_hangup() {
    let (cluster, files, folder) = (cluster(), PortCertificateFolder::new(), tempfile::tempdir().unwrap());
    let server = ServerProcessConfig::new(cluster.url("postgres"), [item()]).start().await;
    let table = archived(&server.url(), &item(), folder.path(), &json!({}));
    let plain = SnapshotterProcess::launch(std::slice::from_ref(&table), &json!({}), &[]);
    plain.ready().await;
    let url = format!("http://127.0.0.1:{}", plain.port);
    let code = |arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]).args(arguments);
        String::from_utf8(curl.stderr(Stdio::null()).output().unwrap().stdout).unwrap()
    };
    let order = format!("{url}/snapshot");
    for header in ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"] {
        assert_eq!(code(&["--request", "POST", "--header", header, &order]), "403", "{header}");
    }
    assert_eq!(code(&["--header", "Host: evil.example", &format!("{url}/status")]), "421");
    let epochs = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
    let archive = folder.path().join("item");
    let before = epochs(&archive);
    let (status, answer) = plain.snapshot("").await;
    assert_eq!((status, &answer["snapshots"][0]["unchanged"]), (200, &json!(true)), "{answer}");
    assert_eq!(epochs(&archive), before, "nothing is written");
    let (status, answer) = plain.snapshot("?force=true").await;
    assert_eq!((status, &answer["snapshots"][0]["epoch"]), (200, &json!(2)), "{answer}");
    kill_process(Pid::from_raw(plain.process.id().cast_signed()).unwrap(), Signal::HUP).unwrap();
    plain.process.wait_for_line("SIGHUP").await.unwrap();
    plain.stop().await;

    let of = |name: &str| files.path(name).display().to_string();
    let tls = json!({ "enabled": true, "cert_path": of("cert.pem"), "key_path": of("key.pem") });
    let port = laredo_testkit::free_port().unwrap();
    let keys = json!({ "http": { "port": port, "tls": tls, "address": "127.0.0.1" } });
    let secure = SnapshotterProcess::launch(&[table], &keys, &[]);
    let ready = format!("https://localhost:{port}/health/ready");
    let is_ready = async || curl(&files, &[&ready]).0;
    assert!(eventually(PATIENCE, is_ready).await.is_ok(), "{}", secure.process.output().join("\n"));
}
