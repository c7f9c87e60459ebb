//! Checksums of the rows: in the manifest, compared with the server's, and for types that do not
//! round-trip to the byte.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use laredo_archive::{Archive, ArchivePoint, FeedUpdate, ReadProgress};
use laredo_core::{CanaryFault, Cell, Change, Checksum, Column, KeyColumns, Schema, TableState, Tuple, TupleBuf};
use laredo_values::ArchivedChecksums;

use crate::scene::{TABLE, TestTableHistory, begin, compare, local, options};

fn current(history: &TestTableHistory, checksum: Checksum) -> FeedUpdate {
    FeedUpdate::Current { at: Instant::now(), position: history.position, checksum: Some(checksum) }
}

#[tokio::test(start_paused = true)]
async fn each_artifact_has_the_checksum_of_what_it_leads_to() {
    let folder = tempfile::tempdir().unwrap();
    let archive = local(&folder.path().join("archive"));
    let mut history = TestTableHistory::new();
    let mut sums = BTreeMap::from([(history.position, history.table.checksum())]);
    let writer = begin(options("w"), vec![archive.clone()], folder.path(), &history).await.unwrap();
    writer.head(history.position).await;
    for number in 0..12 {
        writer.send_transaction(history.something(number));
        sums.insert(history.position, history.table.checksum());
        if number % 3 == 2 {
            writer.head(history.position).await;
        }
    }
    writer.stop().await;
    // The rows that were read back continue with the same checksums.
    let writer = begin(options("again"), vec![archive.clone()], folder.path(), &history).await.unwrap();
    writer.send_transaction(history.something(13));
    sums.insert(history.position, history.table.checksum());
    writer.head(history.position).await;
    writer.stop().await;
    compare(archive.clone(), &history).await;
    let archive = Archive::open(archive, Some(TABLE)).await.unwrap();
    assert!(archive.manifest().artifacts.len() >= 6);
    for artifact in &archive.manifest().artifacts {
        let to = artifact.to_position.unwrap();
        assert_eq!(artifact.checksum, Some(sums[&to]), "at {to}");
    }
}

/// The server has a changed cell, a row less or a row more than the archive. The archive must adopt
/// the server's rows.
#[tokio::test(start_paused = true)]
async fn rows_that_differ_from_the_servers_begin_a_new_epoch() {
    for canary in CanaryFault::ALL {
        let folder = tempfile::tempdir().unwrap();
        let archive = local(&folder.path().join("archive"));
        let mut history = TestTableHistory::new();
        let mut writer = begin(options("w"), vec![archive.clone()], folder.path(), &history).await.unwrap();
        writer.head(history.position).await;
        for number in 0..3 {
            writer.send_transaction(history.something(number));
            // At this time some changes are in the archive, and some are still buffered.
            writer.updates.send(current(&history, history.table.checksum())).unwrap();
        }
        writer.head(history.position).await;
        assert!(writer.differed.try_recv().is_err(), "{canary:?}: nothing differs yet");
        let ours = history.table.checksum();
        assert!(history.table.plant(canary));
        let theirs = history.table.checksum();
        writer.updates.send(current(&history, theirs)).unwrap();
        assert_eq!(writer.differed.recv().await, Some((ours, theirs)), "{canary:?}");
        history.commit(vec![]);
        history.all().into_iter().for_each(|update| writer.updates.send(update).unwrap());
        writer.head(history.position).await;
        writer.updates.send(current(&history, theirs)).unwrap();
        writer.stop().await;
        let archive = Archive::open(archive, Some(TABLE)).await.unwrap();
        assert_eq!(archive.manifest().epoch, 2, "{canary:?}");
        let rebuilt = archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await.unwrap();
        assert_eq!(rebuilt.table.checksum(), theirs, "{canary:?}");
    }
}

/// A writer resumes from an archive that has a wrong row and a matching wrong checksum.
#[tokio::test(start_paused = true)]
async fn an_archive_that_differs_from_the_start_is_found() {
    for canary in CanaryFault::ALL {
        let folder = tempfile::tempdir().unwrap();
        let archive = local(&folder.path().join("archive"));
        let mut history = TestTableHistory::new();
        let right = history.table.checksum();
        assert!(history.table.plant(canary));
        let wrong = history.table.checksum();
        let writer = begin(options("w"), vec![archive.clone()], folder.path(), &history).await.unwrap();
        writer.head(history.position).await;
        writer.stop().await;
        let mut writer = begin(options("again"), vec![archive], folder.path(), &history).await.unwrap();
        writer.updates.send(current(&history, right)).unwrap();
        assert_eq!(writer.differed.recv().await, Some((wrong, right)), "{canary:?}");
        writer.kill().await;
    }
}

