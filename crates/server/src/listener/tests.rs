use std::os::unix::fs::MetadataExt;

use super::*;

fn address(text: &str) -> ListenAddress {
    text.parse().unwrap()
}

#[test]
fn an_address_is_an_ip_a_path_or_all() {
    assert_eq!(address("*"), ListenAddress::All);
    assert_eq!(address("127.0.0.1"), ListenAddress::Ip(IpAddr::from([127, 0, 0, 1])));
    assert_eq!(address("[::1]"), address("::1"));
    assert_eq!(address("unix:/run/laredo/x.sock"), ListenAddress::Unix("/run/laredo/x.sock".into()));
    assert_eq!(address("unix:///run/laredo/x.sock"), address("unix:/run/laredo/x.sock"));
    for text in ["", "localhost", "127.0.0.1:80", "unix:", "unix:x.sock", "unix:/", "10.0.0", "http://10.0.0.1"] {
        assert_eq!(text.parse::<ListenAddress>(), Err(ListenAddressError(text.to_owned())));
    }
    for text in ["*", "127.0.0.1", "::1", "unix:/run/laredo/x.sock"] {
        assert_eq!(address(text).to_string(), text);
    }
}

#[test]
fn only_loopback_and_unix_sockets_are_local() {
    for text in ["127.0.0.1", "127.9.0.1", "::1", "::ffff:127.0.0.1", "unix:/x"] {
        assert!(address(text).is_local(), "{text}");
    }
    for text in ["*", "0.0.0.0", "::", "10.0.0.1", "fe80::1", "::ffff:10.0.0.1"] {
        assert!(!address(text).is_local(), "{text}");
    }
}

#[test]
fn two_listeners_may_share_a_port_only_at_different_addresses() {
    let overlap = |one: &str, other: &str| address(one).overlaps(4001, &address(other), 4001);
    for (one, other) in [("*", "*"), ("*", "127.0.0.1"), ("::", "10.0.0.1"), ("::1", "::1"), ("unix:/x", "unix:/x")] {
        assert!(overlap(one, other) && overlap(other, one), "{one} {other}");
    }
    for (one, other) in [("127.0.0.1", "10.0.0.1"), ("unix:/x", "unix:/y"), ("unix:/x", "*")] {
        assert!(!overlap(one, other) && !overlap(other, one), "{one} {other}");
    }
    assert!(!address("*").overlaps(0, &address("*"), 0), "the kernel chooses two ports");
    assert!(!address("*").overlaps(1, &address("*"), 2));
}

#[tokio::test]
async fn a_unix_socket_is_for_its_user_and_group_and_replaces_a_stale_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.sock");
    let at = ListenAddress::Unix(path.clone());
    // A process that is killed leaves its socket.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = PortListener::bind(&at, 0).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, SOCKET_MODE);
    let second = PortListener::bind(&at, 0).await.unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    let twin = listener.twin().unwrap();
    drop(listener);
    let client = UnixStream::connect(&path).await.unwrap();
    let (_, peer) = twin.accept().await.unwrap();
    assert_eq!(peer, PeerAddress::Unix);
    drop((client, twin));
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    std::fs::write(&path, "rows").unwrap();
    let refused = PortListener::bind(&ListenAddress::Unix(path.clone()), 0).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"rows");
}
