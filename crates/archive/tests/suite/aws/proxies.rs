//! Proxies of the environment, which a process of its own has.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use aws_credential_types::provider::ProvideCredentials as _;
use laredo_archive::{AwsProfileSet, DestinationReader as _, S3Destination, S3Options};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A server of HTTP that records the first line of each request.
struct RecordingServer {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl RecordingServer {
    /// Starts a server that answers as `answer` does, by the first line of the request.
    async fn start(answer: fn(&str) -> (&'static str, &'static str)) -> RecordingServer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let all = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, all.clone(), answer));
            }
        });
        RecordingServer { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    asked: Arc<Mutex<Vec<String>>>,
    answer: fn(&str) -> (&'static str, &'static str),
) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains("\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(read @ 1..) => text.push_str(&String::from_utf8_lossy(&buffer[..read])),
            Ok(0) | Err(_) => return,
        }
    }
    let line = text.lines().next().unwrap_or_default().to_owned();
    let (status, body) = answer(&line);
    asked.lock().push(line);
    let length = body.len();
    // The EC2 client needs the life of its token.
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\
         Connection: close\r\n\r\n{body}"
    );
    // The client may be gone.
    let _ = stream.write_all(answer.as_bytes()).await;
}

const KEYS: &str = r#"{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"AKIDNEAR","SecretAccessKey":"s","Token":"t",
    "LastUpdated":"2024-01-01T00:00:00Z","Expiration":"2099-01-01T00:00:00Z"}"#;

/// Answers as the endpoints of containers and of EC2 do.
fn hand_out(line: &str) -> (&'static str, &'static str) {
    match line.split(' ').nth(1).unwrap_or_default() {
        "/latest/api/token" => ("200 OK", "token"),
        "/latest/meta-data/iam/security-credentials/" => ("200 OK", "role"),
        "/creds" | "/latest/meta-data/iam/security-credentials/role" => ("200 OK", KEYS),
        _ => ("404 Not Found", ""),
    }
}

/// Runs a test of this program in a process that has these variables and the proxy alone.
async fn run_behind_proxy(test: &str, proxy: &RecordingServer, variables: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let mut inside = Command::new(std::env::current_exe().unwrap());
    inside.args([test, "--exact", "--nocapture"]).env_clear().env("HOME", folder.path());
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
        inside.env(name, &proxy.url);
    }
    inside.envs(variables.iter().copied());
    let output = tokio::task::spawn_blocking(move || inside.output()).await.unwrap().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_never_fetched_through_a_proxy() {
    // Inside of the process with the proxy, the default chain is asked.
    if std::env::var_os("LAREDO_TEST_BEHIND_PROXY").is_some() {
        let credentials = AwsProfileSet::default().credentials(None).await.unwrap();
        let keys = credentials.sdk_config().credentials_provider().unwrap().provide_credentials().await.unwrap();
        assert_eq!(keys.access_key_id(), "AKIDNEAR");
        return;
    }
    let test = "aws::proxies::credentials_are_never_fetched_through_a_proxy";
    for endpoint in ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_EC2_METADATA_SERVICE_ENDPOINT"] {
        let near = RecordingServer::start(hand_out).await;
        // The proxy answers as the endpoint does, so that a wrong way is seen by its requests.
        let proxy = RecordingServer::start(hand_out).await;
        let path = if endpoint.contains("CONTAINER") { "/creds" } else { "" };
        let address = format!("{}{path}", near.url);
        let variables = [("LAREDO_TEST_BEHIND_PROXY", "1"), ("AWS_REGION", "us-east-1"), (endpoint, address.as_str())];
        run_behind_proxy(test, &proxy, &variables).await;
        assert_eq!(proxy.asked(), Vec::<String>::new(), "{endpoint}");
        assert!(!near.asked().is_empty(), "{endpoint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_elsewhere_are_reached_through_the_proxy() {
    if std::env::var_os("LAREDO_TEST_BEHIND_PROXY").is_some() {
        let credentials = AwsProfileSet::default().credentials(None).await.unwrap();
        let mut options = S3Options::default();
        options.endpoint = Some("http://store.invalid".to_owned());
        let bucket = S3Destination::new("archives", "", &options, &credentials).unwrap();
        assert_eq!(bucket.manifest().await.unwrap(), None);
        return;
    }
    let proxy = RecordingServer::start(|_| ("404 Not Found", "")).await;
    let test = "aws::proxies::buckets_elsewhere_are_reached_through_the_proxy";
    let keys = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_REGION", "us-east-1")];
    run_behind_proxy(test, &proxy, &[&keys[..], &[("LAREDO_TEST_BEHIND_PROXY", "1")]].concat()).await;
    let asked = proxy.asked();
    assert!(asked.iter().any(|line| line.contains("store.invalid")), "{asked:?}");
}
