use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{ChildProcess, HarnessError, Result, eventually, free_port, programs};

/// Runs the emulator. S3 checks a condition and writes in one step. The emulator does this in two
/// steps on several threads, so without the lock two conflicting writers would sometimes both
/// succeed.
const LAUNCH: &str = r"
import threading
from moto import server
from moto.s3.responses import S3Response
lock, put = threading.Lock(), S3Response.put_object
def put_object(self):
    with lock:
        return put(self)
S3Response.put_object = put_object
server.main()
";

/// A private AWS: S3, SNS, SQS, Kinesis and STS by moto, on a port of 127.0.0.1. It accepts any
/// credentials. Its contents are lost when it is dropped.
#[derive(Debug)]
pub struct MotoServer {
    port: u16,
    // This field is dropped last.
    _process: ChildProcess,
}

impl MotoServer {
    /// Starts the emulator, which takes a second or two.
    ///
    /// # Errors
    /// [`HarnessError::Missing`] when moto is not installed, [`HarnessError::Timeout`] when it does
    /// not start.
    pub async fn start() -> Result<Self> {
        let python = programs("moto")?.join("python");
        let port = free_port()?;
        let mut command = Command::new(python);
        command.args(["-c", LAUNCH, "-H", "127.0.0.1", "-p", &port.to_string()]);
        // Otherwise a configured proxy would receive requests for this machine.
        command.env("NO_PROXY", "127.0.0.1");
        let moto = Self { port, _process: ChildProcess::spawn(command)? };
        let up = || async { moto.request("GET", "/moto-api/", "").await.is_ok() };
        eventually(Duration::from_secs(60), up).await?;
        Ok(moto)
    }

    /// Returns the address as `127.0.0.1:port`.
    #[must_use]
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the endpoint of all its services.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Creates a bucket in us-east-1.
    ///
    /// # Errors
    /// The errors of [`MotoServer::request`].
    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        self.request("PUT", &format!("/{name}"), "").await.map(drop)
    }

    /// Sends an unsigned request, and returns the body of the answer.
    ///
    /// # Errors
    /// [`HarnessError::Io`] when it cannot be sent, [`HarnessError::Program`] when the answer is
    /// not a success.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let failed = || HarnessError::io(format!("ask moto for {method} {path}"));
        let mut stream = TcpStream::connect(self.addr()).await.map_err(failed())?;
        let (host, length) = (self.addr(), body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.map_err(failed())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(failed())?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let succeeded = head.split(' ').nth(1).is_some_and(|status| status.starts_with('2'));
        if succeeded {
            Ok(body.to_owned())
        } else {
            Err(HarnessError::Program { program: "moto".to_owned(), output: answer })
        }
    }
}
