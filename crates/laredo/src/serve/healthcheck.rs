//! `laredo-server healthcheck`: for container platforms that run a command to see whether a server is ready.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use crate::config::server::HealthConfig;

/// A server that is well answers far sooner.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks the server on this machine; 0 when it is ready.
pub(super) fn run(health: &HealthConfig) -> ExitCode {
    match ask(health) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => ExitCode::SUCCESS,
        Ok(answer) => {
            eprintln!("not ready: {}", answer.lines().next().unwrap_or("no answer"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("no answer from 127.0.0.1:{}: {error}; is laredo-server running?", health.http_port);
            ExitCode::FAILURE
        }
    }
}

fn ask(health: &HealthConfig) -> io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, health.http_port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let path = &health.readiness_path;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
