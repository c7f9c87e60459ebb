use std::sync::Arc;
use std::time::Duration;

use laredo_core::{
    Cell, Checksum, Column, CommitMark, CommitTime, DefinitionVersion, KeyColumns, Lsn, Schema, ScopedMark,
    SourceIdentity, TupleBuf, Xid,
};
use proptest::prelude::*;

use super::*;

mod fuzz_tests;

fn schema() -> Arc<Schema> {
    let column = |name: &str, type_oid: u32, type_name: &str| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        not_null: false,
        is_text: false,
    };
    let columns = vec![column("id", 20, "bigint"), column("v", 25, "text")];
    Arc::new(Schema::new(columns, KeyColumns::new([0]), Default::default()))
}

fn rows(texts: &[Option<Vec<u8>>]) -> Vec<Tuple> {
    let row = |(id, text): (usize, &Option<Vec<u8>>)| {
        let mut row = TupleBuf::new();
        row.push(Cell::Value(&(id as i64).to_be_bytes()));
        row.push(text.as_ref().map_or(Cell::Null, |text| Cell::Value(text)));
        row.as_ref().to_tuple()
    };
    texts.iter().enumerate().map(row).collect()
}

fn saved(rows: Vec<Tuple>) -> ResumableTable<LocalSnapshotRows> {
    let sum = |sum: Checksum, row: &Tuple| sum.plus(Checksum::of_row(row.as_ref()));
    let checksum = rows.iter().fold(Checksum::default(), sum);
    ResumableTable {
        table: LocalSnapshotRows { schema: schema(), rows, checksum },
        resume: ResumeState {
            position: Lsn(0x300),
            sequence: Some(Sequence(7)),
            instance_id: "one".to_owned(),
            mark: Some(ScopedMark {
                commit: CommitMark { end: Lsn(5), xid: Xid(7), committed_at: CommitTime::from_unix_us(9) },
                scope: 3,
            }),
            source: Some(SourceIdentity { database: "app".to_owned(), ..SourceIdentity::default() }),
            definition: DefinitionVersion(9),
            ..ResumeState::default()
        },
        at_head: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)),
    }
}

fn request(table: &str) -> SyncRequest {
    SyncRequest { schema: "public".to_owned(), table: table.to_owned(), ..SyncRequest::default() }
}

struct LocalSnapshotFolder {
    folder: tempfile::TempDir,
    file: LocalSnapshotFile,
}

impl LocalSnapshotFolder {
    fn new() -> LocalSnapshotFolder {
        let folder = tempfile::tempdir().unwrap();
        let file = LocalSnapshotFile::new(folder.path().join("cache"), request("t"));
        LocalSnapshotFolder { folder, file }
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Writes these bytes to the file and loads it.
    fn load(&self, bytes: &[u8]) -> Option<ResumableTable<TableState>> {
        std::fs::write(&self.file.path, bytes).unwrap();
        self.file.load(&[])
    }
}

fn is_same(loaded: &ResumableTable<TableState>, saved: &ResumableTable<LocalSnapshotRows>) -> bool {
    let rows = |rows: &mut dyn Iterator<Item = &Tuple>| {
        let mut rows: Vec<_> = rows.map(|row| row.as_ref().bytes().to_vec()).collect();
        rows.sort();
        rows
    };
    rows(&mut loaded.table.rows()) == rows(&mut saved.table.rows.iter())
        && loaded.table.schema() == &saved.table.schema
        && (&loaded.resume, loaded.at_head) == (&saved.resume, saved.at_head)
}

proptest! {
    #[test]
    fn what_was_saved_is_loaded(texts in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..9)), 0..50)) {
        let place = LocalSnapshotFolder::new();
        let saved = saved(rows(&texts));
        place.file.save(&saved).unwrap();
        prop_assert!(is_same(&place.file.load(&[]).unwrap(), &saved));
        prop_assert_eq!(place.names(), ["cache"]);
    }
}

