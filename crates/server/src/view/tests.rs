//! Tests of a schema change inside a transaction, in each kind of view.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{
    Cell, Column, CommitMark, CommitTime, KeyColumns, Lsn, Schema, Sequence, TableName, TupleBuf, TypeDef, TypeKind,
};
use laredo_engine::base::BaseWriter;
use laredo_engine::journal::{Head, InstanceId, Journal, JournalOptions, JournalWriter, frames};
use laredo_engine::{CellReplacement, HashKey, ValueMask};
use laredo_proto::batch::EntryAction;
use laredo_proto::frame::PREFIX_LENGTH;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{RowEncoding, SyncResponse};
use laredo_values::{MatchCondition, Predicate, Value};
use prost::Message as _;

use super::{ColumnRules, ConditionOrigins, EntryMode, JournalViews, RowSelection, ViewCursor};

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
    walk_under(&hiding(hidden), journal, encoding, filter, after)
}

fn hiding(columns: &[&str]) -> ColumnRules {
    ColumnRules::new(columns.iter().map(|column| (*column).to_owned()).collect(), Vec::new())
}

fn masking(column: &str, mask: CellReplacement) -> ColumnRules {
    ColumnRules::new(Vec::new(), vec![(column.to_owned(), mask)])
}

fn fixed(text: &str) -> CellReplacement {
    CellReplacement::Mask(ValueMask::Fixed(text.to_owned()))
}

fn walk_under(
    rules: &ColumnRules,
    journal: &Journal,
    encoding: RowEncoding,
    filter: Option<(&str, &str)>,
    after: u64,
) -> Vec<u8> {
    let view =
        JournalViews::new("main", TableName::new("public", "t"), 1 << 20).get(encoding, &conditions(filter), rules);
    let mut walk = ViewCursor::new(view.unwrap(), journal.schema(), Sequence(after), EntryMode::Ordinary);
    walk.load(journal.cursor(Sequence(after)).next_piece().unwrap().unwrap());
    let mut out = Vec::new();
    while let Some(chunk) = walk.next_chunk().unwrap() {
        out.extend_from_slice(&chunk.bytes);
    }
    out
}

fn conditions(filter: Option<(&str, &str)>) -> Arc<[Predicate]> {
    let test = |value: &str| MatchCondition::Equals(Value::String(value.to_owned()));
    filter.iter().map(|(field, value)| Predicate { field: (*field).to_owned(), test: test(value) }).collect()
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
    let views = JournalViews::new("main", TableName::new("public", "t"), 1 << 20);
    let view = views.get(RowEncoding::Struct, &Arc::default(), &hiding(&["a"])).unwrap();
    let error = view.selection(&schema(&["a", "b"])).unwrap_err();
    assert_eq!(error, super::ViewError::HiddenKey("a".to_owned()));
    assert!(view.selection(&schema(&["c", "b"])).is_ok(), "a column of that name is not in every schema");
}

/// Returns the messages of a walk with all their values, as text.
fn shown(bytes: &[u8]) -> String {
    let (mut bytes, mut shown) = (bytes, String::new());
    while let Some(length) = laredo_proto::frame::length(bytes) {
        let (message, rest) = bytes[PREFIX_LENGTH..].split_at(length);
        bytes = rest;
        shown.push_str(&format!("{:?}\n", SyncResponse::decode(message).unwrap()));
    }
    shown
}

#[test]
fn a_masked_column_shows_its_mask_in_rows_old_rows_and_schemas_and_may_select_rows() {
    let (journal, mut writer) = journal();
    write(&mut writer);
    let rules = masking("b", fixed("masked"));
    let bytes = walk_under(&rules, &journal, RowEncoding::Struct, None, 100);
    let wanted = ["101 INSERT 0/3E9 1", "102 1->2", "103 INSERT 0/3EB 2", "104 INSERT 0/3EC 2", "105 UPDATE 0/7D0 2"];
    assert_eq!(structs(&bytes), wanted, "the column is there");
    let text = shown(&bytes);
    assert_eq!(text.matches("StringValue(\"masked\")").count(), 4, "two inserts, an old row and a new one: {text}");
    for secret in ["x", "y", "z"] {
        assert!(!text.contains(&format!("StringValue(\"{secret}\")")), "{secret}: {text}");
    }
    let seen = structs(&walk_under(&rules, &journal, RowEncoding::Struct, Some(("b", "y")), 100));
    assert_eq!(seen, ["102 1->2", "104 INSERT 0/3EC 2", "105 DELETE 0/7D0 0"], "conditions see the values");
    let bytes = walk_under(&rules, &journal, RowEncoding::PostgresBinary, None, 100);
    let cell = |value: &[u8]| [&u32::try_from(value.len()).unwrap().to_be_bytes(), value].concat();
    let count = |cell: &[u8]| bytes.windows(cell.len()).filter(|bytes| *bytes == cell).count();
    assert_eq!(count(&cell(b"masked")), 3);
    for secret in [b"x", b"y", b"z"].map(|value| cell(value)) {
        assert_eq!(count(&secret), 0, "{secret:?} is in {bytes:?}");
    }
}

