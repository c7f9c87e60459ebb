//! Acceptance of connections. There are never more than the file descriptors allow, and connections
//! of vanished or silent peers are closed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use laredo_engine::descriptors;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::listener::{PortListener, PortStream};
use crate::peer::{PeerAddress, PeerInfo};
use crate::tls::ServerTls;

/// The time after which a vanished peer is noticed: without an acknowledgement of sent data, or of
/// three probes. The two times add up if data is sent while TCP probes.
const VANISHED: Duration = Duration::from_secs(30);
const PROBE_IDLE: Duration = Duration::from_secs(15);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// The wait before the next attempt to accept, if the last one failed for a local reason.
const AGAIN: Duration = Duration::from_millis(250);
/// The interval at which a lasting shortage of descriptors or connections is logged.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// The time within which a client must show which protocol it speaks.
const PREFACE_MAX: Duration = Duration::from_secs(10);
/// The first bytes of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The number of ports of this process on which connections wait for a descriptor.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Returns the number of ports on which connections wait for a file descriptor.
pub(crate) fn waiting_ports() -> usize {
    WAITING.load(Ordering::Relaxed)
}

/// The file descriptors that the connections of a port may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DescriptorBudget {
    /// Only descriptors outside the reserve for files.
    Spare,
    /// The reserve as well. This is for a port that answers probes and has few connections.
    Reserved,
}

/// A connection without any bytes read yet.
pub(crate) struct AcceptedConnection {
    pub(crate) stream: PortStream,
    pub(crate) peer: PeerAddress,
    /// The TLS with which the connection must begin.
    pub(crate) tls: Option<ServerTls>,
    /// The connection's part of the limit, until it is dropped.
    pub(crate) slot: Option<OwnedSemaphorePermit>,
}

/// An acceptor for the connections of one port.
#[derive(Debug)]
pub(crate) struct ConnectionAcceptor {
    listener: PortListener,
    descriptors: DescriptorBudget,
    /// The connections that the port may still accept; `None` if the port bounds them itself.
    slots: Option<Arc<Semaphore>>,
    /// The time when the present shortage was last logged.
    warned_at: Option<Instant>,
    /// True while this port is one of [`WAITING`].
    is_waiting: bool,
}

impl ConnectionAcceptor {
    pub(crate) fn new(listener: PortListener, descriptors: DescriptorBudget) -> ConnectionAcceptor {
        ConnectionAcceptor { listener, descriptors, slots: None, warned_at: None, is_waiting: false }
    }

    /// Limits the number of open connections. More clients wait in the kernel's queue.
    pub(crate) fn with_limit(mut self, connections_max: usize) -> ConnectionAcceptor {
        self.slots = Some(Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))));
        self
    }

    /// Waits for the next connection. The call is cancel-safe: no connection is lost.
    pub(crate) async fn accept(&mut self) -> AcceptedConnection {
        loop {
            let slot = self.take_slot().await;
            // A connection must not use the descriptor that a journal needs next.
            if self.descriptors == DescriptorBudget::Spare && !descriptors::refill() {
                self.wait_for_descriptor().await;
                continue;
            }
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if self.end_wait() {
                        tracing::info!(
                            event = "connections_accepted_again",
                            address = self.listener.address(),
                            "connections are accepted again"
                        );
                    }
                    if let Either::Left(connection) = &stream {
                        set_options(connection);
                    }
                    let tls = self.listener.tls().cloned();
                    return AcceptedConnection { stream, peer, tls, slot };
                }
                Err(error) if descriptors::is_exhausted(&error) => {
                    if self.descriptors == DescriptorBudget::Spare || !descriptors::release() {
                        self.wait_for_descriptor().await;
                    }
                }
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(
                        event = "connection_not_accepted", address = self.listener.address(), %error,
                        "cannot accept a connection"
                    );
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Waits until the port may have one more connection.
    async fn take_slot(&mut self) -> Option<OwnedSemaphorePermit> {
        let slots = self.slots.clone()?;
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            return Some(slot);
        }
        if self.is_warning_due() {
            tracing::warn!(
                event = "connections_exhausted",
                address = self.listener.address(),
                "the port has its maximum of connections, so new ones wait until others end; raise \
                 grpc.max_connections, or find out which clients open so many"
            );
        }
        // The semaphore is never closed.
        slots.acquire_owned().await.ok()
    }

    /// Ends a wait. Returns true if connections had to wait.
    fn end_wait(&mut self) -> bool {
        WAITING.fetch_sub(usize::from(std::mem::take(&mut self.is_waiting)), Ordering::Relaxed);
        self.warned_at.take().is_some()
    }

    /// Waits before the next attempt. Clients wait in the kernel's queue meanwhile.
    async fn wait_for_descriptor(&mut self) {
        let was_waiting = std::mem::replace(&mut self.is_waiting, true);
        WAITING.fetch_add(usize::from(!was_waiting), Ordering::Relaxed);
        if self.is_warning_due() {
            tracing::warn!(
                event = "descriptors_exhausted",
                address = self.listener.address(),
                "too many open files: new connections wait until file descriptors are free; raise the limit of the \
                 process (ulimit -n, LimitNOFILE) or lower max_clients"
            );
        }
        sleep(AGAIN).await;
    }

    /// Returns true if a shortage has to be logged: not again within [`WARN_INTERVAL`].
    fn is_warning_due(&mut self) -> bool {
        let is_due = self.warned_at.is_none_or(|warned_at| warned_at.elapsed() >= WARN_INTERVAL);
        if is_due {
            self.warned_at = Some(Instant::now());
        }
        is_due
    }
}

