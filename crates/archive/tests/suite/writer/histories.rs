//! The database's history forks while a writer runs, and while none runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use laredo_archive::{Archive, ArchivePoint, ArchiveReadError, Destination, FeedUpdate, ReadProgress};
use laredo_core::Lsn;

use crate::scene::{RunningArchiveWriter, TABLE, TestTableHistory, begin, is_whole, local, options, restart, sorted};

/// Sends all rows of a history, like a server to a writer whose rows are not part of that history.
fn send_all(writer: &RunningArchiveWriter, history: &TestTableHistory, shared_until: Lsn) {
    *writer.mark.lock().unwrap() = Some(history.mark());
    writer.updates.send(restart(shared_until)).unwrap();
    let (table, position) = (Box::new(history.table.clone()), history.position);
    writer.updates.send(FeedUpdate::State { table, position, source: None }).unwrap();
}

/// Starts a writer and sends it the right history: its start mark decides if it needs all rows.
async fn begin_at(
    id: &str,
    places: &[Arc<dyn Destination>],
    staging: &Path,
    (lost, present): (&TestTableHistory, &TestTableHistory),
) -> RunningArchiveWriter {
    let inner = places[0].manifest().await.unwrap();
    let manifest = inner.map(|there| laredo_archive::Manifest::parse(&there.bytes, Some(TABLE)).unwrap());
    let newest = manifest.as_ref().and_then(|manifest| manifest.artifacts.last()?.mark);
    let is_lost = newest.is_some_and(|mark| mark.commit.committed_at != present.mark().commit.committed_at);
    let told = if is_lost { lost } else { present };
    let writer = begin(options(id), places.to_vec(), staging, told).await.unwrap();
    assert_eq!(writer.start.as_ref().map(|start| start.mark), newest.map(Some));
    if is_lost {
        send_all(&writer, present, Lsn::ZERO);
    }
    writer
}

async fn open(place: &Arc<dyn Destination>) -> Archive {
    Archive::open(place.clone(), Some(TABLE)).await.unwrap()
}

