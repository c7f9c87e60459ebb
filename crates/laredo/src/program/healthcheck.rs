//! The command `healthcheck`, for container platforms that run a command to find out if a program
//! is ready.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// The time limit for the connection, and for each read of the answer. A healthy program answers
/// far sooner.
const PATIENCE: Duration = Duration::from_secs(3);

/// Requests the readiness path of the program on this machine. Returns exit code 0 if the program
/// is ready.
pub(crate) fn healthcheck(program: &str, port: u16, path: &str) -> ExitCode {
    match request_readiness(port, path) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => ExitCode::SUCCESS,
        Ok(answer) => {
            eprintln!("not ready: {}", answer.lines().next().unwrap_or("no answer"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("no answer from 127.0.0.1:{port}: {error}; is {program} running?");
            ExitCode::FAILURE
        }
    }
}

fn request_readiness(port: u16, path: &str) -> io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
