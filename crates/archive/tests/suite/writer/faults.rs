//! Every call to a destination fails once, in turn, in each way.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use laredo_archive::{Archive, ArtifactKind, Destination, RebaseThresholds, WriterError, WriterOptions};

use crate::scene::{TestTableHistory, begin, changed, compare, local, options};
use crate::writer::faulty_destination::{CallFaultMode, FaultyDestination};

/// Runs a writer twice over 10 transactions, with a base among them. `pace` changes the options for
/// a shorter diff interval.
pub(crate) async fn two_runs(
    place: &Arc<dyn Destination>,
    staging: &Path,
    pace: impl Fn(&mut WriterOptions),
) -> TestTableHistory {
    let mut history = TestTableHistory::new();
    for run in 0..2 {
        let mut options = options(&format!("run {run}"));
        options.thresholds = RebaseThresholds { max_churn_records: Some(12), ..RebaseThresholds::default() };
        options.grace = Duration::from_secs(4);
        options.keep_epochs = Some(3);
        pace(&mut options);
        let writer = begin(options, vec![place.clone()], staging, &history).await.unwrap();
        writer.head(history.position).await;
        for number in 0..5 {
            writer.send_transaction(history.something(run * 5 + number));
            if number % 2 == 0 {
                writer.head(history.position).await;
            }
        }
        writer.stop().await;
    }
    history
}

/// Checks the result of such a run: every boundary has the table's rows, and the last diff was
/// flushed.
pub(crate) async fn is_all_there(place: Arc<dyn Destination>, history: &TestTableHistory) {
    let boundaries = compare(place, history).await;
    assert_eq!(boundaries.last().unwrap().1, history.position.0, "the last diff is flushed");
}

/// Runs a writer on a destination with a failing call. Returns true if there were enough calls for
/// the failure to happen.
async fn scenario(mode: CallFaultMode, fails: usize) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let faulty = FaultyDestination::new(inner.clone(), mode, fails);
    let place: Arc<dyn Destination> = faulty.clone();
    let history = two_runs(&place, &folder.path().join("staging"), |_| {}).await;
    is_all_there(inner, &history).await;
    faulty.has_failed()
}

#[tokio::test(start_paused = true)]
async fn whatever_call_fails_the_archive_is_whole_and_ends_equal() {
    for mode in [CallFaultMode::Before, CallFaultMode::After, CallFaultMode::Halfway, CallFaultMode::Slow] {
        let mut fails = 0;
        while scenario(mode, fails).await {
            fails += 1;
        }
        assert!(fails > 30, "{mode:?}: there were only {fails} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_killed_at_any_call_loses_nothing_and_its_restart_writes_no_base() {
    for calls in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let inner = local(&folder.path().join("archive"));
        let staging = folder.path().join("staging");
        let mut history = TestTableHistory::new();
        let first = begin(options("first"), vec![inner.clone()], &staging, &history).await.unwrap();
        first.head(history.position).await;
        first.stop().await;
        // The writer is killed in a call that never returns.
        let stuck = FaultyDestination::new(inner.clone(), CallFaultMode::Slow, calls);
        let killed = begin(options("killed"), vec![stuck.clone()], &staging, &history);
        let Ok(Ok(killed)) = tokio::time::timeout(Duration::from_secs(20), killed).await else { continue };
        for number in 0..4 {
            killed.send_transaction(history.something(number));
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        killed.kill().await;
        let last = begin(options("last"), vec![inner.clone()], &staging, &history).await.unwrap();
        assert!(last.start.is_some(), "it goes on from the archive");
        last.head(history.position).await;
        last.stop().await;
        let boundaries = compare(inner, &history).await;
        assert!(boundaries.iter().all(|(epoch, _)| *epoch == 1), "{boundaries:?}");
        if !stuck.has_failed() {
            assert!(calls > 10, "there were only {calls} calls");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_cannot_be_written_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let staging = folder.path().join("staging");
    std::fs::write(&staging, "a file, where a folder has to be").unwrap();
    let mut history = TestTableHistory::new();
    let inner = local(&folder.path().join("archive"));
    let writer = begin(options("w"), vec![inner.clone()], &staging, &history).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    let status = writer.handle.status();
    assert!(status.last_error.as_ref().is_some_and(|error| error.contains("staging")), "{status:?}");
    writer.send_transaction(history.something(1));
    std::fs::remove_file(&staging).unwrap();
    writer.head(history.position).await;
    writer.stop().await;
    compare(inner, &history).await;
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_refuses_at_the_start_is_waited_for_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (history, place) = (TestTableHistory::new(), local(&file.join("archive")));
    // A command with a waiting user ends with an error.
    let at_once = changed(options("w"), |options| options.waits_at_start = false);
    let begun = begin(at_once, vec![place.clone()], folder.path(), &history).await;
    let Err(WriterError::Destination(error)) = begun else { panic!("it begins") };
    assert!(error.to_string().contains("must be a folder"), "{error}");
    // A service waits.
    let allowed = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        std::fs::remove_file(&file).unwrap();
    };
    let (begun, ()) = tokio::join!(begin(options("w"), vec![place.clone()], folder.path(), &history), allowed);
    let writer = begun.unwrap();
    let status = writer.handle.status();
    assert!(status.destinations[0].errors > 3 && status.last_error.unwrap().contains("must be a folder"));
    writer.head(history.position).await;
    writer.stop().await;
    compare(place, &history).await;
}

#[tokio::test(start_paused = true)]
async fn other_formats_open_an_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let place = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let formats = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect::<Vec<_>>();
    let (json, both) = (formats(&["jsonl"]), formats(&["protobuf", "jsonl"]));
    let cases = [(&json, &json, 1), (&json, &json, 1), (&json, &both, 2), (&both, &both, 3), (&both, &json, 4)];
    for (number, (snapshot, diff, epoch)) in cases.into_iter().enumerate() {
        let options = changed(options(&format!("w{number}")), |options| {
            (options.snapshot_formats, options.diff_formats) = (snapshot.clone(), diff.clone());
        });
        let writer = begin(options, vec![place.clone()], folder.path(), &history).await.unwrap();
        writer.send_transaction(history.something(number as i32));
        writer.head(history.position).await;
        while writer.handle.status().epoch < epoch {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        writer.stop().await;
        let archive = Archive::open(place.clone(), None).await.unwrap();
        assert_eq!(archive.manifest().epoch, epoch, "{number}");
        for artifact in archive.manifest().chain() {
            let expected = if artifact.kind == ArtifactKind::Snapshot { snapshot } else { diff };
            let mut ids: Vec<&str> = expected.iter().map(|format| format.id()).collect();
            ids.sort_unstable();
            assert!(artifact.formats.keys().map(String::as_str).eq(ids), "{number}: {artifact:?}");
        }
    }
    compare(place, &history).await;
}