/// Returns a schema with columns whose cells do not all round-trip to the byte.
fn documents() -> Arc<Schema> {
    let column = |(name, type_oid, type_name): (&str, u32, &str)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        not_null: name == "id",
        is_text: false,
    };
    let columns = [
        ("id", 23, "integer"),
        ("body", 114, "json"),
        ("packed", 3802, "jsonb"),
        ("list", 1007, "integer[]"),
        ("real", 701, "double precision"),
    ];
    Arc::new(Schema::new(columns.into_iter().map(column).collect(), KeyColumns::new([0]), BTreeMap::new()))
}

/// Returns a row with white space, unsorted names, a lower bound, and a NaN with a sign.
fn document(id: i32, number: i32) -> Tuple {
    let body = format!("{{\"b\" : {number},   \"a\": [1.10, \"x\"], \"b\": {number}}}");
    let packed = [b"\x01", format!("{{\"a\": {number}, \"bb\": null}}").as_bytes()].concat();
    let list: Vec<u8> = [1, 0, 23, 1, 5, 4, number].into_iter().flat_map(i32::to_be_bytes).collect();
    let nan = f64::from_bits(0xFFF8_0000_0000_0000).to_be_bytes();
    let cells = [&id.to_be_bytes()[..], body.as_bytes(), &packed, &list, &nan];
    let row: TupleBuf = cells.into_iter().map(Cell::Value).collect();
    row.as_ref().to_tuple()
}

#[tokio::test(start_paused = true)]
async fn types_that_do_not_come_back_to_the_byte_have_checksums_all_the_same() {
    for formats in [["jsonl"], ["protobuf.zst"]] {
        let folder = tempfile::tempdir().unwrap();
        let archive = local(&folder.path().join("archive"));
        let mut table = TableState::new(documents(), &[], 0).unwrap();
        (0..20).for_each(|id| drop(table.put(document(id, id))));
        let mut history = TestTableHistory::of(table);
        let with = |id: &str| {
            let mut options = options(id);
            options.snapshot_formats = formats.iter().map(|format| format.parse().unwrap()).collect();
            options.diff_formats = options.snapshot_formats.clone();
            options
        };
        let sums = ArchivedChecksums::new(documents());
        let of = |table: &TableState| {
            let mut rows = table.rows().map(|row| sums.of_row(row.as_ref()).unwrap());
            rows.try_fold(Checksum::default(), |sum, row| Some(sum.plus(row))).unwrap()
        };
        let mut writer = begin(with("w"), vec![archive.clone()], folder.path(), &history).await.unwrap();
        writer.head(history.position).await;
        let key = |id| documents().key().key_of(document(id, 0).as_ref());
        let changes = vec![Change::Update(document(1, 100)), Change::Delete(key(2)), Change::Insert(document(30, 7))];
        writer.send_transaction(history.commit(changes));
        writer.updates.send(current(&history, history.table.checksum())).unwrap();
        writer.head(history.position).await;
        assert!(writer.differed.try_recv().is_err(), "the rows are the server's own");
        writer.stop().await;
        // After reading back, the rows differ in their bytes. They cannot be compared, and the
        // checksums still continue.
        let mut writer = begin(with("again"), vec![archive.clone()], folder.path(), &history).await.unwrap();
        writer
            .send_transaction(history.commit(vec![Change::Update(document(1, 101)), Change::Update(document(3, 102))]));
        writer.updates.send(current(&history, history.table.checksum())).unwrap();
        writer.head(history.position).await;
        writer.send_transaction(history.commit(vec![Change::Truncate, Change::Insert(document(1, 103))]));
        writer.head(history.position).await;
        assert!(writer.differed.try_recv().is_err());
        writer.stop().await;
        let archive = Archive::open(archive, Some(TABLE)).await.unwrap();
        archive.verify(&ReadProgress::default(), |damage| panic!("{damage}")).await;
        assert_eq!(archive.manifest().artifacts.len(), 4);
        assert_eq!(archive.manifest().artifacts[3].checksum, Some(of(&history.table)));
        let rebuilt = archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await.unwrap();
        assert_eq!((rebuilt.checksum, of(&rebuilt.table)), (of(&history.table), of(&history.table)));
    }
}
