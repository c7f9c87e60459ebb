//! The peers of connections.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
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

/// The network of a peer, whose connections count as those of one machine. Addresses of IPv6 count
/// by their first 64 bits, because a single machine may use all that begin with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum PeerNetwork {
    #[default]
    Unknown,
    /// The processes of this machine that have connected to Unix sockets.
    Unix,
    /// An address of IPv4, or a network of 64 bits in IPv6.
    Internet(IpAddr),
}

impl From<PeerAddress> for PeerNetwork {
    fn from(address: PeerAddress) -> PeerNetwork {
        match address {
            PeerAddress::Tcp(address) => PeerNetwork::Internet(match address.ip().to_canonical() {
                IpAddr::V4(address) => address.into(),
                IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            }),
            PeerAddress::Unix => PeerNetwork::Unix,
        }
    }
}

impl fmt::Display for PeerNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerNetwork::Unknown => f.write_str("unknown"),
            PeerNetwork::Unix => PeerAddress::Unix.fmt(f),
            PeerNetwork::Internet(IpAddr::V4(address)) => address.fmt(f),
            PeerNetwork::Internet(IpAddr::V6(address)) => write!(f, "{address}/64"),
        }
    }
}

/// The clients that share limits: those of an identity, or those without one from a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientGroup {
    Identity(Arc<str>),
    Network(PeerNetwork),
}

impl Default for ClientGroup {
    fn default() -> ClientGroup {
        ClientGroup::Network(PeerNetwork::default())
    }
}

impl fmt::Display for ClientGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientGroup::Identity(name) => f.write_str(name),
            ClientGroup::Network(network) => network.fmt(f),
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

    #[test]
    fn addresses_of_one_machine_are_one_network() {
        let network = |text: &str| PeerNetwork::from(PeerAddress::Tcp(text.parse().unwrap()));
        assert_eq!(network("10.0.0.1:1"), network("[::ffff:10.0.0.1]:2"));
        assert_ne!(network("10.0.0.1:1"), network("10.0.0.2:1"));
        assert_eq!(network("[2001:db8::1]:1"), network("[2001:db8::ffff:1:2:3]:1"));
        assert_ne!(network("[2001:db8::1]:1"), network("[2001:db8:0:1::1]:1"));
        assert_eq!(network("[2001:db8:1:2:3:4:5:6]:5").to_string(), "2001:db8:1:2::/64");
        assert_eq!(network("[::ffff:10.0.0.1]:1").to_string(), "10.0.0.1");
        assert_eq!(PeerNetwork::from(PeerAddress::Unix).to_string(), "a Unix socket");
        assert_eq!(PeerNetwork::default().to_string(), "unknown");
    }
}
