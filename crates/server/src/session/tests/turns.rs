//! Tests of the turns in which clients are sent their snapshots, and of the speed that they must
//! have.

use super::*;
use crate::access::{
    AccessGrants, AccessOptions, AccessRules, GrantSubjects, IdentityLimits, IdentityOptions, ReaderGrant, TokenHash,
    TokenOptions,
};

/// The number of parts of the table's snapshot. Each row is a frame of its own.
const PARTS: i64 = 40;

/// A server whose first table is a snapshot of many parts.
async fn large_table() -> IdleServer {
    let server = IdleServer::new().await;
    let rows = (0..PARTS).map(|id| SimChange::Insert(id, "x".repeat(300_000))).collect();
    let end = server.database.commit(0, rows);
    let journal = server.journal();
    journal.watch_head().wait_for(|head| head.position >= end).await.unwrap();
    // A base of these rows is made after they are visible.
    journal.fresh_base().await;
    assert_eq!(journal.base().sequence(), journal.head().sequence);
    server
}

fn peer(last: u8) -> PeerInfo {
    let address = PeerAddress::Tcp(([10, 0, 0, last], 1).into());
    PeerInfo { address, has_tls: false, certificates: Arc::new([]) }
}

fn from_peer(server: &IdleServer, last: u8) -> SessionStream {
    server.ask_from(Some(&peer(last)), 0, SyncRequest::default())
}

/// Takes the next messages if there are any without waiting. Returns true if they were the end of
/// the snapshot.
async fn take(stream: &mut SessionStream) -> Option<bool> {
    let polled = poll_fn(|cx| Poll::Ready(stream.poll_next(cx))).await;
    let Poll::Ready(pulled) = polled else { return None };
    let Some(SessionStreamItem::Frames(bytes)) = pulled else { panic!("{pulled:?}") };
    let messages = messages(bytes);
    Some(messages.iter().any(|message| matches!(message, Message::SnapshotEnd(_))))
}

/// Takes what comes until the stream waits for longer than other threads need. Returns true at the
/// snapshot's end.
async fn take_all(stream: &mut SessionStream) -> bool {
    let mut silences = 0;
    while silences < 200 {
        match take(stream).await {
            Some(true) => return true,
            Some(false) => silences = 0,
            None => {
                silences += 1;
                tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
            }
        }
    }
    false
}

/// Starts slow clients, and one that reads all it can. Each slow one takes a part in `pause`.
/// Returns the number of these pauses until the other one has its snapshot.
async fn pauses_until_loaded(peers: impl Iterator<Item = u8>, newcomer: u8, pause: Duration) -> i64 {
    let server = large_table().await;
    let mut slow: Vec<_> = peers.map(|last| from_peer(&server, last)).collect();
    for stream in &mut slow {
        pull(stream).await;
    }
    let mut other = from_peer(&server, newcomer);
    for round in 0..PARTS {
        if take_all(&mut other).await {
            return round;
        }
        advance(pause).await;
        server.shared.sweep(Instant::now());
        for stream in &mut slow {
            // A client that takes a part and no more.
            for _ in 0..20 {
                if take(stream).await.is_some() {
                    break;
                }
                tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
            }
        }
    }
    PARTS
}

#[tokio::test(start_paused = true)]
async fn sixteen_slow_readers_do_not_keep_a_newcomer_from_loading() {
    let slowly = Duration::from_millis(900);
    let elsewhere = pauses_until_loaded([1; 16].into_iter(), 2, slowly).await;
    assert!(elsewhere <= 3, "from another address: {elsewhere}");
    let same = pauses_until_loaded([1; 16].into_iter(), 1, slowly).await;
    assert!(same <= 3, "from the same address: {same}");
    let crowd = pauses_until_loaded([1; 60].into_iter(), 2, slowly).await;
    assert!(crowd <= 3, "and others of that address wait in front: {crowd}");
}

#[tokio::test(start_paused = true)]
async fn a_turn_ends_after_a_second_if_others_wait() {
    // Clients that take each part at once lose no permit for being slow, but their turn ends.
    let quick = pauses_until_loaded([1; 16].into_iter(), 2, Duration::from_millis(200)).await;
    assert!((1..=7).contains(&quick), "{quick}");
}

/// Returns true if a client that was sent the handshake is now sent nothing but heartbeats.
async fn is_waiting(stream: &mut SessionStream) -> bool {
    loop {
        match poll_fn(|cx| Poll::Ready(stream.poll_next(cx))).await {
            Poll::Pending => return true,
            Poll::Ready(Some(SessionStreamItem::Frames(bytes))) => {
                let messages = messages(bytes);
                if !messages.iter().all(|message| matches!(message, Message::Heartbeat(_))) {
                    return false;
                }
            }
            Poll::Ready(ended) => panic!("{ended:?}"),
        }
    }
}