#[test]
fn a_large_one_takes_several_batches() {
    let place = LocalSnapshotFolder::new();
    let saved = saved(rows(&vec![Some(vec![7; 100_000]); 20]));
    place.file.save(&saved).unwrap();
    assert!(is_same(&place.file.load(&[]).unwrap(), &saved));
}

#[test]
fn a_file_that_was_cut_or_changed_anywhere_is_set_aside() {
    let place = LocalSnapshotFolder::new();
    place.file.save(&saved(rows(&[Some(b"a".to_vec()), None]))).unwrap();
    let whole = std::fs::read(&place.file.path).unwrap();
    assert!(place.load(&whole).is_some());
    for length in 0..whole.len() {
        assert!(place.load(&whole[..length]).is_none(), "cut after {length} bytes");
        assert_eq!(place.names(), ["cache.unusable"], "cut after {length} bytes");
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            assert!(place.load(&changed).is_none(), "bit {bit} of byte {at}");
            assert_eq!(place.names(), ["cache.unusable"]);
        }
    }
    assert!(place.load(&[whole.as_slice(), b"more"].concat()).is_none());
}

/// Rows that were wrong in memory are saved correctly, so the file's own CRC cannot detect the
/// fault.
#[test]
fn rows_without_the_checksum_of_their_state_are_set_aside() {
    let right = || saved(rows(&[Some(b"a".to_vec()), Some(b"b".to_vec()), None]));
    for canary in laredo_core::CanaryFault::ALL {
        let mut table = TableState::new(schema(), &[], 0).unwrap();
        right().table.rows.into_iter().for_each(|row| drop(table.put(row)));
        assert!(table.plant(canary));
        let place = LocalSnapshotFolder::new();
        let mut wrong = right();
        wrong.table.rows = table.rows().cloned().collect();
        place.file.save(&wrong).unwrap();
        assert!(place.file.load(&[]).is_none(), "{canary:?}");
        assert_eq!(place.names(), ["cache.unusable"], "{canary:?}");
    }
}

#[test]
fn a_file_of_another_table_or_other_filters_is_set_aside() {
    let place = LocalSnapshotFolder::new();
    place.file.save(&saved(rows(&[None]))).unwrap();
    let other = LocalSnapshotFile::new(place.file.path.clone(), request("u"));
    assert!(matches!(other.read(&[]), Err(LocalSnapshotError::Foreign(_))));
    let filtered = SyncRequest { filters: vec![Default::default()], ..request("t") };
    assert!(LocalSnapshotFile::new(place.file.path.clone(), filtered).load(&[]).is_none());
    assert_eq!(place.names(), ["cache.unusable"]);
}

#[test]
fn without_a_file_there_are_no_rows() {
    let place = LocalSnapshotFolder::new();
    assert!(place.file.load(&[]).is_none());
    assert!(place.names().is_empty());
}

#[test]
fn what_cannot_be_saved_leaves_the_old_one() {
    let place = LocalSnapshotFolder::new();
    place.file.save(&saved(rows(&[None]))).unwrap();
    // A folder is in the place of the new file, so writing fails.
    std::fs::create_dir(suffixed_path(&place.file.path, &format!("{}.new", std::process::id()))).unwrap();
    assert!(place.file.save(&saved(rows(&[None, None]))).is_err());
    assert_eq!(place.file.load(&[]).unwrap().table.len(), 1);
}

#[cfg(unix)]
#[test]
fn the_file_is_private_and_no_link_is_followed() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let folder = LocalSnapshotFolder::new();
    let other = folder.folder.path().join("other");
    std::fs::write(&other, "kept").unwrap();
    symlink(&other, suffixed_path(&folder.file.path, &format!("{}.new", std::process::id()))).unwrap();
    folder.file.save(&saved(rows(&[None]))).unwrap();
    assert_eq!(std::fs::read(&other).unwrap(), b"kept");
    let found = std::fs::symlink_metadata(&folder.file.path).unwrap();
    assert!(found.is_file());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert!(folder.file.load(&[]).is_some());
}