impl Drop for ConnectionAcceptor {
    fn drop(&mut self) {
        self.end_wait();
    }
}

/// Returns true if an error concerns only the connection that was to be accepted.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | TimedOut | WouldBlock
    )
}

/// Sets the options of a connection. HTTP/1.1 has no pings, so TCP must detect a vanished client.
/// The calls fail only if the connection has just ended.
fn set_options(connection: &TcpStream) {
    let _ = connection.set_nodelay(true);
    let socket = SockRef::from(connection);
    let keepalive = TcpKeepalive::new().with_time(PROBE_IDLE).with_interval(PROBE_INTERVAL).with_retries(PROBES);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(VANISHED));
}

/// A connection that fails unless its client shows within [`PREFACE_MAX`] which protocol it speaks.
/// After that, the protocols have time limits of their own.
#[derive(Debug)]
pub(crate) struct PrefacedConnection<S> {
    inner: S,
    peer: PeerInfo,
    /// The number of bytes received, all of them part of HTTP/2's preface, and the time limit for
    /// the rest.
    pending: Option<(usize, Pin<Box<Sleep>>)>,
    /// The connection's part of the port's limit.
    _slot: Option<OwnedSemaphorePermit>,
}

impl<S> PrefacedConnection<S> {
    pub(crate) fn new(inner: S, peer: PeerInfo, slot: Option<OwnedSemaphorePermit>) -> PrefacedConnection<S> {
        PrefacedConnection { inner, peer, pending: Some((0, Box::pin(sleep(PREFACE_MAX)))), _slot: slot }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefacedConnection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, into);
        let Some((seen, deadline)) = &mut self.pending else { return read };
        if read.is_pending() {
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client sent no request in time")));
        }
        let new = &into.filled()[before..];
        let expected = &PREFACE[*seen..];
        let is_preface_so_far = new.len() < expected.len() && expected.starts_with(new);
        *seen += new.len();
        if !is_preface_so_far {
            self.pending = None;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PrefacedConnection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<S> Connected for PrefacedConnection<S> {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn local() -> PeerInfo {
        PeerInfo { address: PeerAddress::Unix, has_tls: false, certificates: Arc::new([]) }
    }

    /// Reads like a protocol until the connection ends. Returns the error and the time when it
    /// came.
    async fn read(mut connection: PrefacedConnection<tokio::io::DuplexStream>) -> (Option<io::ErrorKind>, Duration) {
        let begun = Instant::now();
        let mut bytes = [0; 16];
        loop {
            match connection.read(&mut bytes).await {
                Ok(0) => return (None, begun.elapsed()),
                Ok(_) => {}
                Err(error) => return (Some(error.kind()), begun.elapsed()),
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_client_that_vanishes_is_noticed_by_tcp() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut acceptor = ConnectionAcceptor::new(listener.into(), DescriptorBudget::Spare);
        let (client, accepted) = tokio::join!(TcpStream::connect(address), acceptor.accept());
        let Either::Left(accepted) = accepted.stream else { panic!("a connection over TCP") };
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap() && accepted.nodelay().unwrap() && client.is_ok());
        let silence = socket.tcp_keepalive_time().unwrap()
            + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert!(silence <= VANISHED && socket.tcp_user_timeout().unwrap() == Some(VANISHED));
        assert!(VANISHED * 2 <= Duration::from_secs(60), "a place is free within a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_to_say_what_it_speaks() {
        let late = (Some(io::ErrorKind::TimedOut), PREFACE_MAX);
        for (said, is_late) in [
            (b"".as_slice(), true),
            (b"P", true),
            (&PREFACE[..23], true),
            (PREFACE, false),
            (b"G", false),
            (b"PUT", false),
            (&[22, 3, 1], false),
        ] {
            let (mut client, server) = tokio::io::duplex(64);
            let reading = tokio::spawn(read(PrefacedConnection::new(server, local(), None)));
            // The bytes are sent in two pieces, as a network may split them.
            let (one, other) = said.split_at(said.len() / 2);
            client.write_all(one).await.unwrap();
            sleep(Duration::from_secs(1)).await;
            client.write_all(other).await.unwrap();
            sleep(PREFACE_MAX * 3).await;
            drop(client);
            let ended = reading.await.unwrap();
            assert_eq!(ended == late, is_late, "{said:?}: {ended:?}");
        }
    }
}
