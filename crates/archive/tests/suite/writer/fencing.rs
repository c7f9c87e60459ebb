//! Two writers on one archive.

use laredo_archive::{Archive, WriterError};

use crate::scene::{TABLE, TestTableHistory, begin, compare, local, options};

#[tokio::test(start_paused = true)]
async fn the_older_of_two_writers_stops_and_names_the_newer() {
    let folder = tempfile::tempdir().unwrap();
    let (inner, staging) = (local(&folder.path().join("archive")), folder.path().join("staging"));
    let mut history = TestTableHistory::new();
    let older = begin(options("older"), vec![inner.clone()], &staging, &history).await.unwrap();
    older.head(history.position).await;
    let newer = begin(options("newer"), vec![inner.clone()], &staging, &history).await.unwrap();
    let before = inner.list().await.unwrap();
    for number in 0..3 {
        let transaction = history.something(number);
        older.send_transaction(transaction.clone());
        newer.send_transaction(transaction);
    }
    newer.head(history.position).await;
    let ended = older.ended().await.unwrap_err();
    let WriterError::Fenced { theirs, .. } = &ended else { panic!("{ended}") };
    assert_eq!((theirs.id.as_str(), theirs.fence), ("newer", 2));
    assert!(ended.to_string().contains("newer"), "{ended}");
    newer.stop().await;
    compare(inner.clone(), &history).await;
    let after = inner.list().await.unwrap();
    assert!(before.iter().all(|object| after.contains(object)), "no object is overwritten: {before:?} {after:?}");
}

#[tokio::test(start_paused = true)]
async fn many_writers_that_start_at_once_leave_one() {
    let folder = tempfile::tempdir().unwrap();
    let (inner, staging) = (local(&folder.path().join("archive")), folder.path().join("staging"));
    let mut history = TestTableHistory::new();
    let mut writers = Vec::new();
    for id in ["a", "b", "c", "d", "e", "f"] {
        writers.push(begin(options(id), vec![inner.clone()], &staging, &history));
    }
    let writers: Vec<_> = futures::future::join_all(writers).await.into_iter().map(Result::unwrap).collect();
    for number in 0..4 {
        let transaction = history.something(number);
        writers
            .iter()
            .for_each(|writer| drop(writer.updates.send(laredo_archive::FeedUpdate::Transaction(transaction.clone()))));
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
    let holder = Archive::open(inner.clone(), Some(TABLE)).await.unwrap().manifest().writer.clone().unwrap();
    assert_eq!(holder.fence, 6, "each took a number");
    let mut running = 0;
    for writer in writers {
        match writer.handle.status().phase {
            laredo_archive::WriterPhase::Stopped => {
                assert!(matches!(writer.ended().await, Err(WriterError::Fenced { .. })));
            }
            _ => {
                running += 1;
                writer.stop().await;
            }
        }
    }
    assert_eq!(running, 1);
    compare(inner, &history).await;
}

#[tokio::test(start_paused = true)]
async fn an_archive_of_another_table_or_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (inner, staging) = (local(&folder.path().join("archive")), folder.path().join("staging"));
    let history = TestTableHistory::new();
    let first = begin(options("first"), vec![inner.clone()], &staging, &history).await.unwrap();
    first.head(history.position).await;
    first.stop().await;
    let mut other = options("second");
    other.table = "public.others".to_owned();
    let ended = begin(other, vec![inner.clone()], &staging, &history).await.err().unwrap();
    assert!(ended.to_string().contains("of table public.things, not of public.others"), "{ended}");
    let manifest = folder.path().join("archive/manifest.json");
    let text =
        std::fs::read_to_string(&manifest).unwrap().replace("\"manifest_version\": 1", "\"manifest_version\": 9");
    std::fs::write(&manifest, &text).unwrap();
    let ended = begin(options("third"), vec![inner.clone()], &staging, &history).await.err().unwrap();
    assert!(ended.to_string().contains("version 9"), "{ended}");
    assert_eq!(std::fs::read_to_string(&manifest).unwrap(), text);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_another_process_removes_stops_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (inner, staging) = (local(&folder.path().join("archive")), folder.path().join("staging"));
    let mut history = TestTableHistory::new();
    let writer = begin(options("w"), vec![inner], &staging, &history).await.unwrap();
    writer.head(history.position).await;
    std::fs::remove_file(folder.path().join("archive/manifest.json")).unwrap();
    writer.send_transaction(history.something(1));
    assert!(matches!(writer.ended().await, Err(WriterError::Replaced { .. })));
}
