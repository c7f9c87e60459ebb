//! The programs of the same build, and their answers over HTTP.

use std::path::PathBuf;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Returns the path of a program that was built together with this one.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name(name);
    if !beside.exists() {
        bail!("{} is missing; build it with `cargo build -p laredo`", beside.display());
    }
    Ok(beside)
}

/// Sends a request such as `GET /status` to a program on this machine. Returns the status code and
/// the body of the answer.
pub(crate) async fn send_request(port: u16, what: &str) -> anyhow::Result<(u16, String)> {
    let request = format!("{what} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{what}: the answer is not HTTP"))?;
    let code = head.split(' ').nth(1).with_context(|| format!("{what}: the answer has no status code"))?;
    Ok((code.parse()?, body.to_owned()))
}
