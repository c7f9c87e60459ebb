//! The origin of a request. Until clients have identities, limits are shared by address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use http::Extensions;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};

/// The address that a client connects from. Addresses of IPv6 count by their first 64 bits, because
/// a single machine may use all that begin with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PeerNetwork(Option<IpAddr>);

impl PeerNetwork {
    /// Returns the network of a request's connection.
    pub(crate) fn of(extensions: &Extensions) -> PeerNetwork {
        type TlsInfo = <TlsStream<tokio::net::TcpStream> as Connected>::ConnectInfo;
        let plain = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let secure = || extensions.get::<TlsInfo>().map(TlsConnectInfo::get_ref).and_then(TcpConnectInfo::remote_addr);
        plain.or_else(secure).map(|address| address.ip().into()).unwrap_or_default()
    }
}

impl From<IpAddr> for PeerNetwork {
    fn from(address: IpAddr) -> PeerNetwork {
        PeerNetwork(Some(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        }))
    }
}

impl fmt::Display for PeerNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(IpAddr::V4(address)) => address.fmt(f),
            Some(IpAddr::V6(address)) => write!(f, "{address}/64"),
            None => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_address_is_that_of_the_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (connection, _) = listener.accept().await.unwrap();
        let mut extensions = Extensions::new();
        assert_eq!(PeerNetwork::of(&extensions).to_string(), "unknown");
        extensions.insert(connection.connect_info());
        assert_eq!(PeerNetwork::of(&extensions).to_string(), "127.0.0.1");
    }

    #[test]
    fn addresses_of_one_machine_are_one_network() {
        let network = |text: &str| PeerNetwork::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(network("10.0.0.1"), network("::ffff:10.0.0.1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1:2:3"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("2001:db8::1").to_string(), "2001:db8::/64");
        assert_eq!(network("::ffff:10.0.0.1").to_string(), "10.0.0.1");
    }
}
