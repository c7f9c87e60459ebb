use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{HarnessError, Result};

/// The first port to try. All ports are below those that systems assign to outgoing connections. So
/// no client's socket takes a server's port while the server restarts.
const FIRST: u32 = 15_000;
const COUNT: u32 = 15_000;

/// Returns a TCP port of 127.0.0.1 that is not in use. A process does not receive the same port
/// twice in a row, and concurrent test processes start their search at different ports.
///
/// # Errors
/// [`HarnessError::Missing`] when every port is taken.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("FIRST + COUNT is below 65536");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(HarnessError::Missing(format!("no TCP port from {FIRST} to {} is free on 127.0.0.1", FIRST + COUNT - 1)))
}