/// Waits for the beginning of a snapshot. A base may have to be made first.
async fn begin(stream: &mut SessionStream) {
    loop {
        match pull(stream).await.as_slice() {
            [Message::Handshake(_)] | [Message::Heartbeat(_)] => {}
            first => return assert!(begins(first), "{first:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_permit_goes_to_the_smallest_share() {
    let server = large_table().await;
    let waiting = |stream: &[Message]| matches!(stream, [Message::Handshake(_)]);
    let mut granted: Vec<_> = (0..16).map(|n| from_peer(&server, if n < 15 { 1 } else { 2 })).collect();
    for stream in &mut granted {
        begin(stream).await;
    }
    // In the order in which they come: the first address, the second one, the second one for
    // another table, and a third address.
    let mut queue = vec![from_peer(&server, 1), from_peer(&server, 2)];
    queue.push(server.ask_from(Some(&peer(2)), 1, SyncRequest::default()));
    queue.push(from_peer(&server, 3));
    for stream in &mut queue {
        assert!(waiting(&pull(stream).await));
    }
    for expected in [3, 2, 1, 0] {
        for (number, stream) in queue.iter_mut().enumerate().filter(|(number, _)| *number <= expected) {
            assert!(is_waiting(stream).await, "{number} is served before {expected}");
        }
        drop(granted.remove(0));
        begin(&mut queue[expected]).await;
    }
}

/// Takes a part of the snapshot after each pause. Returns the status of a client that is cut.
async fn cut_of(pause: Duration) -> Option<Status> {
    let server = large_table().await;
    let mut stream = from_peer(&server, 1);
    pull(&mut stream).await;
    for _ in 0..PARTS / 2 {
        match poll_fn(|cx| stream.poll_next(cx)).await.unwrap() {
            SessionStreamItem::Frames(_) => {}
            SessionStreamItem::End(status) => return Some(status),
        }
        advance(pause).await;
        server.shared.sweep(Instant::now());
    }
    assert_eq!(server.table().clients(), 1);
    None
}

#[tokio::test(start_paused = true)]
async fn who_reads_a_snapshot_below_the_lowest_speed_is_cut() {
    // Parts of 300 kB: 6 kB/s, 10 kB/s, 20 kB/s, 60 kB/s.
    for (pause, is_cut) in [(50, true), (30, true), (15, false), (5, false)] {
        let cut = cut_of(Duration::from_secs(pause)).await;
        assert_eq!(cut.is_some(), is_cut, "a part in {pause} s: {cut:?}");
        if let Some(status) = cut {
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.message().contains("less than 16 KiB a second"), "{status:?}");
        }
    }
}

/// Returns a caller of an identity that may be sent one part of the snapshot in a second.
fn paced_caller() -> Caller {
    let limits = IdentityLimits { snapshot_bytes_per_second: Some(300_000), ..IdentityLimits::default() };
    let identity = IdentityOptions {
        name: "a".to_owned(),
        tokens: vec![TokenOptions { hash: TokenHash::of("a"), expires_at: None }],
        limits,
        ..IdentityOptions::default()
    };
    let grant = ReaderGrant {
        subjects: GrantSubjects { identities: vec!["a".to_owned()], ..GrantSubjects::default() },
        tables: vec!["public.*".parse().unwrap()],
        rows: Vec::new(),
        hidden_columns: Vec::new(),
        masked_columns: Vec::new(),
    };
    let grants = AccessGrants { readers: vec![grant], ..AccessGrants::default() };
    let options = AccessOptions { identities: vec![identity], grants, ..AccessOptions::default() };
    let rules = AccessRules::new(options, Arc::new(|| CommitTime(0)));
    let headers = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, "Bearer a".parse().unwrap())]);
    rules.admit("/laredo.replication.v1.LaredoReplicationService/Sync", &headers, None).unwrap()
}

/// Takes what comes until the streams wait for longer than other threads need. Returns the number
/// of rows.
async fn take_rows(streams: &mut [SessionStream]) -> usize {
    let (mut rows, mut silences) = (0, 0);
    while silences < 200 {
        silences += 1;
        for stream in &mut *streams {
            let polled = poll_fn(|cx| Poll::Ready(stream.poll_next(cx))).await;
            let Poll::Ready(pulled) = polled else { continue };
            let Some(SessionStreamItem::Frames(bytes)) = pulled else { panic!("{pulled:?}") };
            rows += messages(bytes).iter().filter(|message| matches!(message, Message::SnapshotRow(_))).count();
            silences = 0;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
    }
    rows
}

#[tokio::test(start_paused = true)]
async fn streams_of_an_identity_share_its_rate_at_once_and_one_after_another() {
    let server = large_table().await;
    let caller = paced_caller();
    let begin = || {
        let session = server.session(None, 0, SyncRequest::default());
        Session { caller: caller.clone(), ..session }.into_stream()
    };
    let mut streams: Vec<_> = (0..5).map(|_| begin()).collect();
    let mut rows = take_rows(&mut streams).await;
    assert_eq!(rows, 1, "all streams begin at once");
    for second in 1..=3 {
        advance(Duration::from_millis(1010)).await;
        rows += take_rows(&mut streams).await;
        assert_eq!(rows, 1 + second);
    }
    drop(streams);
    // Each new stream finds what the others were sent.
    for _ in 0..3 {
        assert_eq!(take_rows(&mut [begin()]).await, 0);
    }
}
