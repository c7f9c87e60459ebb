//! The addresses of a host, and connecting to the first one that answers.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use laredo_engine::descriptors;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::open::BoxedSocket;
use crate::options::{ConnectionOptions, Host};

/// The idle time before keepalive probes. A vanished peer is noticed ten seconds after it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// The time that an address has before the next one is tried in parallel.
const HEAD_START: Duration = Duration::from_secs(1);

/// The addresses that were not tried yet.
#[derive(Debug)]
pub(super) enum HostAddresses {
    Unix(Option<std::path::PathBuf>),
    Tcp(VecDeque<SocketAddr>),
}

impl HostAddresses {
    /// Looks up a host name, unless its address is given.
    pub(super) async fn of(options: &ConnectionOptions) -> io::Result<HostAddresses> {
        Ok(match (&options.host, options.host_address) {
            (Host::Unix(folder), _) => HostAddresses::Unix(Some(folder.join(format!(".s.PGSQL.{}", options.port)))),
            (Host::Tcp(_), Some(address)) => {
                HostAddresses::Tcp(VecDeque::from([SocketAddr::new(address, options.port)]))
            }
            (Host::Tcp(name), None) => HostAddresses::Tcp(look_up(name, options.port).await?),
        })
    }

    /// Returns true if every address was tried.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            HostAddresses::Unix(path) => path.is_none(),
            HostAddresses::Tcp(addresses) => addresses.is_empty(),
        }
    }

    /// Connects to the first address that answers. Addresses that were tried are not tried again.
    pub(super) async fn connect(&mut self, options: &ConnectionOptions) -> io::Result<BoxedSocket> {
        match self {
            HostAddresses::Unix(path) => {
                let path = path.take().ok_or_else(none_left)?;
                Ok(Box::new(UnixStream::connect(path).await?))
            }
            HostAddresses::Tcp(addresses) => {
                let stream = first_to_answer(addresses).await?;
                set_socket_options(&stream, options)?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// Looks up a host name. The resolver opens files and sockets, but its errors do not say that
/// descriptors ran out.
async fn look_up(name: &str, port: u16) -> io::Result<VecDeque<SocketAddr>> {
    loop {
        match lookup_host((name, port)).await {
            Err(_) if !descriptors::refill() && descriptors::release() => {
                descriptors::release();
            }
            result => return Ok(result?.collect()),
        }
    }
}

fn none_left() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the host has no address")
}

/// Connects to the first address that answers. The next address is tried when one has failed, or
/// has not answered for [`HEAD_START`].
async fn first_to_answer(addresses: &mut VecDeque<SocketAddr>) -> io::Result<TcpStream> {
    let (mut attempts, mut last_error) = (JoinSet::new(), none_left());
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.spawn(dial(address));
        }
        let connected = tokio::select! {
            Some(connected) = attempts.join_next() => connected,
            () = sleep(HEAD_START), if !addresses.is_empty() => continue,
            else => return Err(last_error),
        };
        match connected {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last_error = error,
            Err(error) => last_error = io::Error::other(error),
        }
    }
}

/// Connects to an address. The connection may use the reserve of descriptors, because without the
/// database laredo serves old rows.
async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect(address).await {
            Err(error) if descriptors::is_exhausted(&error) && descriptors::release() => {}
            result => return result,
        }
    }
}

fn set_socket_options(stream: &TcpStream, options: &ConnectionOptions) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(Duration::from_secs(2)).with_retries(5);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    // TCP does not probe while sent data is unacknowledged. A time limit of its own covers that
    // case.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(options.tcp_user_timeout)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    fn address(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// Returns a listener whose queue is full, so that the kernel drops further connections.
    async fn deaf() -> (TcpListener, Vec<TcpStream>) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(address(0)).unwrap();
        let listener = socket.listen(1).unwrap();
        let at = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(at)).await {
            waiting.push(stream.unwrap());
        }
        (listener, waiting)
    }

    #[tokio::test]
    async fn an_address_that_is_dead_or_refuses_is_passed_over() {
        let good = TcpListener::bind(address(0)).await.unwrap();
        let refusing = TcpListener::bind(address(0)).await.unwrap().local_addr().unwrap();
        let (dead, _waiting) = deaf().await;
        let (dead, good) = (dead.local_addr().unwrap(), good.local_addr().unwrap());
        for list in [vec![good], vec![refusing, good], vec![dead, good], vec![refusing, dead, dead, good]] {
            let stream = first_to_answer(&mut list.clone().into()).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), good, "{list:?}");
        }
        let mut all_tried = VecDeque::from([good, refusing]);
        first_to_answer(&mut all_tried).await.unwrap();
        assert_eq!(all_tried, [refusing], "what was not needed may be tried later");
        for list in [vec![], vec![refusing], vec![refusing, refusing]] {
            first_to_answer(&mut list.into()).await.unwrap_err();
        }
    }
}
