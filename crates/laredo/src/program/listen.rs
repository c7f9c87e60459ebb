//! Ports.

use std::net::{Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// Listens on every address, IPv4 and IPv6 where the machine has both.
pub(crate) async fn bind(port: u16, what: &str) -> Result<TcpListener, String> {
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let bound = match TcpListener::bind(all).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        // A machine without IPv6.
        Err(_) => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
    };
    bound
        .map_err(|error| format!("cannot listen on port {port} ({what}): {error}; choose another one or stop its user"))
}