/// Returns a schema with the key `id`, and columns of types that are not text.
fn typed_schema() -> Arc<Schema> {
    let column = |(name, type_oid, type_name): (&str, u32, &str)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: 24,
        type_name: type_name.to_owned(),
        not_null: true,
        is_text: false,
    };
    let labels = TypeKind::Enum(vec!["sad".to_owned()]);
    let def = |name: &str, kind| TypeDef { name: name.to_owned(), kind };
    let types = [(16_400, def("mood", labels)), (16_401, def("odd", TypeKind::Base))].into();
    let columns = [("id", 20, "bigint"), ("mood", 16_400, "mood"), ("odd", 16_401, "odd"), ("born", 1082, "date")];
    Arc::new(Schema::new(columns.into_iter().map(column).collect(), KeyColumns::new([0]), types))
}

#[test]
fn a_masked_column_becomes_text_and_null_stays_null() {
    let partial = CellReplacement::Mask(ValueMask::Partial { keep_first: 4, keep_last: 0, with: '?' });
    let hash = CellReplacement::Hash(HashKey::new(b"0123456789abcdef").unwrap());
    let masked = [("mood", hash), ("odd", fixed("-")), ("born", partial)];
    let masked = masked.map(|(column, mask)| (column.to_owned(), mask)).to_vec();
    let table = typed_schema();
    let row: TupleBuf =
        [Cell::Value(&7_i64.to_be_bytes()), Cell::Value(b"sad"), Cell::Null, Cell::Value(&1_i32.to_be_bytes())]
            .into_iter()
            .collect();
    let show = |rules: &ColumnRules| {
        let selection = RowSelection::bind(&[], rules, &table).unwrap();
        let mut scratch = TupleBuf::new();
        let text = |cell: Cell<'_>| cell.value().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let cells: Vec<_> = selection.show(row.as_ref(), &mut scratch).cells().skip(1).map(text).collect();
        (selection.schema().clone(), cells)
    };
    let (schema, cells) = show(&ColumnRules::new(Vec::new(), masked.clone()));
    // printf %s sad | openssl dgst -sha256 -hmac 0123456789abcdef
    let mood = "7044f9603e31472dfff4823640ff817e517408e78cf41e8bfd05cad6db6659ee".to_owned();
    assert_eq!(cells, [Some(mood), None, Some("2000??????".to_owned())]);
    for column in &schema.columns()[1..] {
        assert_eq!((column.type_oid, column.type_modifier, column.type_name.as_str()), (25, -1, "text"), "{column:?}");
        assert!(column.not_null && !column.is_text, "{column:?}");
    }
    let types: Vec<u32> = schema.types().keys().copied().collect();
    assert_eq!(types, [25], "the definitions of masked types are not sent");
    let (schema, cells) = show(&ColumnRules::new(vec!["mood".to_owned()], masked));
    assert_eq!((schema.columns().len(), cells), (3, vec![None, Some("2000??????".to_owned())]));
}

#[test]
fn a_mask_that_does_not_fit_its_column_is_refused() {
    let error = |column: &str, mask| {
        let bound = RowSelection::bind(&[], &masking(column, mask), &typed_schema());
        let status = crate::refusal::view(&bound.unwrap_err(), &ConditionOrigins::default());
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        status.message().to_owned()
    };
    let hash = || CellReplacement::Hash(HashKey::new(b"0123456789abcdef").unwrap());
    for mask in [hash(), fixed("-")] {
        assert!(error("id", mask).contains("masks column `id`, which is part of the key"));
    }
    let said = error("odd", hash());
    assert!(said.contains("masks column `odd` of type odd, and laredo cannot print its values"), "{said}");
    assert!(RowSelection::bind(&[], &masking("none", hash()), &typed_schema()).is_ok(), "it is not in every schema");
}

#[test]
fn clients_share_a_view_only_if_they_receive_the_same_columns() {
    let views = JournalViews::new("main", TableName::new("public", "t"), 1 << 20);
    let hash = |key: &[u8]| masking("b", CellReplacement::Hash(HashKey::new(key).unwrap()));
    let rules = [
        ColumnRules::default(),
        hiding(&["b"]),
        masking("b", fixed("1")),
        masking("b", fixed("2")),
        hash(b"0123456789abcdef"),
        hash(b"0123456789abcdeg"),
    ];
    let of = |rules: &ColumnRules| views.get(RowEncoding::Struct, &Arc::default(), rules).unwrap();
    let all: Vec<_> = rules.iter().map(of).collect();
    for (one, rules) in all.iter().zip(&rules) {
        let again = of(rules);
        assert_eq!(all.iter().filter(|other| Arc::ptr_eq(other, &again)).count(), 1);
        assert!(Arc::ptr_eq(one, &again), "{rules:?}");
        let binary = views.get(RowEncoding::PostgresBinary, &Arc::default(), rules);
        assert_eq!(binary.is_none(), rules.is_empty(), "{rules:?}");
    }
}
