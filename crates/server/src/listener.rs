//! The addresses and sockets that ports listen at.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::peer::PeerAddress;
use crate::tls::ServerTls;

/// The prefix of the path of a Unix socket.
const UNIX_PREFIX: &str = "unix:";
/// The mode of a Unix socket: its user and group may connect.
const SOCKET_MODE: u32 = 0o660;

/// The address that a port listens at. Its text is `*`, an IP address, or `unix:` and a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddress {
    /// Every address of the machine.
    #[default]
    All,
    /// This address of the machine.
    Ip(IpAddr),
    /// A Unix socket at this absolute path. It has no port.
    Unix(PathBuf),
}

/// A text that is no address to listen at.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address to listen at; give an IP address, unix:/PATH, or * for all addresses")]
pub struct ListenAddressError(String);

impl ListenAddress {
    /// Returns true if only processes of this machine can connect to the address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            ListenAddress::All => false,
            ListenAddress::Ip(ip) => ip.to_canonical().is_loopback(),
            ListenAddress::Unix(_) => true,
        }
    }

    /// Returns the text for an address with its port.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        match self {
            ListenAddress::All => format!("*:{port}"),
            ListenAddress::Ip(ip) => SocketAddr::from((*ip, port)).to_string(),
            ListenAddress::Unix(_) => self.to_string(),
        }
    }

    /// Returns true if two ports at these addresses are one and have one listener.
    #[must_use]
    pub fn is_same(&self, port: u16, other: &ListenAddress, other_port: u16) -> bool {
        self == other && (port == other_port || matches!(self, ListenAddress::Unix(_)))
    }

    /// Returns true if two ports at these addresses cannot be listened at by different listeners.
    #[must_use]
    pub fn overlaps(&self, port: u16, other: &ListenAddress, other_port: u16) -> bool {
        let is_same_port = port == other_port && port != 0;
        match (self, other) {
            (ListenAddress::Unix(one), ListenAddress::Unix(other)) => one == other,
            (ListenAddress::Unix(_), _) | (_, ListenAddress::Unix(_)) => false,
            (ListenAddress::All, _) | (_, ListenAddress::All) => is_same_port,
            (ListenAddress::Ip(one), ListenAddress::Ip(other)) => {
                is_same_port && (one == other || one.is_unspecified() || other.is_unspecified())
            }
        }
    }
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<ListenAddress, ListenAddressError> {
        if text == "*" {
            return Ok(ListenAddress::All);
        }
        if let Some(path) = text.strip_prefix(UNIX_PREFIX) {
            // A client writes unix:///PATH, too.
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            let is_file = path.is_absolute() && path.file_name().is_some();
            return is_file.then(|| ListenAddress::Unix(path.to_owned())).ok_or(ListenAddressError(text.to_owned()));
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        bare.parse().map(ListenAddress::Ip).map_err(|_| ListenAddressError(text.to_owned()))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::All => f.write_str("*"),
            ListenAddress::Ip(ip) => ip.fmt(f),
            ListenAddress::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

/// A socket that accepts the connections of one port, and the TLS of the port.
#[derive(Debug)]
pub struct PortListener {
    socket: ListeningSocket,
    tls: Option<ServerTls>,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    /// The socket, and its file while any handle of the socket exists.
    Unix(UnixListener, Arc<SocketFile>),
}

/// The bytes of an accepted connection.
pub(crate) type PortStream = Either<TcpStream, UnixStream>;

impl From<TcpListener> for PortListener {
    fn from(listener: TcpListener) -> PortListener {
        PortListener { socket: ListeningSocket::Tcp(listener), tls: None }
    }
}

impl PortListener {
    /// Listens at an address. `All` means IPv4 and IPv6, where the machine has both. A Unix socket
    /// that no process listens at any more is replaced.
    ///
    /// # Errors
    /// Returns an error if the address is in use, or is not one of this machine.
    pub async fn bind(address: &ListenAddress, port: u16) -> io::Result<PortListener> {
        let tcp = match address {
            ListenAddress::All => bind_all(port).await?,
            ListenAddress::Ip(ip) => TcpListener::bind(SocketAddr::from((*ip, port))).await?,
            ListenAddress::Unix(path) => {
                let (listener, file) = bind_unix(path)?;
                return Ok(PortListener { socket: ListeningSocket::Unix(listener, Arc::new(file)), tls: None });
            }
        };
        Ok(tcp.into())
    }

    /// Adds TLS to the port. A Unix socket has none, because no network can read it.
    #[must_use]
    pub fn with_tls(self, tls: Option<ServerTls>) -> PortListener {
        PortListener { tls, ..self }
    }

    /// Returns the TLS of the port.
    #[must_use]
    pub fn tls(&self) -> Option<&ServerTls> {
        match self.socket {
            ListeningSocket::Tcp(_) => self.tls.as_ref(),
            ListeningSocket::Unix(..) => None,
        }
    }

    /// Returns the address in full: that of the socket, with the port that the kernel has chosen.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.socket {
            ListeningSocket::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| "unknown".to_owned(), |address| address.to_string())
            }
            ListeningSocket::Unix(_, file) => format!("{UNIX_PREFIX}{}", file.0.display()),
        }
    }

    /// Waits for the next connection. The call is cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<(PortStream, PeerAddress)> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Either::Left(stream), PeerAddress::Tcp(peer)))
            }
            ListeningSocket::Unix(listener, _) => Ok((Either::Right(listener.accept().await?.0), PeerAddress::Unix)),
        }
    }

    /// Returns another handle of the same socket.
    pub(crate) fn twin(&self) -> io::Result<PortListener> {
        let socket = match &self.socket {
            ListeningSocket::Tcp(listener) => {
                ListeningSocket::Tcp(TcpListener::from_std(listener.as_fd().try_clone_to_owned()?.into())?)
            }
            ListeningSocket::Unix(listener, file) => {
                let twin = UnixListener::from_std(listener.as_fd().try_clone_to_owned()?.into())?;
                ListeningSocket::Unix(twin, file.clone())
            }
        };
        Ok(PortListener { socket, tls: self.tls.clone() })
    }
}

async fn bind_all(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        // The machine has no IPv6.
        Err(_) => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
        bound => bound,
    }
}

/// The file of a Unix socket, which ends with the value.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A file that is left over is replaced by the next process that listens here.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens at a path. The socket has its mode before it has its name, so that no other user can
/// connect in between.
fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    check_unused(path)?;
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = SocketFile(new.into());
    // A killed process may have had the same ID.
    let _ = std::fs::remove_file(&new.0);
    let listener = UnixListener::bind(&new.0)?;
    std::fs::set_permissions(&new.0, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    std::fs::rename(&new.0, path)?;
    Ok((listener, SocketFile(path.to_owned())))
}

/// Checks that a path is free, or has a socket that no process listens at.
fn check_unused(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path has a file that is no socket"))
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens at this path")),
        },
    }
}

#[cfg(test)]
mod tests;
