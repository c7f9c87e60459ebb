//! Tests of requests to a client for the checksum of its rows.

use laredo_core::Checksum;

use super::*;
use crate::roster::{CheckId, ChecksumReport, ComparedClient, ComparisonOutcome};

const WAIT: Duration = Duration::from_secs(10);

fn asked(quiet: &IdleServer) -> SessionStream {
    quiet.ask(SyncRequest {
        accept: vec![RowEncoding::PostgresBinary.into()],
        wants_checksums: true,
        answers_checks: true,
        ..SyncRequest::default()
    })
}

async fn begin(quiet: &IdleServer) -> tokio::task::JoinHandle<Vec<ComparedClient>> {
    let roster = quiet.table().roster().clone();
    let round = tokio::spawn(async move { roster.compare(WAIT).await });
    tokio::task::yield_now().await;
    round
}

/// Reads up to a heartbeat with a check. Returns the heartbeat, and the position of the newest
/// batch before it.
async fn read_check(stream: &mut SessionStream) -> (Heartbeat, Option<u64>) {
    let mut newest = None;
    loop {
        for message in pull(stream).await {
            match message {
                Message::Batch(batch) => newest = Some(batch.position),
                Message::Heartbeat(heartbeat) if !heartbeat.check.is_empty() => return (heartbeat, newest),
                _ => {}
            }
        }
    }
}

fn answer(quiet: &IdleServer, heartbeat: &Heartbeat) -> Result<(), Status> {
    quiet.table().roster().answer(ChecksumReport {
        check: CheckId::from_wire(&heartbeat.check).unwrap(),
        position: heartbeat.source_position.parse().unwrap(),
        checksum: Checksum::from_wire(&heartbeat.checksum).unwrap(),
        rows: None,
    })
}

#[tokio::test(start_paused = true)]
async fn a_client_at_the_head_is_asked_at_once_and_once() {
    let quiet = IdleServer::new().await;
    quiet.rows(0..3).await;
    let mut stream = asked(&quiet);
    loop {
        if let [Message::Heartbeat(heartbeat)] = pull(&mut stream).await.as_slice() {
            assert!(heartbeat.check.is_empty() && !heartbeat.checksum.is_empty());
            break;
        }
    }
    assert!(is_silent(&mut stream).await);
    let began = Instant::now();
    let round = begin(&quiet).await;
    let (heartbeat, _) = read_check(&mut stream).await;
    let head = quiet.journal().head();
    assert_eq!(heartbeat.source_position, head.position.to_string());
    assert_eq!(Checksum::from_wire(&heartbeat.checksum).unwrap(), head.checksum);
    assert!(is_silent(&mut stream).await, "it is asked once");
    answer(&quiet, &heartbeat).unwrap();
    let results = round.await.unwrap();
    assert!(matches!(results[..], [ComparedClient { outcome: ComparisonOutcome::Equal { .. }, .. }]), "{results:?}");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_behind_is_asked_when_it_has_everything() {
    let quiet = IdleServer::new().await;
    let mut stream = asked(&quiet);
    // The client has not been sent its snapshot yet, and there will be more rows by then.
    pull(&mut stream).await;
    quiet.rows(0..3).await;
    let round = begin(&quiet).await;
    let (heartbeat, newest) = read_check(&mut stream).await;
    let head = quiet.journal().head();
    assert_eq!((newest, heartbeat.source_position.parse().unwrap()), (Some(head.position.0), head.position));
    assert_eq!(Checksum::from_wire(&heartbeat.checksum).unwrap(), head.checksum);
    answer(&quiet, &heartbeat).unwrap();
    assert!(matches!(round.await.unwrap()[0].outcome, ComparisonOutcome::Equal { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_given_up_in_time() {
    let quiet = IdleServer::new().await;
    let mut stream = asked(&quiet);
    pull(&mut stream).await;
    let began = Instant::now();
    let results = begin(&quiet).await.await.unwrap();
    assert!(matches!(results[0].outcome, ComparisonOutcome::NoAnswer(_)), "{results:?}");
    assert_eq!(began.elapsed(), WAIT);
    drop(stream);
    assert_eq!(begin(&quiet).await.await.unwrap(), [], "it is gone");
}

#[tokio::test(start_paused = true)]
async fn streams_without_checksums_are_named_and_not_asked() {
    let quiet = IdleServer::new().await;
    let mut structs = live(&quiet).await;
    let results = begin(&quiet).await.await.unwrap();
    assert!(
        matches!(results[0].outcome, ComparisonOutcome::NotComparable(reason) if reason.contains("Structs")),
        "{results:?}"
    );
    assert!(is_silent(&mut structs).await);
}
