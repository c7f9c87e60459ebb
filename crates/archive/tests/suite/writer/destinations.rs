//! Archives with several destinations.

use std::sync::Arc;
use std::time::Duration;

use laredo_archive::{Archive, Destination, FolderDestination, WriterError};

use crate::scene::{TABLE, TestTableHistory, begin, compare, local, options};
use crate::writer::faulty_destination::{CallFaultMode, FaultyDestination};

#[tokio::test(start_paused = true)]
async fn every_destination_has_the_whole_archive_with_its_own_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let places = ["one", "two", "three"].map(|name| local(&folder.path().join(name)));
    let mut history = TestTableHistory::new();
    let writer = begin(options("w"), places.to_vec(), folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    for number in 0..4 {
        writer.send_transaction(history.something(number));
        writer.head(history.position).await;
    }
    let told = writer.handle.status().destinations;
    writer.stop().await;
    let expected = compare(places[0].clone(), &history).await;
    for (place, told) in places.iter().zip(told) {
        assert_eq!(compare(place.clone(), &history).await, expected);
        // A base in one format, four diffs in two.
        assert_eq!((told.objects, told.errors, told.is_behind), (9, 0, false), "{told:?}");
        let archive = Archive::open(place.clone(), Some(TABLE)).await.unwrap();
        let uris = archive.manifest().artifacts.iter().flat_map(|artifact| artifact.formats.values());
        uris.for_each(|stored| assert!(stored.uri.contains(place.name()), "{} {}", stored.uri, place.name()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_new_or_was_away_is_brought_up() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| local(&folder.path().join(name)));
    let mut history = TestTableHistory::new();
    let writer = begin(options("alone"), vec![one.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    writer.send_transaction(history.something(0));
    writer.head(history.position).await;
    writer.stop().await;
    // The destination catches up although the table does not change again.
    let writer = begin(options("both"), vec![one.clone(), two.clone()], folder.path(), &history).await.unwrap();
    let is_up = async || match Archive::open(two.clone(), Some(TABLE)).await {
        Ok(archive) => archive.manifest().head_position == Some(history.position),
        Err(_) => false,
    };
    let is_behind = || writer.handle.status().destinations[1].is_behind;
    assert!(is_behind());
    while !is_up().await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    while is_behind() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    writer.stop().await;
    assert_eq!(compare(one, &history).await, compare(two, &history).await);
}

#[tokio::test(start_paused = true)]
async fn whatever_call_to_the_second_destination_fails_both_end_equal() {
    for mode in [CallFaultMode::Before, CallFaultMode::After, CallFaultMode::Slow] {
        for fails in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let [one, two] = ["one", "two"].map(|name| local(&folder.path().join(name)));
            let faulty = FaultyDestination::new(two.clone(), mode, fails);
            let mut history = TestTableHistory::new();
            let destinations: Vec<Arc<dyn Destination>> = vec![one.clone(), faulty.clone()];
            let writer = begin(options("w"), destinations, folder.path(), &history).await.unwrap();
            for number in 0..4 {
                writer.send_transaction(history.something(number));
                writer.head(history.position).await;
            }
            tokio::time::sleep(Duration::from_secs(30)).await;
            writer.stop().await;
            assert_eq!(compare(one, &history).await, compare(two, &history).await);
            if !faulty.has_failed() {
                assert!(fails > 10, "there were only {fails} calls");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_has_more_than_the_first_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| local(&folder.path().join(name)));
    let history = TestTableHistory::new();
    let writer = begin(options("w"), vec![two.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    writer.stop().await;
    let before = two.manifest().await.unwrap();
    let writer = begin(options("mixed up"), vec![one, two.clone()], folder.path(), &history).await.unwrap();
    let ended = writer.ended().await.unwrap_err();
    assert!(matches!(ended, WriterError::Ahead { .. }), "{ended}");
    assert_eq!(two.manifest().await.unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn two_archives_in_one_folder_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let places: Vec<Arc<dyn Destination>> = ["a/one-", "a/two-", "a/"]
        .iter()
        .map(|prefix| Arc::new(FolderDestination::with_prefix(folder.path(), prefix).unwrap()) as Arc<dyn Destination>)
        .collect();
    let mut history = TestTableHistory::new();
    history.something(1);
    for (number, place) in places.iter().enumerate() {
        let writer = begin(options(&format!("w{number}")), vec![place.clone()], folder.path(), &history).await.unwrap();
        writer.head(history.position).await;
        writer.stop().await;
        history.something(6);
        assert_eq!(place.list().await.unwrap().len(), 1, "its own alone");
    }
    assert!(folder.path().join("a/one-manifest.json").exists() && folder.path().join("a/manifest.json").exists());
    assert!(places[0].uri("manifest.json").ends_with("/a/one-manifest.json"));
}
