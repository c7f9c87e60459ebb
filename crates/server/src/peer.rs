//! The peers of connections.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

/// The address of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// The address and port of a TCP connection.
    Tcp(SocketAddr),
    /// A process of this machine that has connected to a Unix socket.
    Unix,
}

impl PeerAddress {
    /// Returns true if the peer is a process of this machine, over loopback or a Unix socket. A
    /// proxy on this machine counts as the peer.
    #[must_use]
    pub fn is_local(self) -> bool {
        match self {
            PeerAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
            PeerAddress::Unix => true,
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // An IPv4 peer of an IPv6 socket is shown as IPv4.
            PeerAddress::Tcp(address) => SocketAddr::new(address.ip().to_canonical(), address.port()).fmt(f),
            PeerAddress::Unix => f.write_str("a Unix socket"),
        }
    }
}

/// The properties of a connection's peer. Each request has them as an extension.
#[derive(Clone, Debug)]
pub(crate) struct PeerInfo {
    pub(crate) address: PeerAddress,
    /// True if the connection uses TLS.
    pub(crate) has_tls: bool,
    /// The certificate of the client and its chain, which TLS has verified. Empty without one.
    #[allow(dead_code, reason = "for rules that name clients by their certificates")]
    pub(crate) certificates: Arc<[CertificateDer<'static>]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        let tcp = |text: &str| PeerAddress::Tcp(text.parse().unwrap());
        for peer in
            [tcp("127.0.0.1:1"), tcp("127.1.2.3:1"), tcp("[::1]:1"), tcp("[::ffff:127.0.0.1]:1"), PeerAddress::Unix]
        {
            assert!(peer.is_local(), "{peer}");
        }
        for peer in [tcp("10.0.0.1:1"), tcp("[fe80::1]:1"), tcp("[::ffff:10.0.0.1]:1"), tcp("0.0.0.0:1")] {
            assert!(!peer.is_local(), "{peer}");
        }
        assert_eq!(tcp("[::ffff:10.0.0.1]:7").to_string(), "10.0.0.1:7");
    }
}
