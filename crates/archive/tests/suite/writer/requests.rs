//! Every request to a bucket fails once, in turn, in each way.

use std::time::Duration;

use futures::future::join_all;
use laredo_archive::{FolderDestination, WriterOptions};
use laredo_testkit::is_full;

use crate::scene::{is_whole, local};
use crate::store::{BUCKET, BucketInspection, RequestFault, RequestFaultMode, TestS3Server};
use crate::writer::faults::{is_all_there, two_runs};

/// Shortens the waits, because the test uses the real clock: a paused clock would advance while a
/// task waits for a socket.
fn quick(options: &mut WriterOptions) {
    options.diff_interval = Duration::from_millis(50);
    options.grace = Duration::from_secs(1);
}

/// Runs a writer with a failing request. Returns true if there were enough requests for the failure
/// to happen.
async fn scenario(trouble: RequestFault) -> bool {
    let inspect: BucketInspection =
        Box::new(|bucket| Box::pin(async move { is_whole(&FolderDestination::new(bucket.join("things"))).await }));
    let server = TestS3Server::with(Some(trouble), inspect).await;
    let place = server.bucket().await.place("things");
    let staging = tempfile::tempdir().unwrap();
    let history = two_runs(&place, staging.path(), quick).await;
    is_all_there(local(&server.folder.path().join(BUCKET).join("things")), &history).await;
    server.has_failed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_request_to_a_bucket_fails_the_archive_is_whole_and_ends_equal() {
    let step = if is_full() { 1 } else { 6 };
    let in_each_way = RequestFaultMode::ALL.into_iter().enumerate().map(|(first, how)| {
        tokio::spawn(async move {
            let mut request = first;
            while scenario(RequestFault { how, request }).await {
                request += step;
            }
            assert!(request > 30, "{how:?}: there were only {request} requests");
        })
    });
    join_all(in_each_way).await.into_iter().for_each(|ended| ended.unwrap());
}
