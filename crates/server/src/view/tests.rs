//! Tests of a schema change inside a transaction, in each kind of view.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Cell, Column, CommitMark, CommitTime, KeyColumns, Lsn, Schema, Sequence, TableName, TupleBuf};
use laredo_engine::base::BaseWriter;
use laredo_engine::journal::{Head, InstanceId, Journal, JournalOptions, JournalWriter, frames};
use laredo_proto::batch::EntryAction;
use laredo_proto::frame::PREFIX_LENGTH;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{RowEncoding, SyncResponse};
use laredo_values::{MatchCondition, Predicate, Value};
use prost::Message as _;

use super::{EntryMode, JournalViews, ViewCursor};

fn schema(names: &[&str]) -> Arc<Schema> {
    let column = |name: &&str| Column {
        name: (*name).to_owned(),
        type_oid: 25,
        type_modifier: -1,
        type_name: "text".to_owned(),
        not_null: false,
        is_text: false,
    };
    Arc::new(Schema::new(names.iter().map(column).collect(), KeyColumns::new([0]), Default::default()))
}

fn row(cells: &[&str]) -> TupleBuf {
    cells.iter().map(|cell| Cell::Value(cell.as_bytes())).collect()
}

fn journal() -> (Journal, JournalWriter) {
    let folder = std::env::temp_dir();
    let (committed_at, mark) = (CommitTime(0), CommitMark::default());
    let head = Head { sequence: Sequence(100), position: Lsn(1000), committed_at, mark, checksum: None };
    let base = BaseWriter::new(&folder).unwrap().finish(head, schema(&["a"])).unwrap();
    let (entries_max, bytes_max) = (1000, 1 << 20);
    let options = JournalOptions {
        entries_max,
        age_max: Duration::from_secs(60),
        bytes_max,
        memory_bytes_max: bytes_max,
        folder,
    };
    Journal::new(InstanceId("test".to_owned()), options, Arc::new(base))
}

/// Writes one transaction: a row, then a column `b` and two rows with it, of which the second is
/// updated.
fn write(writer: &mut JournalWriter) {
    writer.begin(Lsn(2000), CommitTime(1), None).unwrap();
    writer.push(EntryAction::Insert, row(&["one"]).as_ref(), None).unwrap();
    writer.change_schema(&schema(&["a", "b"]));
    writer.push(EntryAction::Insert, row(&["two", "x"]).as_ref(), None).unwrap();
    writer.push(EntryAction::Insert, row(&["three", "y"]).as_ref(), None).unwrap();
    writer.push(EntryAction::Update, row(&["three", "z"]).as_ref(), Some(row(&["three", "y"]).as_ref())).unwrap();
    writer.commit().unwrap();
    writer.publish().unwrap();
}

fn walk(journal: &Journal, encoding: RowEncoding, filter: Option<(&str, &str)>, after: u64) -> Vec<u8> {
    walk_without(&[], journal, encoding, filter, after)
}

fn walk_without(
    hidden: &[&str],
    journal: &Journal,
    encoding: RowEncoding,
    filter: Option<(&str, &str)>,
    after: u64,
) -> Vec<u8> {
    let hidden: Vec<String> = hidden.iter().map(|column| (*column).to_owned()).collect();
    let test = |value: &str| MatchCondition::Equals(Value::String(value.to_owned()));
    let predicates: Arc<[_]> =
        filter.iter().map(|(field, value)| Predicate { field: (*field).to_owned(), test: test(value) }).collect();
    let view = JournalViews::new(TableName::new("public", "t"), 1 << 20).get(encoding, &predicates, &hidden).unwrap();
    let mut walk = ViewCursor::new(view, journal.schema(), Sequence(after), EntryMode::Ordinary);
    walk.load(journal.cursor(Sequence(after)).next_piece().unwrap().unwrap());
    let mut out = Vec::new();
    while let Some(chunk) = walk.next_chunk().unwrap() {
        out.extend_from_slice(&chunk.bytes);
    }
    out
}

/// Returns a short form of the messages that a reader of Structs receives.
fn structs(mut bytes: &[u8]) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(length) = laredo_proto::frame::length(bytes) {
        let (message, rest) = bytes[PREFIX_LENGTH..].split_at(length);
        bytes = rest;
        seen.push(match SyncResponse::decode(message).unwrap().message.unwrap() {
            Message::JournalEntry(entry) => {
                let fields = entry.new_values.map_or(0, |row| row.fields.len());
                format!("{} {} {} {fields}", entry.sequence, entry.action, entry.source_position)
            }
            Message::SchemaChange(notice) => {
                format!("{} {}->{}", notice.sequence, notice.old_columns.len(), notice.new_columns.len())
            }
            other => panic!("{other:?}"),
        });
    }
    seen
}

