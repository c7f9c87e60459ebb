//! Older epochs leave the manifest, and nothing else changes.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use laredo_archive::{
    Archive, ArchivePoint, Destination, MANIFEST_NUMBER_MAX, Manifest, ReadProgress, RebaseThresholds, WriterOptions,
};
use laredo_core::Transaction;

use crate::scene::{TABLE, TestTableHistory, begin, changed, compare, is_whole, local, options, sorted};
use crate::writer::faults::two_runs;
use crate::writer::faulty_destination::{CallFaultMode, FaultyDestination};

/// Returns options with which an epoch has a base and two diffs.
fn short_chains(id: &str) -> WriterOptions {
    let thresholds = RebaseThresholds { max_diffs: Some(2), ..RebaseThresholds::default() };
    changed(options(id), |options| options.thresholds = thresholds)
}

/// Runs a writer over `count` transactions, each of which becomes an artifact.
async fn run(
    options: WriterOptions,
    places: &[Arc<dyn Destination>],
    staging: &Path,
    history: &mut TestTableHistory,
    count: i32,
) {
    let writer = begin(options, places.to_vec(), staging, history).await.unwrap();
    writer.head(history.position).await;
    for _ in 0..count {
        writer.send_transaction(something(history));
        writer.head(history.position).await;
    }
    writer.stop().await;
}

/// Commits the next transaction of the history.
fn something(history: &mut TestTableHistory) -> Transaction {
    let number = (history.position.0 - 0x100) / 0x10;
    history.something(number as i32)
}

async fn named(place: &Arc<dyn Destination>) -> Manifest {
    Manifest::parse(&place.manifest().await.unwrap().unwrap().bytes, Some(TABLE)).unwrap()
}

fn epochs(manifest: &Manifest) -> Vec<u64> {
    manifest.artifacts.iter().map(|artifact| artifact.epoch).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Returns the objects that neither the manifest nor a sealed manifest names.
async fn unnamed(place: &Arc<dyn Destination>) -> BTreeSet<String> {
    let archive = Archive::open(place.clone(), Some(TABLE)).await.unwrap();
    let mut there: BTreeSet<String> = place.list().await.unwrap().into_iter().map(|listed| listed.object).collect();
    for artifact in &archive.manifest().artifacts {
        artifact.known_formats().for_each(|format| assert!(there.remove(&artifact.object(format).unwrap())));
    }
    if let Some(link) = &named(place).await.sealed {
        assert!(there.remove(&link.object().unwrap()));
    }
    there
}

#[tokio::test(start_paused = true)]
async fn older_epochs_are_sealed_and_read_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let place = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    for id in ["one", "two"] {
        run(short_chains(id), std::slice::from_ref(&place), folder.path(), &mut history, 10).await;
    }
    is_whole(&*place).await.unwrap();
    let boundaries = compare(place.clone(), &history).await;
    assert_eq!(boundaries.len(), 21, "{boundaries:?}");
    assert_eq!(boundaries.last().unwrap(), &(7, history.position.0), "a restart continues the chain");
    // A reader that does not support sealed manifests sees a shorter archive.
    let manifest = named(&place).await;
    assert_eq!(epochs(&manifest), [6, 7]);
    manifest.check().unwrap();
    let text = String::from_utf8(place.manifest().await.unwrap().unwrap().bytes).unwrap();
    let mut older: serde_json::Value = serde_json::from_str(&text).unwrap();
    older.as_object_mut().unwrap().remove("sealed").unwrap();
    let elsewhere = local(&folder.path().join("archive"));
    elsewhere.publish(older.to_string().as_bytes(), Some(&place.manifest().await.unwrap().unwrap().tag)).await.unwrap();
    assert_eq!(compare(elsewhere, &history).await, boundaries[15..]);
}

#[tokio::test(start_paused = true)]
async fn the_newest_state_needs_no_sealed_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let place = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    run(short_chains("w"), std::slice::from_ref(&place), folder.path(), &mut history, 12).await;
    let sealed = named(&place).await.sealed.unwrap().object().unwrap();
    let damaged = folder.path().join("archive").join(&sealed);
    std::fs::write(&damaged, "{}").unwrap();
    let archive = Archive::open_newest(place.clone(), Some(TABLE)).await.unwrap();
    let rebuilt = archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await.unwrap();
    assert_eq!(sorted(&rebuilt.table), history.states[&history.position]);
    let error = Archive::open(place.clone(), Some(TABLE)).await.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains(&sealed), "{error}");
    std::fs::remove_file(&damaged).unwrap();
    let error = Archive::open(place.clone(), Some(TABLE)).await.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains(&sealed), "{error}");
    // The writer still continues.
    run(short_chains("again"), std::slice::from_ref(&place), folder.path(), &mut history, 12).await;
    assert_eq!(named(&place).await.head_position, Some(history.position));
}

