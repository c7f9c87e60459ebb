//! Types inside columns that change without an announcement.

use std::collections::BTreeMap;

use laredo_core::{Oid, TypeDef, TypeKind};

use super::*;

const INT4: Oid = 23;
const PAIR: Oid = 16_400;
const OUTER: Oid = 16_401;

/// Returns the kinds of columns that contain the composite.
fn wrappers() -> Vec<Option<TypeKind>> {
    vec![
        None,
        Some(TypeKind::Array(PAIR)),
        Some(TypeKind::Domain(PAIR)),
        Some(TypeKind::Range(PAIR)),
        Some(TypeKind::Composite(vec![("inner".to_owned(), PAIR)])),
    ]
}

/// Returns a schema of `id` and a column whose type contains a composite of these fields, all int4.
fn nested_schema(wrapper: Option<&TypeKind>, fields: &[&str]) -> Arc<Schema> {
    let def = |kind| TypeDef { name: "t".to_owned(), kind };
    let fields = fields.iter().map(|name| ((*name).to_owned(), INT4)).collect();
    let mut types = BTreeMap::from([(PAIR, def(TypeKind::Composite(fields)))]);
    types.extend(wrapper.map(|kind| (OUTER, def(kind.clone()))));
    let plain = schema(&[("body", if wrapper.is_some() { OUTER } else { PAIR })]);
    Arc::new(Schema::new(plain.columns().to_vec(), plain.key().clone(), types))
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&i32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn composite(fields: &[(Oid, Vec<u8>)]) -> Vec<u8> {
    let count = i32::try_from(fields.len()).unwrap().to_be_bytes().to_vec();
    fields.iter().fold(count, |bytes, (oid, value)| [bytes, oid.to_be_bytes().to_vec(), sized(value)].concat())
}

/// Returns a row whose composite has this number of fields.
fn nested_row(wrapper: Option<&TypeKind>, id: i64, fields: usize) -> TupleBuf {
    let pair = composite(&vec![(INT4, 7_i32.to_be_bytes().to_vec()); fields]);
    let body = match wrapper {
        None | Some(TypeKind::Domain(_)) => pair,
        Some(TypeKind::Array(_)) => {
            let header: Vec<u8> = [1, 0, PAIR.cast_signed(), 1, 1].into_iter().flat_map(i32::to_be_bytes).collect();
            [header, sized(&pair)].concat()
        }
        Some(TypeKind::Range(_)) => [vec![2], sized(&pair), sized(&pair)].concat(),
        Some(TypeKind::Composite(_)) => composite(&[(PAIR, pair)]),
        Some(TypeKind::Base | TypeKind::Ascii | TypeKind::Money(_) | TypeKind::Enum(_) | TypeKind::Multirange(_)) => {
            unreachable!("not among the wrappers")
        }
    };
    row(id, &body)
}

#[test]
fn a_row_of_a_type_that_changed_reaches_no_reader_before_the_copy() {
    for wrapper in wrappers() {
        let wrapper = wrapper.as_ref();
        for (before, after) in [(2, 3), (2, 1)] {
            let names = ["a", "b", "c"];
            let (old, new) = (nested_schema(wrapper, &names[..before]), nested_schema(wrapper, &names[..after]));
            let (mut table, journal) = live(options(), &old, &[nested_row(wrapper, 1, before)]);
            let head = journal.head();
            let [same, other] = [nested_row(wrapper, 2, before), nested_row(wrapper, 3, after)];
            // Both rows are in one transaction, so the shape of the columns does not show the
            // change.
            let changes = [same.as_ref(), other.as_ref()].map(|new| RawChange::Insert { new });
            assert_eq!(table.on_commit(commit(&old, 20, 1024, changes)).unwrap(), FollowUpAction::Copy, "{wrapper:?}");
            assert_eq!(journal.head(), head);
            let all = [1, 2, 3].map(|id| nested_row(wrapper, id, after));
            copy(&mut table, &new, below(21), &all);
            table.on_progress(Lsn(30), None, CommitMark::default()).unwrap();
            assert_eq!(
                published_actions(&journal, head.sequence),
                [vec![EntryAction::Truncate], vec![EntryAction::Insert; 3]].concat()
            );
            let form = laredo_values::NestedForm::new(journal.schema());
            let live = table.lifecycle.served().unwrap();
            assert!(live.state.rows().all(|row| form.fits(row.as_ref())), "{wrapper:?}");
        }
    }
}

#[test]
fn a_type_that_changed_changes_all_rows() {
    for wrapper in wrappers() {
        let wrapper = wrapper.as_ref();
        let cases: [(&[&str], usize); 3] = [(&["a", "b", "c"], 3), (&["a"], 1), (&["a", "renamed"], 2)];
        for (fields, count) in cases {
            let (mut table, journal) =
                live(options(), &nested_schema(wrapper, &["a", "b"]), &[nested_row(wrapper, 1, 2)]);
            let head = journal.head();
            table.on_moved(owed("a type changed")).unwrap();
            let new = nested_schema(wrapper, fields);
            copy(&mut table, &new, below(20), &[nested_row(wrapper, 1, count)]);
            table.on_progress(Lsn(20), None, CommitMark::default()).unwrap();
            assert_eq!(
                published_actions(&journal, head.sequence),
                [EntryAction::Truncate, EntryAction::Insert],
                "{wrapper:?} {fields:?}"
            );
            assert_eq!(*journal.schema(), *new);
        }
    }
}

#[test]
fn a_copy_with_rows_of_two_forms_is_made_again() {
    for wrapper in wrappers() {
        let wrapper = wrapper.as_ref();
        let schema = nested_schema(wrapper, &["a", "b"]);
        let (mut table, _journal) = table(options());
        // A field was added during the copy, and removed again before its end.
        table.on_copy(begin(&schema, below(20))).unwrap();
        let copied = [nested_row(wrapper, 1, 2), nested_row(wrapper, 2, 3)];
        assert_eq!(table.on_copy(rows(&copied)).unwrap(), FollowUpAction::CopyLater, "{wrapper:?}");
        copy(&mut table, &schema, below(21), &[1, 2].map(|id| nested_row(wrapper, id, 2)));
        table.on_progress(Lsn(30), None, CommitMark::default()).unwrap();
        assert_eq!(table.lifecycle.served().unwrap().state.len(), 2);
    }
}

#[test]
fn what_is_held_must_have_the_form_of_the_copy() {
    let (old, new) = (nested_schema(None, &["a", "b"]), nested_schema(None, &["a", "b", "c"]));
    let (mut table, journal) = live(options(), &old, &[nested_row(None, 1, 2)]);
    table.on_moved(owed("a type changed")).unwrap();
    // The transaction wrote before the type changed, and commits after the copy has begun.
    table.on_copy(begin(&new, below(20))).unwrap();
    table.on_copy(rows(&[nested_row(None, 1, 3)])).unwrap();
    let late = nested_row(None, 2, 2);
    let insert = [RawChange::Insert { new: late.as_ref() }];
    table.on_commit(commit(&old, 20, 1024, insert)).unwrap();
    let end = CopyEvent::End { inserted: Lsn(25), definition: String::new(), is_streamed: false };
    assert_eq!(table.on_copy(end).unwrap(), FollowUpAction::CopyLater);
    copy(&mut table, &new, below(21), &[nested_row(None, 1, 3), nested_row(None, 2, 3)]);
    table.on_progress(Lsn(30), None, CommitMark::default()).unwrap();
    assert_eq!((journal.head().position, table.lifecycle.served().unwrap().state.len()), (Lsn(30), 2));
}

#[test]
fn transactions_of_another_form_are_not_journaled_one_by_one() {
    // The type was changed, and changed back while the table was copied, so the schema is as
    // before.
    let schema = nested_schema(None, &["a", "b"]);
    let (mut table, journal) = live(options(), &schema, &[nested_row(None, 1, 2)]);
    let head = journal.head();
    table.on_moved(owed("rewritten")).unwrap();
    let between = nested_row(None, 2, 3);
    table.on_commit(commit(&schema, 12, 1024, [RawChange::Insert { new: between.as_ref() }])).unwrap();
    table.on_copy(begin(&schema, below(15))).unwrap();
    table.on_copy(rows(&[nested_row(None, 1, 2), nested_row(None, 2, 2)])).unwrap();
    table.on_copy(CopyEvent::End { inserted: Lsn(16), definition: String::new(), is_streamed: true }).unwrap();
    table.on_progress(Lsn(20), None, CommitMark::default()).unwrap();
    assert_eq!(published_actions(&journal, head.sequence), [EntryAction::Insert], "the difference alone");
    let row = table.lifecycle.served().unwrap().state.get_like(between.as_ref()).cloned();
    assert_eq!(row.unwrap().as_ref().bytes(), nested_row(None, 2, 2).as_ref().bytes());
}

#[test]
fn a_transaction_that_is_known_already_is_not_looked_into() {
    let schema = nested_schema(None, &["a", "b"]);
    let (mut table, _journal) = live(options(), &schema, &[nested_row(None, 1, 2)]);
    let older = nested_row(None, 1, 3);
    let update = [RawChange::Update { old: None, new: older.as_ref() }];
    assert_eq!(table.on_commit(commit(&schema, 9, 1024, update)).unwrap(), FollowUpAction::Nothing);
}
