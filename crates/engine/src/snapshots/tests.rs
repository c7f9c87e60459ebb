//! Tests that write snapshots, damage them in every way, and read them again. The result must be
//! the same contents, or nothing and an error message.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Lsn, SourceIdentity, TableName};
use laredo_testkit::SimDatabase;
use tempfile::TempDir;

use super::*;
use crate::journal::tests::{self, begin, commit, delete, insert};
use crate::journal::{Journal, JournalWriter};
use crate::source::SourceServer;

mod fuzz_tests;

type SnapshotRowTexts = BTreeMap<i64, String>;

const FORMATS: [SnapshotFormat; 2] = [SnapshotFormat::Native, SnapshotFormat::Jsonl];

/// Returns a folder where an fsync costs nothing, if possible.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn source() -> SourceServer {
    let (system_identifier, database) = ("s".to_owned(), "d".to_owned());
    let identity = SourceIdentity { system_identifier, database, timeline: 1, history: Vec::new() };
    SourceServer { identity, written: Lsn(1 << 40), started: String::new() }
}

fn opened_as(folder: &Path, format: SnapshotFormat, table: &str, source: SourceServer) -> SnapshotFolder {
    let options = SnapshotOptions {
        folder: folder.to_owned(),
        format,
        interval: Duration::from_secs(3600),
        keep_count: 3,
        age_max: None,
    };
    let clock: crate::Clock = Arc::new(|| CommitTime(7_000_000));
    SnapshotFolder::open(options, std::env::temp_dir(), TableName::new("public", table), source, clock).unwrap()
}

fn opened(folder: &Path, format: SnapshotFormat) -> SnapshotFolder {
    opened_as(folder, format, "t", source())
}

fn rows_of(recovered: &RecoveredSnapshot) -> SnapshotRowTexts {
    recovered.rows.rows().map(|row| SimDatabase::parse(row.as_ref()).unwrap()).collect()
}

fn rows(of: &[(i64, &str)]) -> SnapshotRowTexts {
    of.iter().map(|(id, body)| (*id, (*body).to_owned())).collect()
}

/// Returns the snapshot files in a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = all.filter(|path| open::format_of(path).is_some()).collect();
    files.sort();
    files
}

/// Returns a journal with some changes.
fn some_journal() -> (Journal, JournalWriter) {
    let (journal, mut writer) = tests::journal(tests::options());
    commit(&mut writer, |writer| {
        insert(writer, 1, "one");
        insert(writer, 2, "two, \"\u{e9}\"\n");
    });
    commit(&mut writer, |writer| delete(writer, 1, "one"));
    (journal, writer)
}

#[test]
fn what_is_written_comes_back_in_either_format() {
    for format in FORMATS {
        let folder = folder();
        let snapshots = opened(folder.path(), format);
        let (journal, mut writer) = some_journal();
        let meta = serde_json::json!({ "why": "before the move", "n": 1.5 });
        let info = snapshots.write(&journal, Some(meta.clone())).unwrap();
        assert_eq!((info.rows, info.format, info.position), (1, format, journal.head().position));
        assert_eq!(info.id, journal.instance().snapshot_id(journal.head().sequence));
        assert_eq!(snapshots.status().durable.position(), info.position);
        commit(&mut writer, |writer| insert(writer, 3, &"long".repeat(500_000)));
        let later = snapshots.write(&journal, None).unwrap();
        drop(snapshots);
        // Both formats are read, independent of the format that is written.
        let snapshots = opened(folder.path(), SnapshotFormat::Native);
        assert_eq!(snapshots.list(), [later.clone(), info.clone()]);
        assert_eq!(snapshots.list()[1].user_meta, Some(meta));
        assert_eq!(rows_of(&snapshots.recover_now(&info.id).unwrap()), rows(&[(2, "two, \"\u{e9}\"\n")]));
        let newest = snapshots.recover_newest().unwrap();
        assert_eq!((newest.info.clone(), rows_of(&newest).len()), (later.clone(), 2));
        assert_eq!(snapshots.status().durable.position(), later.position);
        assert_eq!(snapshots.read_whole(&later.id).unwrap(), later);
    }
}

