//! New bases, new epochs, and the removal of old ones.

use std::sync::atomic::Ordering;
use std::time::Duration;

use laredo_archive::{
    Archive, ArchivePoint, ArchiveReadError, ArtifactKind, FeedUpdate, ReadProgress, RebaseThresholds,
    SnapshotRequestError, WriterPhase,
};
use laredo_core::{Change, DefinitionVersion, Lsn, SourceIdentity, StateError, Transaction};

use crate::scene::{TABLE, TestTableHistory, begin, changed, compare, local, options, restart, row, schema};

#[tokio::test(start_paused = true)]
async fn a_restart_continues_with_a_diff() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    for run in 0..3 {
        let writer = begin(options(&format!("run {run}")), vec![inner.clone()], folder.path(), &history).await.unwrap();
        assert_eq!(writer.start.is_some(), run > 0);
        for number in 0..3 {
            writer.send_transaction(history.something(run * 3 + number));
        }
        // The writer is stopped without waiting. It flushes what it has received, and the rest is
        // sent again.
        tokio::time::sleep(Duration::from_millis(300)).await;
        writer.stop().await;
    }
    let boundaries = compare(inner, &history).await;
    assert_eq!(boundaries.last().unwrap(), &(1, history.position.0));
}

#[tokio::test(start_paused = true)]
async fn a_base_is_written_on_request_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let writer = begin(options("w"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    writer.send_transaction(history.something(1));
    tokio::time::sleep(Duration::from_millis(600)).await;
    let (one, two) = tokio::join!(writer.handle.snapshot(), writer.handle.snapshot());
    let written = one.unwrap();
    assert_eq!((written.kind, written.epoch, written.to_position), (ArtifactKind::Snapshot, 2, history.position));
    assert_eq!(written.count, history.table.len() as u64);
    assert!(two.is_ok(), "who asks at the same time gets one, too");
    let handle = writer.handle.clone();
    writer.stop().await;
    assert_eq!(handle.status().phase, WriterPhase::Stopped);
    assert_eq!(handle.snapshot().await, Err(SnapshotRequestError::Ended));
    compare(inner, &history).await;
}

#[tokio::test(start_paused = true)]
async fn a_table_with_another_key_than_was_asked_for_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let history = TestTableHistory::new();
    let by = |column: &str| changed(options(column), |options| options.key = vec![column.to_owned()]);
    let [one, other] = ["one", "other"].map(|name| local(&folder.path().join(name)));
    let writer = begin(by("id"), vec![one.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    writer.stop().await;
    // The writer neither continues the existing archive nor begins a new one.
    for place in [one, other.clone()] {
        let writer = begin(by("body"), vec![place], folder.path(), &history).await.unwrap();
        let ended = writer.ended().await.unwrap_err();
        assert!(ended.to_string().contains("is id, but `key_fields` names body"), "{ended}");
    }
    assert_eq!(other.list().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_threshold_that_is_reached_opens_an_epoch() {
    let cases = [
        RebaseThresholds { max_churn_records: Some(2), ..RebaseThresholds::default() },
        RebaseThresholds { max_churn_fraction: Some(0.1), ..RebaseThresholds::default() },
        RebaseThresholds { max_diff_bytes: Some(200), ..RebaseThresholds::default() },
        RebaseThresholds { max_diff_fraction: Some(0.2), ..RebaseThresholds::default() },
        RebaseThresholds { max_interval: Some(Duration::from_secs(3)), ..RebaseThresholds::default() },
    ];
    for thresholds in cases {
        let folder = tempfile::tempdir().unwrap();
        let inner = local(&folder.path().join("archive"));
        let mut history = TestTableHistory::new();
        let mut options = options("w");
        options.thresholds = thresholds.clone();
        let writer = begin(options, vec![inner.clone()], folder.path(), &history).await.unwrap();
        writer.head(history.position).await;
        for number in [1, 6, 11] {
            writer.send_transaction(history.something(number));
            writer.head(history.position).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        writer.stop().await;
        let boundaries = compare(inner, &history).await;
        assert!(boundaries.last().unwrap().0 > 1, "{thresholds:?}: {boundaries:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_schema_opens_an_epoch_and_the_old_one_is_read_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let writer = begin(options("w"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    writer.send_transaction(history.something(1));
    let before = history.position;
    let wider = vec![Change::Insert(row(77, "old")), Change::Schema(schema(&["id", "body", "note"]))];
    writer.send_transaction(history.commit(wider));
    let position = history.position;
    writer.head(position).await;
    let narrower = history.commit(vec![Change::Schema(schema(&["id", "note"]))]);
    writer.send_transaction(narrower);
    writer.head(history.position).await;
    writer.stop().await;
    let boundaries = compare(inner.clone(), &history).await;
    let expected = [(1, 0x100), (1, before.0), (2, position.0), (3, history.position.0)];
    assert_eq!(boundaries, expected, "the epoch is closed with a diff");
    let writer = begin(options("again"), vec![inner], folder.path(), &history).await.unwrap();
    assert_eq!(writer.start.as_ref().unwrap().schema, schema(&["id", "note"]));
    writer.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_manifest_names_the_definition_of_the_rows_at_head() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let named = async || {
        let archive = Archive::open(inner.clone(), Some(TABLE)).await.unwrap();
        archive.manifest().definition.unwrap_or_default().0
    };
    let mut history = TestTableHistory::new();
    let writer = begin(options("one"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    assert_eq!(named().await, 0, "an archive of a server that knows none, or of an earlier version");
    // The definition changes inside an epoch, and together with a new one.
    writer.definition.store(7, Ordering::SeqCst);
    writer.send_transaction(history.something(1));
    writer.head(history.position).await;
    assert_eq!(named().await, 7);
    writer.definition.store(8, Ordering::SeqCst);
    writer.send_transaction(history.commit(vec![Change::Schema(schema(&["id", "body", "note"]))]));
    writer.head(history.position).await;
    assert_eq!(named().await, 8);
    writer.kill().await;
    let writer = begin(options("two"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    assert_eq!(writer.start.as_ref().unwrap().definition, DefinitionVersion(8));
    // A definition of later rows is not written for the rows at the head.
    writer.definition.store(9, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(named().await, 8);
    writer.send_transaction(history.something(2));
    writer.head(history.position).await;
    assert_eq!(named().await, 9);
    writer.stop().await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_are_sent_again_open_an_epoch_and_nothing_before_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let writer = begin(options("w"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    writer.send_transaction(history.something(1));
    let flushed = history.position;
    history.something(2);
    history.all().into_iter().for_each(|update| writer.updates.send(update).unwrap());
    writer.head(history.position).await;
    writer.stop().await;
    assert_eq!(compare(inner, &history).await, [(1, 0x100), (1, flushed.0), (2, history.position.0)]);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let mut writer = begin(options("w"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    let mut wrong = history.something(1);
    wrong.changes = vec![Change::Insert(row(1, "is there already"))];
    writer.send_transaction(wrong);
    assert_eq!(writer.restarts.recv().await, Some(StateError::KeyExists));
    assert_eq!(writer.handle.snapshot().await, Err(SnapshotRequestError::NoRows));
    history.all().into_iter().for_each(|update| writer.updates.send(update).unwrap());
    writer.head(history.position).await;
    writer.stop().await;
    assert_eq!(compare(inner, &history).await, [(1, 0x100), (2, history.position.0)]);
}

#[tokio::test(start_paused = true)]
async fn another_object_in_the_way_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let writer = begin(options("w"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    let transaction = history.something(1);
    let places = ["epoch=1/diff-0_100-0_110.jsonl", "epoch=2/snapshot-0_110.jsonl"];
    for place in places {
        let path = folder.path().join("archive").join(place);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "somebody's\n").unwrap();
    }
    writer.send_transaction(transaction);
    writer.head(history.position).await;
    writer.stop().await;
    assert_eq!(compare(inner, &history).await, [(1, 0x100), (3, history.position.0)]);
    for place in places {
        assert_eq!(std::fs::read_to_string(folder.path().join("archive").join(place)).unwrap(), "somebody's\n");
    }
}

#[tokio::test(start_paused = true)]
async fn old_epochs_go_and_their_objects_after_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let mut options = options("w");
    (options.keep_epochs, options.grace) = (Some(2), Duration::from_secs(100));
    let writer = begin(options, vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    for number in 0..3 {
        writer.send_transaction(history.something(number));
        writer.head(history.position).await;
        writer.handle.snapshot().await.unwrap();
    }
    let archive = Archive::open(inner.clone(), Some(TABLE)).await.unwrap();
    let epochs: Vec<u64> = archive.manifest().artifacts.iter().map(|artifact| artifact.epoch).collect();
    assert!(epochs.iter().all(|epoch| *epoch >= 3), "{epochs:?}");
    let first = folder.path().join("archive/epoch=1");
    assert!(first.exists(), "whoever reads an older manifest can finish");
    let mut waited = 0;
    while first.exists() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        waited += 1;
    }
    assert!(waited >= 99, "gone after {waited} s already");
    writer.stop().await;
    compare(inner, &history).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_is_a_boundary_or_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let writer = begin(options("w"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    writer.send_transaction(history.something(1));
    writer.head(history.position).await;
    writer.stop().await;
    let archive = Archive::open(inner, None).await.unwrap();
    let progress = ReadProgress::default();
    let rebuilt = archive.rebuild(ArchivePoint::Position(Lsn(0x10F)), &progress).await.unwrap();
    assert_eq!(rebuilt.boundary.position, Some(Lsn(0x100)));
    assert_eq!(progress.bytes(), rebuilt.boundary.bytes);
    assert!(matches!(archive.boundary(ArchivePoint::Position(Lsn(0xFF))), Err(ArchiveReadError::TooEarly { .. })));
    assert!(matches!(archive.exactly(Lsn(0x10F)), Err(ArchiveReadError::NotExact { .. })));
    assert_eq!(archive.exactly(history.position).unwrap().artifacts, 2);
    let day = std::time::SystemTime::now() - Duration::from_secs(86_400);
    assert!(matches!(archive.boundary(ArchivePoint::Time(day)), Err(ArchiveReadError::TooEarly { .. })));
    let now = archive.boundary(ArchivePoint::Time(std::time::SystemTime::now())).unwrap();
    assert_eq!(now.position, Some(history.position));
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_ends_ends_the_writer_and_the_archive_stays() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let history = TestTableHistory::new();
    let writer = begin(options("w"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    writer.updates.send(FeedUpdate::Ended { reason: "over".to_owned() }).unwrap();
    assert!(writer.ended().await.unwrap_err().to_string().contains("over"));
    compare(inner, &history).await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_are_older_than_the_head_are_not_shown_before_they_are_as_new() {
    show_older_rows_once_they_are_as_new(|history| [1, 6, 11].map(|number| history.something(number))).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_schema_does_not_show_rows_that_are_older_than_the_head() {
    show_older_rows_once_they_are_as_new(|history| {
        let renamed = vec![Change::Schema(schema(&["id", "text"]))];
        [history.something(1), history.commit(renamed), history.something(11)]
    })
    .await;
}

/// Sends the rows from before some transactions again, and then these transactions one by one.
async fn show_older_rows_once_they_are_as_new(commit: impl FnOnce(&mut TestTableHistory) -> [Transaction; 3]) {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let source = Some(SourceIdentity { system_identifier: "7".to_owned(), ..SourceIdentity::default() });
    let rows = |history: &TestTableHistory| FeedUpdate::State {
        table: Box::new(history.table.clone()),
        position: history.position,
        source: source.clone(),
    };
    let writer = begin(options("w"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.updates.send(rows(&history)).unwrap();
    writer.head(history.position).await;
    let old = rows(&history);
    let transactions = commit(&mut history);
    transactions.iter().for_each(|transaction| writer.send_transaction(transaction.clone()));
    writer.head(history.position).await;
    let epoch = writer.handle.status().epoch;
    writer.updates.send(restart(Lsn(u64::MAX))).unwrap();
    writer.updates.send(old).unwrap();
    for transaction in transactions {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(writer.handle.status().head_position, Some(history.position), "it never goes back");
        writer.send_transaction(transaction);
    }
    while writer.handle.status().epoch == epoch {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(writer.handle.status().head_position, Some(history.position));
    writer.stop().await;
    compare(inner, &history).await;
}