/// Checks that every artifact leads to the rows of its own history, and that no position is
/// answered from another one. `histories` pairs each number in the archive with its history.
async fn compare(place: &Arc<dyn Destination>, histories: &[(u64, &TestTableHistory)]) {
    let archive = open(place).await;
    let progress = ReadProgress::default();
    archive.verify(&progress, |damage| panic!("{damage}")).await;
    let found = archive.manifest().histories();
    assert_eq!(
        found.iter().map(|one| one.id).collect::<Vec<_>>(),
        histories.iter().map(|one| one.0).collect::<Vec<_>>()
    );
    for (id, history) in histories {
        let of = archive.of_history(*id).unwrap();
        let own = found.iter().find(|one| one.id == *id).unwrap();
        for artifact in &archive.manifest().artifacts[own.artifacts.clone()] {
            let at = artifact.to_position.unwrap();
            let rebuilt = of.rebuild(ArchivePoint::Position(at), &progress).await.unwrap();
            assert_eq!(rebuilt.boundary.position, Some(at));
            assert_eq!(sorted(&rebuilt.table), history.states[&at], "history {id} at {at}");
        }
    }
    let (_, newest) = histories.last().unwrap();
    for at in (0xF0..0x300).step_by(8).map(Lsn) {
        match archive.rebuild(ArchivePoint::Position(at), &progress).await {
            Ok(rebuilt) => {
                let position = rebuilt.boundary.position.unwrap();
                assert_eq!(sorted(&rebuilt.table), newest.states[&position], "at {at}");
            }
            Err(ArchiveReadError::OtherHistory { .. }) if histories.len() > 1 => {}
            Err(ArchiveReadError::TooEarly { .. }) => {}
            Err(error) => panic!("{at}: {error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fork_under_a_running_writer_begins_a_history() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut lost = TestTableHistory::new();
    let writer = begin(options("w"), vec![inner.clone()], folder.path(), &lost).await.unwrap();
    writer.head(lost.position).await;
    for number in 0..6 {
        writer.send_transaction(lost.something(number));
        writer.head(lost.position).await;
    }
    let end = lost.position;
    let mut present = lost.fork(Lsn(0x120));
    drop(present.something(31));
    // The new history is at a position before the archive's head, and is still written.
    send_all(&writer, &present, Lsn(0x110));
    writer.head(present.position).await;
    assert!(present.position < end);
    compare(&inner, &[(1, &lost), (2, &present)]).await;
    let archive = open(&inner).await;
    let shown = |at| archive.boundary(ArchivePoint::Position(Lsn(at)));
    assert_eq!(shown(0x110).unwrap().history, 1, "the histories are the same up to there");
    assert_eq!(shown(present.position.0).unwrap().history, 2);
    for at in [0x120, end.0] {
        let error = shown(at).unwrap_err();
        assert!(error.to_string().contains(&format!("name the history: 1:{}", Lsn(at))), "{error}");
        assert!(!error.is_damage());
    }
    assert!(matches!(archive.of_history(3), Err(ArchiveReadError::NoHistory { asked: 3, .. })));
    // The same applies to a request by the time of writing.
    let artifact = &archive.manifest().artifacts[archive.manifest().histories()[0].artifacts.end - 1];
    let written = ArchivePoint::Time(artifact.written_at().unwrap() + Duration::from_millis(1));
    let is_other = matches!(archive.boundary(written), Err(ArchiveReadError::OtherHistory { history: 1, .. }));
    assert!(is_other || archive.boundary(written).unwrap().history == 2, "the clock stood still");
    assert_eq!(archive.of_history(1).unwrap().boundary(ArchivePoint::Latest).unwrap().position, Some(end));
    // Later epochs belong to the same history, which passes the end of the lost one.
    for number in 40..48 {
        writer.send_transaction(present.something(number));
        writer.head(present.position).await;
    }
    writer.handle.snapshot().await.unwrap();
    writer.stop().await;
    assert!(present.position > end);
    compare(&inner, &[(1, &lost), (2, &present)]).await;
    assert_eq!(*open(&inner).await.manifest().histories()[1].epochs.end(), 3);
    assert_eq!(open(&inner).await.exactly(end).unwrap().history, 2);
}

/// Rows of the same history that are sent again change nothing, if the history is proven or the
/// journal is the same.
#[tokio::test(start_paused = true)]
async fn rows_that_come_again_of_the_same_history_are_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let writer = begin(options("w"), vec![inner.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    writer.send_transaction(history.something(1));
    writer.head(history.position).await;
    for shared_until in [history.position, Lsn(u64::MAX)] {
        drop(history.something(6));
        send_all(&writer, &history, shared_until.max(history.position));
        writer.head(history.position).await;
    }
    compare(&inner, &[(1, &history)]).await;
    // Nothing is proven here, although it may be the same history.
    drop(history.something(11));
    send_all(&writer, &history, Lsn::ZERO);
    writer.head(history.position).await;
    writer.stop().await;
    compare(&inner, &[(1, &history), (4, &history)]).await;
}

/// Announced rows that did not arrive before the next announcement are discarded. The fork is still
/// remembered.
#[tokio::test(start_paused = true)]
async fn a_fork_is_remembered_until_its_rows_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let inner = local(&folder.path().join("archive"));
    let mut lost = TestTableHistory::new();
    let mut writer = begin(options("w"), vec![inner.clone()], folder.path(), &lost).await.unwrap();
    writer.head(lost.position).await;
    writer.send_transaction(lost.something(1));
    writer.head(lost.position).await;
    let mut present = lost.fork(Lsn(0x100));
    drop(present.something(31));
    writer.updates.send(restart(Lsn::ZERO)).unwrap();
    // These rows fail before they are written, so all rows are sent again, from the same journal.
    send_all(&writer, &present, Lsn(u64::MAX));
    let mut wrong = present.fork(present.position).something(2);
    wrong.changes = vec![laredo_core::Change::Insert(crate::scene::row(1, "is there already"))];
    writer.send_transaction(wrong);
    writer.restarts.recv().await.unwrap();
    drop(present.something(36));
    send_all(&writer, &present, Lsn(u64::MAX));
    writer.head(present.position).await;
    writer.stop().await;
    let histories = open(&inner).await.manifest().histories();
    assert_eq!(
        histories.iter().map(|history| (history.id, history.shared_until)).collect::<Vec<_>>()[..2],
        [(1, Lsn::ZERO), (2, Lsn::ZERO)]
    );
    for at in [0x100, 0x110, 0x120, 0x130] {
        let archive = open(&inner).await;
        if let Ok(rebuilt) = archive.rebuild(ArchivePoint::Position(Lsn(at)), &ReadProgress::default()).await {
            assert_eq!(sorted(&rebuilt.table), present.states[&rebuilt.boundary.position.unwrap()], "{at:x}");
            assert_ne!(rebuilt.boundary.history, 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_killed_around_a_fork_mixes_nothing() {
    for delay in (0..1300).step_by(100) {
        let folder = tempfile::tempdir().unwrap();
        let places = ["one", "two"].map(|name| local(&folder.path().join(name)));
        let mut lost = TestTableHistory::new();
        let mut present = lost.fork(lost.position);
        drop(present.something(31));
        let writer = begin(options("first"), places.to_vec(), folder.path(), &lost).await.unwrap();
        writer.head(lost.position).await;
        for number in 0..6 {
            writer.send_transaction(lost.something(number));
        }
        // The last transactions may be in the buffer, and may or may not be written.
        tokio::time::sleep(Duration::from_millis(delay)).await;
        send_all(&writer, &present, Lsn::ZERO);
        tokio::time::sleep(Duration::from_millis(delay / 2)).await;
        writer.kill().await;
        for (run, numbers) in [(0, 40..44), (1, 44..48)] {
            let writer = begin_at(&format!("run {run}"), &places, folder.path(), (&lost, &present)).await;
            for number in numbers {
                writer.send_transaction(present.something(number));
            }
            writer.head(present.position).await;
            writer.kill().await;
        }
        let newest = open(&places[0]).await.manifest().histories().last().unwrap().id;
        compare(&places[0], &[(1, &lost), (newest, &present)]).await;
        is_whole(&*places[1]).await.unwrap();
    }
}

/// The folder, or only its manifest, is put back to its state before the fork.
#[tokio::test(start_paused = true)]
async fn an_older_copy_of_the_archive_is_gone_on_from_without_mixing() {
    for only_manifest in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("archive"), folder.path().join("copy"));
        let inner = local(&path);
        let mut lost = TestTableHistory::new();
        let writer = begin(options("first"), vec![inner.clone()], folder.path(), &lost).await.unwrap();
        writer.head(lost.position).await;
        for number in 0..4 {
            writer.send_transaction(lost.something(number));
            writer.head(lost.position).await;
        }
        let mut present = lost.fork(Lsn(0x110));
        drop(present.something(31));
        let copied = std::process::Command::new("cp").arg("-a").args([&path, &copy]).status().unwrap();
        assert!(copied.success());
        send_all(&writer, &present, Lsn::ZERO);
        writer.head(present.position).await;
        for number in 40..44 {
            writer.send_transaction(present.something(number));
            writer.head(present.position).await;
        }
        writer.stop().await;
        compare(&inner, &[(1, &lost), (2, &present)]).await;
        if only_manifest {
            std::fs::copy(copy.join("manifest.json"), path.join("manifest.json")).unwrap();
        } else {
            std::fs::remove_dir_all(&path).unwrap();
            assert!(std::process::Command::new("cp").arg("-a").args([&copy, &path]).status().unwrap().success());
        }
        let writer = begin_at("second", std::slice::from_ref(&inner), folder.path(), (&lost, &present)).await;
        writer.head(present.position).await;
        for number in 44..48 {
            writer.send_transaction(present.something(number));
            writer.head(present.position).await;
        }
        writer.stop().await;
        let id = open(&inner).await.manifest().histories().last().unwrap().id;
        compare(&inner, &[(1, &lost), (id, &present)]).await;
    }
}
