use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, Result};

/// Below the ports that systems hand to outgoing connections, so that a server can be stopped and
/// started again on its port without a client's socket having taken it meanwhile.
const FIRST: u32 = 15_000;
const COUNT: u32 = 15_000;

/// A TCP port of 127.0.0.1 on which nobody listens. A process is never given the same one twice in a
/// row, and test processes that run at the same time start looking at different places.
///
/// # Errors
/// [`Error::Missing`] when every port is taken.
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
    Err(Error::Missing(format!("no TCP port from {FIRST} to {} is free on 127.0.0.1", FIRST + COUNT - 1)))
}
