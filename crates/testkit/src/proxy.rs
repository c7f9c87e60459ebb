use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::{Error, Result};

/// Which way bytes go through a [`Proxy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connected to the proxy.
    ToServer,
    /// From the proxy's target.
    ToClient,
}

/// A TCP proxy that can be told to misbehave. All its connections end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    faults: Arc<Faults>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Faults {
    target: Mutex<String>,
    refuse: AtomicBool,
    stall: watch::Sender<bool>,
    /// Counts the cuts; a connection ends when it changes.
    cuts: watch::Sender<u64>,
    cut_next_after: Mutex<Option<(Direction, u64)>>,
    open: AtomicUsize,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Proxy {
    /// Listens on a port of 127.0.0.1 and forwards to `target` (`host:port`).
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot listen.
    pub async fn start(target: impl ToString) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Error::io("listen on 127.0.0.1"))?;
        let addr = listener.local_addr().map_err(Error::io("ask for the proxy's address"))?;
        let faults = Arc::new(Faults::default());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&faults)));
        let proxy = Self { addr, faults, accepting };
        proxy.retarget(target);
        Ok(proxy)
    }

    /// From now on new connections go to another `host:port`. Open ones stay.
    pub fn retarget(&self, target: impl ToString) {
        *self.faults.target.lock().unwrap_or_else(PoisonError::into_inner) = target.to_string();
    }

    /// Where to connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes every connection now. New ones are taken.
    pub fn cut_all(&self) {
        self.faults.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// While set, new connections are closed as soon as they are made. Open ones go on.
    pub fn refuse(&self, refuse: bool) {
        self.faults.refuse.store(refuse, Ordering::SeqCst);
    }

    /// While set, no byte is forwarded and no end of stream either, and nothing is closed.
    pub fn stall(&self, stall: bool) {
        self.faults.stall.send_replace(stall);
    }

    /// The next connection ends when exactly `bytes` bytes have gone in `direction`.
    pub fn cut_after_bytes(&self, direction: Direction, bytes: u64) {
        *self.faults.cut_next_after.lock().unwrap_or_else(PoisonError::into_inner) = Some((direction, bytes));
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.faults.open.load(Ordering::SeqCst)
    }

    /// How many bytes have been forwarded in `direction`, over all connections.
    #[must_use]
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.faults.counter(direction).load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Faults {
    fn counter(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }
}

async fn accept(listener: TcpListener, faults: Arc<Faults>) {
    // Owned by this task, so that aborting it ends them too.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if faults.refuse.load(Ordering::SeqCst) {
            continue;
        }
        // Subscribed before anything is awaited: a cut from now on concerns this connection.
        let cuts = faults.cuts.subscribe();
        let limit = faults.cut_next_after.lock().unwrap_or_else(PoisonError::into_inner).take();
        let target = faults.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        connections.spawn(serve(client, target, Arc::clone(&faults), cuts, limit));
    }
}

async fn serve(
    client: TcpStream,
    target: String,
    faults: Arc<Faults>,
    mut cuts: watch::Receiver<u64>,
    limit: Option<(Direction, u64)>,
) {
    let _open = Open::count(&faults.open);
    let Ok(server) = TcpStream::connect(&target).await else {
        return;
    };
    // Without it small messages would wait for acknowledgements, and latencies be the proxy's.
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
        // An error on one side, and a limit reached, end both.
        _ = async { tokio::try_join!(
            pump(client_read, server_write, Direction::ToServer),
            pump(server_read, client_write, Direction::ToClient),
        )} => {}
    }
}

/// Why a connection ends although its peers did not both say so.
struct Broken;

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    faults: &Faults,
    direction: Direction,
    limit: u64,
) -> Result<(), Broken> {
    let mut stall = faults.stall.subscribe();
    let mut left = limit;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let read = from.read(&mut buffer).await?;
        if stall.wait_for(|stalled| !stalled).await.is_err() {
            return Err(Broken);
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
    Err(Broken)
}

struct Open<'a>(&'a AtomicUsize);

impl<'a> Open<'a> {
    fn count(open: &'a AtomicUsize) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