#[tokio::test(start_paused = true)]
async fn a_sealed_epoch_that_no_other_may_follow_is_refused() {
    for epoch in [u64::MAX, u64::MAX - 1, MANIFEST_NUMBER_MAX + 1] {
        let folder = tempfile::tempdir().unwrap();
        let place = local(&folder.path().join("archive"));
        let mut history = TestTableHistory::new();
        run(short_chains("w"), std::slice::from_ref(&place), folder.path(), &mut history, 12).await;
        let there = place.manifest().await.unwrap().unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&there.bytes).unwrap();
        manifest["sealed"]["last_epoch"] = epoch.into();
        place.publish(manifest.to_string().as_bytes(), Some(&there.tag)).await.unwrap();
        let words = format!("its sealed epoch {epoch} is larger than");
        let error = Archive::open(place.clone(), Some(TABLE)).await.unwrap_err();
        assert!(error.is_damage() && error.to_string().contains(&words), "{error}");
        let error = begin(short_chains("again"), vec![place], folder.path(), &history).await.err().unwrap();
        assert!(error.to_string().contains(&words), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_chain_is_sealed_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let place = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let thresholds = RebaseThresholds { max_diffs: Some(1000), ..RebaseThresholds::default() };
    let long = changed(options("w"), |options| (options.manifest_epochs, options.thresholds) = (8, thresholds));
    let writer = begin(long, vec![place.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    for number in 0..130 {
        writer.send_transaction(history.something(number * 5 + 1));
        writer.head(history.position).await;
    }
    assert_eq!((writer.handle.status().progress.diffs, named(&place).await.sealed), (130, None));
    writer.handle.snapshot().await.unwrap();
    assert_eq!(epochs(&named(&place).await), [2], "an epoch of 131 artifacts is not written again with each artifact");
    assert!(writer.handle.status().manifest_bytes < 5000);
    writer.stop().await;
    assert_eq!(compare(place, &history).await.len(), 132);
}

#[tokio::test(start_paused = true)]
async fn retention_counts_sealed_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let place = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let keep = |id: &str| {
        changed(short_chains(id), |options| (options.keep_epochs, options.grace) = (Some(5), Duration::from_secs(100)))
    };
    run(keep("one"), std::slice::from_ref(&place), folder.path(), &mut history, 20).await;
    run(keep("two"), std::slice::from_ref(&place), folder.path(), &mut history, 9).await;
    let newest = named(&place).await.epoch;
    let boundaries = compare(place.clone(), &history).await;
    let kept: BTreeSet<u64> = boundaries.iter().map(|(epoch, _)| *epoch).collect();
    assert_eq!(kept, (newest - 4..=newest).collect());
    assert!(!unnamed(&place).await.is_empty());
    let writer = begin(keep("three"), vec![place.clone()], folder.path(), &history).await.unwrap();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        is_whole(&*place).await.unwrap();
    }
    writer.stop().await;
    assert_eq!(unnamed(&place).await, BTreeSet::new());
    assert_eq!(compare(place.clone(), &history).await, boundaries);
    // Keep fewer epochs than the manifest names.
    let few = changed(keep("four"), |options| options.keep_epochs = Some(1));
    run(few, std::slice::from_ref(&place), folder.path(), &mut history, 4).await;
    let manifest = named(&place).await;
    assert_eq!((manifest.sealed.clone(), manifest.oldest_epoch, epochs(&manifest).len()), (None, None, 1));
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_in_a_sealed_epoch_is_collected() {
    let folder = tempfile::tempdir().unwrap();
    let place = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    run(short_chains("one"), std::slice::from_ref(&place), folder.path(), &mut history, 12).await;
    for orphan in ["epoch=1/diff-0_100-0_101.jsonl", "epoch=2/snapshot-0_1.jsonl", "epoch=2/sealed-1-2-00.json"] {
        std::fs::write(folder.path().join("archive").join(orphan), "left").unwrap();
    }
    let left = unnamed(&place).await;
    assert!(left.len() > 3, "sealed manifests that were replaced, too: {left:?}");
    let grace = changed(short_chains("two"), |options| options.grace = Duration::from_secs(100));
    let writer = begin(grace, vec![place.clone()], folder.path(), &history).await.unwrap();
    tokio::time::sleep(Duration::from_secs(80)).await;
    assert_eq!(unnamed(&place).await, left);
    tokio::time::sleep(Duration::from_secs(80)).await;
    assert_eq!(unnamed(&place).await, BTreeSet::new());
    writer.stop().await;
    compare(place, &history).await;
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_new_or_was_away_gets_sealed_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| local(&folder.path().join(name)));
    let mut history = TestTableHistory::new();
    run(short_chains("a"), std::slice::from_ref(&one), folder.path(), &mut history, 12).await;
    let both = [one.clone(), two.clone()];
    run(short_chains("b"), &both, folder.path(), &mut history, 1).await;
    assert_eq!(compare(one.clone(), &history).await, compare(two.clone(), &history).await);
    // The second destination is missing while several epochs are sealed.
    run(short_chains("c"), std::slice::from_ref(&one), folder.path(), &mut history, 12).await;
    run(short_chains("d"), &both, folder.path(), &mut history, 5).await;
    assert_eq!(compare(one.clone(), &history).await, compare(two.clone(), &history).await);
    is_whole(&*two).await.unwrap();
    let shas = [named(&one).await, named(&two).await].map(|manifest| manifest.sealed.unwrap().sha256);
    assert_eq!(shas[0], shas[1], "a sealed manifest is the same object everywhere");
}

#[tokio::test(start_paused = true)]
async fn whatever_call_fails_while_epochs_are_sealed_the_archive_is_whole() {
    for mode in [CallFaultMode::Before, CallFaultMode::After, CallFaultMode::Halfway, CallFaultMode::Slow] {
        for fails in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let inner = local(&folder.path().join("archive"));
            let faulty = FaultyDestination::new(inner.clone(), mode, fails);
            let place: Arc<dyn Destination> = faulty.clone();
            let sealing = |options: &mut WriterOptions| {
                options.thresholds = RebaseThresholds { max_diffs: Some(1), ..RebaseThresholds::default() };
                (options.manifest_epochs, options.keep_epochs) = (1, Some(4));
            };
            let history = two_runs(&place, &folder.path().join("staging"), sealing).await;
            let boundaries = compare(inner, &history).await;
            assert_eq!(boundaries.last().unwrap().1, history.position.0);
            if !faulty.has_failed() {
                assert!(fails > 40, "{mode:?}: there were only {fails} calls");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_killed_at_any_call_of_sealing_loses_nothing() {
    for calls in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let inner = local(&folder.path().join("archive"));
        let staging = folder.path().join("staging");
        let mut history = TestTableHistory::new();
        let sealing = |id: &str| {
            changed(short_chains(id), |options| (options.manifest_epochs, options.grace) = (1, Duration::from_secs(50)))
        };
        run(sealing("first"), std::slice::from_ref(&inner), &staging, &mut history, 4).await;
        // The writer is killed in a call that never returns.
        let stuck = FaultyDestination::new(inner.clone(), CallFaultMode::Slow, calls);
        let killed = begin(sealing("killed"), vec![stuck.clone()], &staging, &history);
        let Ok(Ok(killed)) = tokio::time::timeout(Duration::from_secs(20), killed).await else { continue };
        for _ in 0..6 {
            killed.send_transaction(something(&mut history));
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        killed.kill().await;
        is_whole(&*inner).await.unwrap();
        let last = begin(sealing("last"), vec![inner.clone()], &staging, &history).await.unwrap();
        assert!(last.start.is_some(), "it continues from the archive");
        for _ in 6..10 {
            last.head(history.position).await;
            last.send_transaction(something(&mut history));
        }
        last.head(history.position).await;
        // A call of the killed writer may take effect a minute later.
        tokio::time::sleep(Duration::from_secs(200)).await;
        last.stop().await;
        let boundaries = compare(inner.clone(), &history).await;
        assert_eq!(boundaries.first().unwrap(), &(1, 0x100), "no epoch is lost: {boundaries:?}");
        let left = unnamed(&inner).await;
        let is_newest = |object: &String| object.starts_with(&format!("epoch={}/", boundaries.last().unwrap().0));
        assert!(left.iter().all(is_newest), "{left:?}");
        if !stuck.has_failed() {
            assert!(calls > 10, "there were only {calls} calls");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn artifacts_and_the_last_diff_do_not_wait_for_what_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    run(options("before"), std::slice::from_ref(&inner), folder.path(), &mut history, 1).await;
    for number in 0..3000 {
        std::fs::write(folder.path().join(format!("archive/epoch=1/orphan-{number}.jsonl")), "left").unwrap();
    }
    let slow = FaultyDestination::new(inner.clone(), CallFaultMode::SlowDeletes, usize::MAX);
    let quick = changed(options("w"), |options| options.grace = Duration::from_secs(8));
    let writer = begin(quick, vec![slow], folder.path(), &history).await.unwrap();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(90) {
        let told = tokio::time::Instant::now();
        writer.send_transaction(history.something(1));
        writer.head(history.position).await;
        assert!(told.elapsed() < Duration::from_secs(3), "an artifact took {:?}", told.elapsed());
    }
    let left = unnamed(&inner).await.len();
    assert!((1..3000).contains(&left), "{left} are left: batches are being deleted");
    writer.send_transaction(history.something(2));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopped = tokio::time::Instant::now();
    writer.stop().await;
    assert!(stopped.elapsed() < Duration::from_secs(3), "the last diff took {:?}", stopped.elapsed());
    assert_eq!(compare(inner, &history).await.last().unwrap().1, history.position.0);
}
