//! The proxy forwards faithfully, and misbehaves exactly as configured.

use std::net::SocketAddr;
use std::time::Duration;

use laredo_testkit::{FaultProxy, ProxyDirection, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a server that sends back all bytes it receives.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = peer.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    addr
}

/// Waits for the duration of many loopback round trips on another connection. A byte that is not
/// held back arrives in this time.
async fn a_while() {
    let mut other = TcpStream::connect(echo().await).await.unwrap();
    for _ in 0..1000 {
        round_trip(&mut other, b"tick").await;
    }
}

async fn start() -> (FaultProxy, TcpStream) {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    let client = TcpStream::connect(proxy.addr()).await.unwrap();
    (proxy, client)
}

async fn round_trip(client: &mut TcpStream, message: &[u8]) {
    client.write_all(message).await.unwrap();
    let mut answer = vec![0; message.len()];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, message);
}

/// Returns true if the connection has ended, by an end of stream or a reset.
async fn is_over(client: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(PATIENCE, client.read(&mut [0])).await.unwrap();
    !matches!(read, Ok(1..))
}

#[tokio::test]
async fn it_forwards_both_ways_and_passes_on_the_end() {
    let (proxy, mut client) = start().await;
    let message: Vec<u8> = (0..1_000_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    let (mut read, mut write) = client.split();
    let send = async {
        write.write_all(&message).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut answer = Vec::new();
    let (_, received) = tokio::join!(send, read.read_to_end(&mut answer));
    received.unwrap();
    assert!(answer == message);
    assert_eq!(proxy.bytes(ProxyDirection::ToServer), 1_000_000);
    assert_eq!(proxy.bytes(ProxyDirection::ToClient), 1_000_000);
    eventually(PATIENCE, || async { proxy.connections() == 0 }).await.unwrap();
}

#[tokio::test]
async fn cut_all_ends_what_is_open_and_takes_new_connections() {
    let (proxy, mut client) = start().await;
    round_trip(&mut client, b"before").await;
    proxy.cut_all();
    assert!(is_over(&mut client).await);
    let mut again = TcpStream::connect(proxy.addr()).await.unwrap();
    round_trip(&mut again, b"after").await;
}

#[tokio::test]
async fn refuse_ends_new_connections_only() {
    let (proxy, mut client) = start().await;
    round_trip(&mut client, b"before").await;
    proxy.refuse(true);
    let mut refused = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(is_over(&mut refused).await);
    round_trip(&mut client, b"still open").await;
    proxy.refuse(false);
    let mut taken = TcpStream::connect(proxy.addr()).await.unwrap();
    round_trip(&mut taken, b"after").await;
}

#[tokio::test]
async fn stall_holds_bytes_back_and_loses_none() {
    let (proxy, mut client) = start().await;
    round_trip(&mut client, b"before").await;
    proxy.stall(true);
    client.write_all(b"held").await.unwrap();
    client.shutdown().await.unwrap();
    a_while().await;
    assert_eq!(proxy.connections(), 1);
    assert_eq!(proxy.bytes(ProxyDirection::ToServer), 6);
    assert_eq!(client.try_read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    proxy.stall(false);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"held");
}

#[tokio::test]
async fn cut_after_bytes_is_exact_and_concerns_one_connection() {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    for limit in [0, 1, 7] {
        proxy.cut_after_bytes(ProxyDirection::ToClient, limit);
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        let before = proxy.bytes(ProxyDirection::ToClient);
        let _ = client.write_all(b"0123456789").await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(proxy.bytes(ProxyDirection::ToClient) - before, limit);
        assert!(b"0123456789".starts_with(&answer));
    }
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    round_trip(&mut client, b"0123456789").await;
}
