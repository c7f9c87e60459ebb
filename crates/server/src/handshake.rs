//! TLS handshakes. Each is a task of its own, so that a client that is silent or slow delays no
//! other client.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::accept::{AcceptedConnection, ConnectionAcceptor, PrefacedConnection};
use crate::listener::PortStream;
use crate::peer::{PeerInfo, PeerNetwork};

/// The time limit of a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// The maximum number of concurrent handshakes of one peer address on one port. A further one ends
/// the oldest.
const PEER_HANDSHAKES_MAX: usize = 512;

/// The bytes of a connection, with or without TLS.
pub(crate) type ServerStream = Either<PortStream, TlsStream<PortStream>>;

/// A connection that is ready for requests.
pub(crate) type ReadyConnection = PrefacedConnection<ServerStream>;

/// Returns the connections of a port once they are ready for requests. A connection whose handshake
/// fails is dropped.
pub(crate) fn ready_connections(acceptor: ConnectionAcceptor) -> impl Stream<Item = ReadyConnection> {
    stream::unfold((acceptor, HandshakeTasks::default()), |(mut acceptor, mut handshakes)| async move {
        loop {
            let mut accepted = tokio::select! {
                accepted = acceptor.accept() => accepted,
                Some(ready) = handshakes.next() => return Some((ready, (acceptor, handshakes))),
            };
            match accepted.tls.take() {
                Some(tls) => handshakes.begin(accepted, tls.acceptor()),
                None => return Some((without_tls(accepted), (acceptor, handshakes))),
            }
        }
    })
}

/// Makes a connection ready for requests over HTTP/1.1 alone. Returns `None` if its handshake fails
/// or takes too long.
pub(crate) async fn make_http1_ready(mut accepted: AcceptedConnection) -> Option<ReadyConnection> {
    match accepted.tls.take() {
        Some(tls) => with_tls(accepted, &tls.http1_acceptor()).await,
        None => Some(without_tls(accepted)),
    }
}

fn without_tls(accepted: AcceptedConnection) -> ReadyConnection {
    let peer = PeerInfo { address: accepted.peer, has_tls: false, certificates: Arc::new([]) };
    PrefacedConnection::new(Either::Left(accepted.stream), peer, accepted.slot)
}

async fn with_tls(accepted: AcceptedConnection, tls: &TlsAcceptor) -> Option<ReadyConnection> {
    let AcceptedConnection { stream, peer: address, slot, .. } = accepted;
    let connection = match timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(event = "tls_handshake_failed", peer = %address, %error, "a TLS handshake failed");
            return None;
        }
        Err(_) => {
            tracing::debug!(event = "tls_handshake_failed", peer = %address, "a TLS handshake took too long");
            return None;
        }
    };
    let certificates = connection.get_ref().1.peer_certificates().unwrap_or_default().into();
    let peer = PeerInfo { address, has_tls: true, certificates };
    Some(PrefacedConnection::new(Either::Right(connection), peer, slot))
}

/// The handshakes of a port that have not ended.
#[derive(Default)]
struct HandshakeTasks {
    tasks: JoinSet<(PeerNetwork, Option<ReadyConnection>)>,
    /// The tasks of each peer, the oldest first.
    by_peer: HashMap<PeerNetwork, VecDeque<AbortHandle>>,
}

impl HandshakeTasks {
    fn begin(&mut self, accepted: AcceptedConnection, tls: TlsAcceptor) {
        let peer = PeerNetwork::from(accepted.peer);
        let handshakes = self.by_peer.entry(peer).or_default();
        if handshakes.len() >= PEER_HANDSHAKES_MAX
            && let Some(oldest) = handshakes.pop_front()
        {
            oldest.abort();
        }
        handshakes.push_back(self.tasks.spawn(async move { (peer, with_tls(accepted, &tls).await) }));
    }

    /// Waits for the next successful handshake. Returns `None` if none has begun.
    async fn next(&mut self) -> Option<ReadyConnection> {
        loop {
            // A task that was aborted is in no list any more.
            let Ok((peer, ready)) = self.tasks.join_next().await? else { continue };
            if let Some(handshakes) = self.by_peer.get_mut(&peer) {
                handshakes.retain(|handshake| !handshake.is_finished());
                if handshakes.is_empty() {
                    self.by_peer.remove(&peer);
                }
            }
            if ready.is_some() {
                return ready;
            }
        }
    }
}
