use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;
use crate::SinkError;
use crate::layout::ArtifactKind;

/// A sink that fails the first `fails` times and records the events after that.
#[derive(Debug, Default)]
struct FlakySink {
    fails: AtomicU64,
    hangs: bool,
    got: Arc<Mutex<Vec<u64>>>,
}

impl EventSink for FlakySink {
    fn name(&self) -> &'static str {
        "flaky"
    }

    fn send<'a>(&'a self, event: &'a ArtifactEvent) -> BoxFuture<'a, Result<(), SinkError>> {
        async move {
            if self.hangs {
                return std::future::pending().await;
            }
            let fails = self.fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |fails| fails.checked_sub(1));
            if fails.is_ok() {
                return Err(SinkError { to: "flaky".to_owned(), reason: "not yet".to_owned() });
            }
            self.got.lock().push(event.epoch);
            Ok(())
        }
        .boxed()
    }
}

fn event(epoch: u64) -> ArtifactEvent {
    ArtifactEvent {
        table: "public.users".to_owned(),
        kind: ArtifactKind::Diff,
        epoch,
        from_position: Some("0/1".to_owned()),
        to_position: "0/2".to_owned(),
        head_position: "0/2".to_owned(),
        manifest_uri: "file:///a/manifest.json".to_owned(),
        formats: BTreeMap::new(),
        created_at: "2026-01-01T00:00:00Z".to_owned(),
    }
}

fn counts(sent: u64, failed: u64, dropped: u64, waiting: u64) -> SinkCounts {
    SinkCounts { sink: "flaky".to_owned(), sent, failed, dropped, waiting }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_at_first_gets_all_in_their_order() {
    let sink = FlakySink { fails: AtomicU64::new(5), ..FlakySink::default() };
    let got = sink.got.clone();
    let (publisher, publishing) = EventPublisher::new(vec![Box::new(sink)], PublisherOptions::default());
    (1..=3).for_each(|epoch| publisher.publish(event(epoch)));
    assert_eq!(publisher.counts(), [counts(0, 0, 0, 3)]);
    let begun = tokio::time::Instant::now();
    publishing.run(tokio::time::sleep(Duration::from_secs(60))).await;
    assert_eq!(*got.lock(), [1, 2, 3]);
    assert_eq!(publisher.counts(), [counts(3, 5, 0, 0)]);
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn one_sink_that_hangs_holds_up_no_other_and_is_given_up_at_the_end() {
    let (hangs, works) = (FlakySink { hangs: true, ..FlakySink::default() }, FlakySink::default());
    let got = works.got.clone();
    let (publisher, publishing) =
        EventPublisher::new(vec![Box::new(hangs), Box::new(works)], PublisherOptions::default());
    let (end, ended) = oneshot::channel::<()>();
    let run = tokio::spawn(publishing.run(ended.map(drop)));
    publisher.publish(event(1));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*got.lock(), [1]);
    publisher.publish(event(2));
    drop(end);
    let begun = tokio::time::Instant::now();
    run.await.unwrap();
    assert_eq!(begun.elapsed(), PublisherOptions::default().drain);
    assert_eq!(*got.lock(), [1, 2]);
    assert_eq!(publisher.counts(), [counts(0, 0, 2, 0), counts(2, 0, 0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_the_oldest_is_dropped_and_it_may_be_the_one_that_never_goes() {
    let sink = FlakySink { fails: AtomicU64::new(1), ..FlakySink::default() };
    let got = sink.got.clone();
    let options = PublisherOptions { queue_events_max: 2, ..PublisherOptions::default() };
    let (publisher, publishing) = EventPublisher::new(vec![Box::new(sink)], options);
    let run = tokio::spawn(publishing.run(tokio::time::sleep(Duration::from_secs(60))));
    publisher.publish(event(1));
    tokio::time::sleep(Duration::from_millis(1)).await;
    // The first event has failed and waits for its retry. Two more events cause it to be dropped.
    publisher.publish(event(2));
    publisher.publish(event(3));
    assert_eq!(publisher.counts(), [counts(0, 1, 1, 2)]);
    run.await.unwrap();
    assert_eq!(*got.lock(), [2, 3]);
    assert_eq!(publisher.counts(), [counts(2, 1, 1, 0)]);
}

#[tokio::test(start_paused = true)]
async fn who_rests_is_woken_by_the_end() {
    let sink = FlakySink { fails: AtomicU64::new(12), ..FlakySink::default() };
    let (publisher, publishing) = EventPublisher::new(vec![Box::new(sink)], PublisherOptions::default());
    publisher.publish(event(1));
    // By now each delay is about a minute.
    let end = Duration::from_secs(170);
    publishing.run(tokio::time::sleep(end)).await;
    let [counts] = publisher.counts().try_into().unwrap();
    assert_eq!((counts.sent, counts.dropped), (1, 0), "{counts:?}");
}