#[test]
fn lines_of_json_are_what_others_read() {
    let folder = folder();
    let info = opened(folder.path(), SnapshotFormat::Jsonl).write(&some_journal().0, None).unwrap();
    let text = fs::read_to_string(&info.path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [header, row, end] = lines.as_slice() else { panic!("{text}") };
    assert_eq!((&header["table"], &header["format"], &header["rows"]), (&"t".into(), &1.into(), &1.into()));
    assert_eq!(header["position"], info.position.to_string());
    assert_eq!(
        header["columns"][0],
        serde_json::json!({ "name": "id", "type": "bigint", "not_null": true, "key": true })
    );
    assert_eq!(row["row"], serde_json::json!({ "id": 2, "body": "two, \"\u{e9}\"\n" }));
    assert_eq!(end["bytes"], text.trim_end().rfind('\n').unwrap() + 1);
}

/// Flips a bit of every byte of a file, and truncates it to every length. A snapshot must be
/// complete or missing.
#[test]
fn a_harmed_file_is_left_out_and_an_older_one_counts() {
    for format in FORMATS {
        let folder = folder();
        let (journal, mut writer) = some_journal();
        let older = opened(folder.path(), format).write(&journal, None).unwrap();
        commit(&mut writer, |writer| insert(writer, 3, "three"));
        let newer = opened(folder.path(), format).write(&journal, None).unwrap();
        let whole = fs::read(&newer.path).unwrap();
        let look = |bytes: &[u8]| {
            fs::write(&newer.path, bytes).unwrap();
            let snapshots = opened(folder.path(), format);
            let newest = snapshots.recover_newest().map(|found| (found.info.id.clone(), rows_of(&found)));
            (newest, snapshots.list().len(), snapshots.status().errors)
        };
        let of_older = (older.id.clone(), rows(&[(2, "two, \"\u{e9}\"\n")]));
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let (newest, left, errors) = look(&bytes);
            let newest = newest.unwrap();
            // White space in the last line of JSON has no meaning, and such a flip does no damage.
            if newest.0 == newer.id {
                assert_eq!(newest.1, rows(&[(2, "two, \"\u{e9}\"\n"), (3, "three")]), "{format:?} byte {at}");
            } else {
                assert_eq!((newest, left, errors), (of_older.clone(), 1, 1), "{format:?} byte {at}");
            }
        }
        for length in 0..whole.len() {
            assert_eq!(look(&whole[..length]), (Some(of_older.clone()), 1, 1), "{format:?} {length} bytes");
        }
        assert_eq!(look(&whole).0.unwrap().0, newer.id);
    }
}

#[test]
fn what_is_of_another_table_or_history_is_left_where_it_is() {
    for format in FORMATS {
        let folder = folder();
        let info = opened(folder.path(), format).write(&some_journal().0, None).unwrap();
        let mut elsewhere = source();
        elsewhere.identity.system_identifier = "other".to_owned();
        let restored = SourceServer { written: Lsn(info.position.0 - 1), ..source() };
        let is_refused = |table: &str, source| {
            let snapshots = opened_as(folder.path(), format, table, source);
            assert_eq!((snapshots.list(), snapshots.status().errors), (Vec::new(), 1));
            assert!(snapshots.recover_newest().is_none());
        };
        is_refused("u", source());
        is_refused("t", elsewhere);
        assert_eq!(opened(folder.path(), format).list(), std::slice::from_ref(&info));
        // The fork is noted. The file stays, but later runs do not use it.
        is_refused("t", restored);
        assert!(info.path.exists());
        is_refused("t", source());
    }
}

