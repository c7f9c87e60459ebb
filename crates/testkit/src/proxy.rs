use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::{HarnessError, Result};

/// The direction of bytes through a [`FaultProxy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyDirection {
    /// From the connecting client to the target.
    ToServer,
    /// From the target to the connecting client.
    ToClient,
}

/// A TCP proxy that produces faults on request. All its connections end when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    faults: Arc<ProxyFaults>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct ProxyFaults {
    target: Mutex<String>,
    refuse: AtomicBool,
    stall: watch::Sender<bool>,
    delay: Mutex<Duration>,
    /// The number of cuts. A connection ends when it changes.
    cuts: watch::Sender<u64>,
    cut_next_after: Mutex<Option<(ProxyDirection, u64)>>,
    open: AtomicUsize,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl FaultProxy {
    /// Listens on a port of 127.0.0.1 and forwards to `target` (`host:port`).
    ///
    /// # Errors
    /// [`HarnessError::Io`] when it cannot listen.
    pub async fn start(target: impl ToString) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(HarnessError::io("listen on 127.0.0.1"))?;
        let addr = listener.local_addr().map_err(HarnessError::io("ask for the proxy's address"))?;
        let faults = Arc::new(ProxyFaults::default());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&faults)));
        let proxy = Self { addr, faults, accepting };
        proxy.retarget(target);
        Ok(proxy)
    }

    /// Sends new connections to another `host:port`. Open connections stay.
    pub fn retarget(&self, target: impl ToString) {
        *self.faults.target.lock().unwrap_or_else(PoisonError::into_inner) = target.to_string();
    }

    /// Returns the address to connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes every open connection now. New connections are accepted.
    pub fn cut_all(&self) {
        self.faults.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Closes new connections as soon as they are made, while set. Open connections continue.
    pub fn refuse(&self, refuse: bool) {
        self.faults.refuse.store(refuse, Ordering::SeqCst);
    }

    /// Forwards no bytes and no end of stream, and closes no connection, while set.
    pub fn stall(&self, stall: bool) {
        self.faults.stall.send_replace(stall);
    }

    /// Waits before it forwards what has arrived, in each direction.
    pub fn delay(&self, delay: Duration) {
        *self.faults.delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }

    /// Ends the next connection when exactly `bytes` bytes have been forwarded in `direction`.
    pub fn cut_after_bytes(&self, direction: ProxyDirection, bytes: u64) {
        *self.faults.cut_next_after.lock().unwrap_or_else(PoisonError::into_inner) = Some((direction, bytes));
    }

    /// Returns the number of open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.faults.open.load(Ordering::SeqCst)
    }

    /// Returns the number of bytes forwarded in `direction`, over all connections.
    #[must_use]
    pub fn bytes(&self, direction: ProxyDirection) -> u64 {
        self.faults.counter(direction).load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl ProxyFaults {
    fn counter(&self, direction: ProxyDirection) -> &AtomicU64 {
        match direction {
            ProxyDirection::ToServer => &self.to_server,
            ProxyDirection::ToClient => &self.to_client,
        }
    }
}

async fn accept(listener: TcpListener, faults: Arc<ProxyFaults>) {
    // The task owns the connections, so that aborting it ends them too.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if faults.refuse.load(Ordering::SeqCst) {
            continue;
        }
        // The subscription precedes every await, so a cut from now on ends this connection.
        let cuts = faults.cuts.subscribe();
        let limit = faults.cut_next_after.lock().unwrap_or_else(PoisonError::into_inner).take();
        let target = faults.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        connections.spawn(serve(client, target, Arc::clone(&faults), cuts, limit));
    }
}

async fn serve(
    client: TcpStream,
    target: String,
    faults: Arc<ProxyFaults>,
    mut cuts: watch::Receiver<u64>,
    limit: Option<(ProxyDirection, u64)>,
) {
    let _open = OpenConnectionGuard::count(&faults.open);
    let Ok(server) = TcpStream::connect(&target).await else {
        return;
    };
    // Otherwise small messages would wait for acknowledgements, and the proxy would determine the
    // latency.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let limit = |direction| match limit {
        Some((limited, bytes)) if limited == direction => bytes,
        _ => u64::MAX,
    };
    let pump = |from, to, direction| pump(from, to, &faults, direction, limit(direction));
    tokio::select! {
        _ = cuts.changed() => {}
        // An error on one side or a reached limit ends both directions.
        _ = async { tokio::try_join!(
            pump(client_read, server_write, ProxyDirection::ToServer),
            pump(server_read, client_write, ProxyDirection::ToClient),
        )} => {}
    }
}

/// The end of a connection that was not closed by both peers.
struct BrokenConnection;

impl From<std::io::Error> for BrokenConnection {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    faults: &ProxyFaults,
    direction: ProxyDirection,
    limit: u64,
) -> Result<(), BrokenConnection> {
    let mut stall = faults.stall.subscribe();
    let mut left = limit;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let read = from.read(&mut buffer).await?;
        let delay = *faults.delay.lock().unwrap_or_else(PoisonError::into_inner);
        sleep(delay).await;
        if stall.wait_for(|stalled| !stalled).await.is_err() {
            return Err(BrokenConnection);
        }
        if read == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        let forwarded = read.min(usize::try_from(left).unwrap_or(usize::MAX));
        to.write_all(&buffer[..forwarded]).await?;
        left -= forwarded as u64;
        faults.counter(direction).fetch_add(forwarded as u64, Ordering::SeqCst);
    }
    to.shutdown().await?;
    Err(BrokenConnection)
}

struct OpenConnectionGuard<'a>(&'a AtomicUsize);

impl<'a> OpenConnectionGuard<'a> {
    fn count(open: &'a AtomicUsize) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open)
    }
}

impl Drop for OpenConnectionGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
