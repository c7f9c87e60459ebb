//! Listening ports.

use std::net::{Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// Listens on a port at every address, IPv4 and IPv6 where the machine has both. The error is a
/// sentence that names the port and `what` it is for.
pub(crate) async fn bind(port: u16, what: &str) -> Result<TcpListener, String> {
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let bound = match TcpListener::bind(all).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        // The machine has no IPv6.
        Err(_) => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
    };
    bound.map_err(|error| {
        format!("cannot listen on port {port} ({what}): {error}; choose another port, or stop the program that uses it")
    })
}