#[test]
fn a_newer_format_is_named_and_left_out() {
    let folder = folder();
    let info = opened(folder.path(), SnapshotFormat::Jsonl).write(&some_journal().0, None).unwrap();
    // The file is as a newer version would write it, with right checksums.
    let text = fs::read_to_string(&info.path).unwrap().replacen("\"format\":1", "\"format\":9", 1);
    let end = text.trim_end().rfind('\n').unwrap() + 1;
    let checksum = crc32fast::hash(&text.as_bytes()[..end]);
    fs::write(&info.path, format!("{}{{\"bytes\":{end},\"checksums\":[{checksum}]}}\n", &text[..end])).unwrap();
    let error = open::open(&info.path, SnapshotFormat::Jsonl).err().unwrap().to_string();
    assert!(error.contains("is of format 9"), "{error}");
    assert!(opened(folder.path(), SnapshotFormat::Jsonl).list().is_empty());
}

#[test]
fn one_of_the_same_entries_takes_the_place_of_the_other_and_old_ones_go() {
    let folder = folder();
    let (journal, mut writer) = some_journal();
    let snapshots = opened(folder.path(), SnapshotFormat::Native);
    let meta = Some(serde_json::json!({ "kept": true }));
    let first = snapshots.write(&journal, meta.clone()).unwrap();
    snapshots.write_if_moved(&journal).unwrap();
    assert_eq!(snapshots.status().writes, 1, "nothing has happened");
    writer.advance(Lsn(first.position.0 + 1000), CommitMark::default());
    writer.publish().unwrap();
    snapshots.write_if_moved(&journal).unwrap();
    let moved = snapshots.newest().unwrap();
    assert_eq!((moved.id.as_str(), moved.position.0), (first.id.as_str(), first.position.0 + 1000));
    assert_eq!((moved.user_meta.clone(), files(folder.path())), (meta, vec![moved.path.clone()]));
    for id in 10..15 {
        commit(&mut writer, |writer| insert(writer, id, "more"));
        snapshots.write(&journal, None).unwrap();
    }
    let kept: Vec<_> = snapshots.list().into_iter().map(|info| info.rows).collect();
    assert_eq!((kept, files(folder.path()).len()), (vec![6, 5, 4], 3));
    let list = snapshots.list();
    assert!(matches!(snapshots.remove(&list[0].id), Err(SnapshotError::Newest(_))));
    assert!(matches!(snapshots.remove("nothing"), Err(SnapshotError::Unknown(_))));
    snapshots.remove(&list[1].id).unwrap();
    assert_eq!(snapshots.list(), [list[0].clone(), list[2].clone()]);
    assert_eq!(snapshots.remove_beyond(0, None).unwrap(), 1);
    assert_eq!((snapshots.list(), files(folder.path())), (vec![list[0].clone()], vec![list[0].path.clone()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_readers_of_a_snapshot_share_one_copy_of_it() {
    for format in FORMATS {
        let folder = folder();
        let (journal, mut writer) = some_journal();
        let snapshots = Arc::new(opened(folder.path(), format));
        let info = snapshots.write(&journal, None).unwrap();
        let fetch = |id: &str| {
            tokio::spawn({
                let (snapshots, id) = (snapshots.clone(), id.to_owned());
                async move { snapshots.fetch(id).await }
            })
        };
        let mut bases = Vec::new();
        for call in (0..20).map(|_| fetch(&info.id)).collect::<Vec<_>>() {
            bases.push(call.await.unwrap().unwrap());
        }
        assert!(bases.iter().all(|base| Arc::ptr_eq(base, &bases[0])), "{format:?}");
        commit(&mut writer, |writer| insert(writer, 3, "three"));
        let other = snapshots.write(&journal, None).unwrap();
        let newer = fetch(&other.id).await.unwrap().unwrap();
        assert_eq!((bases[0].rows(), newer.rows()), (1, 2), "{format:?}");
        // When the last reader has gone, so has the copy.
        let unused = Arc::downgrade(&bases[0]);
        bases.clear();
        assert!(unused.upgrade().is_none(), "{format:?}");
        // A call whose caller has left holds nothing up.
        fetch(&info.id).abort();
        assert_eq!(fetch(&info.id).await.unwrap().unwrap().rows(), 1, "{format:?}");
        assert!(matches!(fetch("nothing").await.unwrap(), Err(SnapshotError::Unknown(_))));
    }
}

#[test]
fn a_request_writes_nothing_if_the_newest_snapshot_would_be_the_same() {
    let folder = folder();
    let (journal, mut writer) = some_journal();
    let snapshots = opened(folder.path(), SnapshotFormat::Jsonl);
    let (one, other) = (Some(serde_json::json!({ "n": 1 })), Some(serde_json::json!({ "n": 2 })));
    let first = snapshots.write_requested(&journal, one.clone()).unwrap();
    for meta in [None, one.clone()] {
        assert_eq!(snapshots.write_requested(&journal, meta).unwrap(), first);
    }
    assert_eq!(snapshots.status().writes, 1);
    // Other metadata, a missing file and a change each need a new file.
    let second = snapshots.write_requested(&journal, other.clone()).unwrap();
    assert_eq!((second.id.as_str(), &second.user_meta, snapshots.status().writes), (first.id.as_str(), &other, 2));
    fs::remove_file(&second.path).unwrap();
    assert!(snapshots.write_requested(&journal, None).unwrap().path.is_file());
    commit(&mut writer, |writer| insert(writer, 3, "three"));
    assert_ne!(snapshots.write_requested(&journal, None).unwrap().id, first.id);
    let status = snapshots.status();
    assert_eq!((status.writes, status.write_times.count()), (4, 4));
}

#[test]
fn what_a_server_that_ended_was_doing_is_cleared_up() {
    let folder = folder();
    let (journal, mut writer) = some_journal();
    let first = opened(folder.path(), SnapshotFormat::Native).write(&journal, None).unwrap();
    let bytes = fs::read(&first.path).unwrap();
    writer.advance(Lsn(first.position.0 + 1000), CommitMark::default());
    writer.publish().unwrap();
    let second = opened(folder.path(), SnapshotFormat::Native).write(&journal, None).unwrap();
    // The server ended before it removed the replaced snapshot, and while it wrote another one.
    fs::write(&first.path, bytes).unwrap();
    fs::write(folder.path().join(".writing-x"), "half").unwrap();
    let snapshots = opened(folder.path(), SnapshotFormat::Native);
    assert_eq!(snapshots.list(), std::slice::from_ref(&second));
    assert_eq!(files(folder.path()), [second.path]);
    assert!(!folder.path().join(".writing-x").exists());
}

#[test]
fn a_disk_that_fails_is_reported_and_the_next_attempt_counts() {
    let folder = folder();
    let (journal, mut writer) = some_journal();
    let place = folder.path().join("place");
    let snapshots = opened(&place, SnapshotFormat::Native);
    let first = snapshots.write(&journal, None).unwrap();
    fs::remove_dir_all(&place).unwrap();
    commit(&mut writer, |writer| insert(writer, 3, "three"));
    let error = snapshots.write_if_moved(&journal).unwrap_err().to_string();
    let status = snapshots.status();
    assert!(error.contains(&place.display().to_string()), "{error}");
    assert_eq!((status.errors, status.error, status.durable.position()), (1, Some(error), first.position));
    fs::create_dir_all(&place).unwrap();
    snapshots.write_if_moved(&journal).unwrap();
    assert_eq!((snapshots.status().error, snapshots.status().durable.position()), (None, journal.head().position));
}

/// A snapshot never contains a transaction that is being written.
#[test]
fn only_whole_transactions_are_in_it() {
    let folder = folder();
    let (journal, mut writer) = some_journal();
    let before = journal.head();
    begin(&mut writer);
    for id in 100..400 {
        insert(&mut writer, id, &"x".repeat(10_000));
    }
    let snapshots = opened(folder.path(), SnapshotFormat::Native);
    let info = snapshots.write(&journal, None).unwrap();
    assert_eq!((info.rows, info.sequence, info.position), (1, before.sequence, before.position));
    writer.commit().unwrap();
    writer.publish().unwrap();
    assert_eq!(snapshots.write(&journal, None).unwrap().rows, 301);
}
