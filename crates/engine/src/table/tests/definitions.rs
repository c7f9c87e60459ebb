//! The definition that the rows have, and the position from which on they have it.

use laredo_core::DefinitionVersion;

use super::*;
use crate::journal::{ResumeOutcome, ResumeRequest};
use crate::store::RowDefinition;

fn version(source: &str) -> DefinitionVersion {
    RowDefinition { is_whole: true, source: source.to_owned(), pipeline: String::new() }.version()
}

fn copy_under(table: &mut Table, definition: &str, is_streamed: bool, xid: u64, of: &[TupleBuf]) {
    table.on_copy(begin(&schema(&[("body", 25)]), below(xid))).unwrap();
    table.on_copy(rows(of)).unwrap();
    let definition = definition.to_owned();
    table.on_copy(CopyEvent::End { inserted: Lsn(xid), definition, is_streamed }).unwrap();
    table.on_progress(Lsn(xid), None, CommitMark::default()).unwrap();
}

/// Returns a table that was copied under the definition `one`, at position 10.
fn copied_under_one(options: TableOptions) -> (Table, Journal) {
    let (mut table, journal) = table(options);
    copy_under(&mut table, "one", false, 10, &[row(1, b"one")]);
    let journal = journal.borrow().clone().expect("the copy is complete");
    (table, journal)
}

/// Returns the definitions that batches carry after `after`.
fn brought(journal: &Journal, after: Sequence) -> Vec<DefinitionVersion> {
    let mut cursor = journal.cursor(after);
    let mut brought = Vec::new();
    while let Some(piece) = cursor.next_piece().unwrap() {
        let frames = crate::journal::frames(piece.frames);
        brought.extend(frames.map(|frame| DefinitionVersion(frame.batch.definition)));
    }
    brought
}

/// Resolves the request of a client that comes from another server, with rows of a definition.
fn comes(journal: &Journal, position: u64, definition: &str) -> ResumeOutcome {
    let (instance, position, definition) = ("another".to_owned(), Some(Lsn(position)), version(definition));
    journal.resolve(&ResumeRequest { instance, position, definition, ..ResumeRequest::default() })
}

const DIFFERS: ResumeOutcome = ResumeOutcome::Full("definition differs");

#[test]
fn a_copy_under_another_definition_brings_it_with_its_first_change() {
    let (mut table, journal) = copied_under_one(options());
    let head = journal.head();
    assert_eq!(journal.definition_at(Lsn(10)), version("one"));
    table.on_moved(owed("a partition is gone")).unwrap();
    copy_under(&mut table, "two", false, 20, &[row(2, b"two")]);
    assert_eq!(brought(&journal, head.sequence), [version("two")]);
    assert_eq!([10, 19, 20, 30].map(|at| journal.definition_at(Lsn(at))), ["one", "one", "two", "two"].map(version));
    assert!(matches!(comes(&journal, 10, "one"), ResumeOutcome::Delta(at, _) if at == head.sequence));
    assert!(matches!(comes(&journal, 20, "two"), ResumeOutcome::Delta(..)));
    assert_eq!([comes(&journal, 10, "two"), comes(&journal, 20, "one")], [DIFFERS, DIFFERS]);
    assert!(journal.is_base_outdated(), "newcomers need not go through it");
    // Another copy of the same definition does not carry it again.
    let head = journal.head();
    table.on_moved(owed("reload")).unwrap();
    copy_under(&mut table, "two", false, 30, &[row(3, b"three")]);
    assert_eq!(brought(&journal, head.sequence), [DefinitionVersion::UNKNOWN]);
}

#[test]
fn a_definition_counts_also_where_no_row_differs() {
    let (mut table, journal) = copied_under_one(options());
    let head = journal.head();
    table.on_moved(owed("a partition is attached")).unwrap();
    copy_under(&mut table, "two", false, 20, &[row(1, b"one")]);
    table.on_moved(owed("a column's default changed")).unwrap();
    copy_under(&mut table, "three", true, 30, &[row(1, b"one")]);
    table.on_redefined(Redefinition { definition: "four".to_owned(), from: Lsn(35), values: Vec::new() }).unwrap();
    assert_eq!(journal.definition_at(Lsn(30)), version("three"), "the stream is not there yet");
    table.on_progress(Lsn(40), None, CommitMark::default()).unwrap();
    let at = [10, 20, 29, 30, 39, 40].map(|at| journal.definition_at(Lsn(at)));
    assert_eq!(at, ["one", "two", "two", "three", "three", "four"].map(version));
    assert_eq!(brought(&journal, head.sequence), []);
    // Another server may have noticed each of them earlier or later, but the rows are the same.
    for (position, definition) in [(40, "four"), (40, "three"), (40, "one"), (10, "four")] {
        assert!(
            matches!(comes(&journal, position, definition), ResumeOutcome::Delta(..)),
            "{definition} at {position}"
        );
    }
    assert_eq!(comes(&journal, 40, "five"), DIFFERS);
    assert!(!journal.is_base_outdated());
    // The next transaction does not carry a definition that no transaction began.
    let new = row(2, b"two");
    table.on_commit(commit(&schema(&[("body", 25)]), 41, 1024, [RawChange::Insert { new: new.as_ref() }])).unwrap();
    table.writer().unwrap().publish().unwrap();
    assert_eq!(brought(&journal, head.sequence), [DefinitionVersion::UNKNOWN]);
}

#[test]
fn other_filters_make_another_definition() {
    let filtered = |value: &str| {
        let mut options = options();
        let test = laredo_values::MatchCondition::Equals(laredo_values::Value::String(value.to_owned()));
        options.pipeline.filters.push(laredo_values::Predicate { field: "body".to_owned(), test });
        options
    };
    let [plain, one, same, two] =
        [options(), filtered("one"), filtered("one"), filtered("two")].map(|options| copied_under_one(options).1);
    let [plain, one, same, two] = [plain, one, same, two].map(|journal| journal.definition_at(Lsn(10)));
    assert_eq!((plain, one), (version("one"), same));
    assert!(one != plain && two != plain && one != two);
}

#[test]
fn a_source_that_names_no_definitions_has_none() {
    assert!(!version("").is_known());
    assert_eq!(version("one").to_string(), "7692c3ad3540bb80", "the first bytes of its SHA-256");
}