#[test]
fn structs_show_the_new_columns_in_their_place() {
    let (journal, mut writer) = journal();
    write(&mut writer);
    let all = structs(&walk(&journal, RowEncoding::Struct, None, 100));
    let wanted = ["101 INSERT 0/3E9 1", "102 1->2", "103 INSERT 0/3EB 2", "104 INSERT 0/3EC 2", "105 UPDATE 0/7D0 2"];
    assert_eq!(all, wanted);
    for after in 101..105 {
        let rest = structs(&walk(&journal, RowEncoding::Struct, None, after));
        assert_eq!(rest, wanted[after as usize - 100..], "from the middle of a frame: {after}");
    }
}

#[test]
fn a_filter_is_bound_to_each_schema() {
    let (journal, mut writer) = journal();
    write(&mut writer);
    // The last entry that is let through carries the end. If none of the last frame is, an entry
    // without values does.
    let seen = structs(&walk(&journal, RowEncoding::Struct, Some(("b", "y")), 100));
    assert_eq!(seen, ["102 1->2", "104 INSERT 0/3EC 2", "105 DELETE 0/7D0 0"]);
    let seen = structs(&walk(&journal, RowEncoding::Struct, Some(("a", "one")), 100));
    assert_eq!(seen, ["101 INSERT 0/3E9 1", "102 1->2", "105  0/7D0 0"]);
}

#[test]
fn filtered_batches_keep_the_schema_and_the_end() {
    let (journal, mut writer) = journal();
    write(&mut writer);
    let batches: Vec<_> = frames(walk(&journal, RowEncoding::PostgresBinary, Some(("a", "one")), 100).into()).collect();
    let short: Vec<_> = batches.iter().map(|f| (f.batch.count, f.batch.schema.is_some(), f.header.ends)).collect();
    assert_eq!(short, [(1, false, false), (0, true, true)]);
    assert_eq!(batches[1].header.position, Lsn(2000));
}

#[test]
fn a_hidden_column_is_in_no_row_and_no_schema_and_may_select_rows() {
    let (journal, mut writer) = journal();
    write(&mut writer);
    let seen = structs(&walk_without(&["b"], &journal, RowEncoding::Struct, None, 100));
    let wanted = ["101 INSERT 0/3E9 1", "103 INSERT 0/3EB 1", "104 INSERT 0/3EC 1", "105 UPDATE 0/7D0 1"];
    assert_eq!(seen, wanted, "a reader without the column is sent no new columns");
    let seen = structs(&walk_without(&["b"], &journal, RowEncoding::Struct, Some(("b", "y")), 100));
    assert_eq!(seen, ["104 INSERT 0/3EC 1", "105 DELETE 0/7D0 0"]);
    let bytes = walk_without(&["b"], &journal, RowEncoding::PostgresBinary, None, 100);
    let cell = |value: &[u8]| [&1_u32.to_be_bytes(), value].concat();
    for secret in [b"x", b"y", b"z"].map(|value| cell(value)) {
        assert!(!bytes.windows(5).any(|bytes| bytes == secret), "{secret:?} is in {bytes:?}");
    }
    let batches: Vec<_> = frames(bytes.into()).collect();
    let columns = batches.iter().filter_map(|f| f.batch.schema.as_ref()).map(|schema| schema.columns.len());
    assert_eq!(columns.collect::<Vec<_>>(), [1]);
    assert_eq!(batches.iter().map(|f| f.batch.count).sum::<u32>(), 4);
}

#[test]
fn a_hidden_column_that_is_part_of_the_key_is_refused() {
    let hidden = ["a".to_owned()];
    let views = JournalViews::new(TableName::new("public", "t"), 1 << 20);
    let view = views.get(RowEncoding::Struct, &Arc::default(), &hidden).unwrap();
    let error = view.selection(&schema(&["a", "b"])).unwrap_err();
    assert_eq!(error, super::ViewError::HiddenKey("a".to_owned()));
    assert!(view.selection(&schema(&["c", "b"])).is_ok(), "a column of that name is not in every schema");
}

#[test]
fn clients_share_a_view_only_if_they_receive_the_same_columns() {
    let views = JournalViews::new(TableName::new("public", "t"), 1 << 20);
    let (hidden, no_filter) = (["b".to_owned()], Arc::default());
    let of = |hidden: &[String]| views.get(RowEncoding::Struct, &no_filter, hidden).unwrap();
    let (whole, part) = (of(&[]), of(&hidden));
    assert!(Arc::ptr_eq(&whole, &of(&[])) && Arc::ptr_eq(&part, &of(&hidden)) && !Arc::ptr_eq(&whole, &part));
    assert!(views.get(RowEncoding::PostgresBinary, &no_filter, &[]).is_none());
    assert!(views.get(RowEncoding::PostgresBinary, &no_filter, &hidden).is_some());
}
