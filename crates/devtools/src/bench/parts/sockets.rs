//! Parts that only move bytes through sockets, as fast as the machine can.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::Context;

use super::{SenderPortReport, ThroughputReport, write_report};

/// The size of the buffer for one read, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// Sends a file from memory to every client that connects and asks for it. Each has a thread,
/// because a blocking thread with one large write has the least cost on the sender's side.
pub(super) async fn send(file: &Path) -> anyhow::Result<()> {
    let bytes: Arc<[u8]> = std::fs::read(file)?.into();
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    write_report(&SenderPortReport { port: listener.local_addr()?.port() })?;
    tokio::task::spawn_blocking(move || {
        for socket in listener.incoming() {
            let (mut socket, bytes) = (socket?, bytes.clone());
            thread::spawn(move || {
                socket.read_exact(&mut [0])?;
                socket.write_all(&bytes)
            });
        }
        anyhow::Ok(())
    })
    .await?
}

/// Reads `bytes` bytes from each of many connections.
pub(super) async fn read(port: u16, clients: usize, bytes: u64) -> anyhow::Result<()> {
    let connect = |_| TcpStream::connect(("127.0.0.1", port)).context("connecting");
    let sockets: Vec<TcpStream> = (0..clients).map(connect).collect::<Result<_, _>>()?;
    let began = Instant::now();
    let readers: Vec<_> = sockets.into_iter().map(|socket| thread::spawn(move || read_socket(socket, bytes))).collect();
    let mut taken = 0;
    for reader in readers {
        taken += reader.join().ok().context("a reader has failed")??;
    }
    write_report(&ThroughputReport { bytes: taken, seconds: began.elapsed().as_secs_f64() })
}

fn read_socket(mut socket: TcpStream, bytes: u64) -> anyhow::Result<u64> {
    socket.write_all(&[1])?;
    let mut buffer = vec![0; READ_BYTES];
    let mut taken = 0;
    while taken < bytes {
        let count = socket.read(&mut buffer)?;
        anyhow::ensure!(count > 0, "a sender has ended after {taken} bytes");
        taken += count as u64;
    }
    Ok(taken)
}
