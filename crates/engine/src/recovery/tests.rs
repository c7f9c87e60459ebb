//! Tests that write journals, damage them in every way, and open them again. The result must be the
//! contents up to some commit, or nothing and an error message.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laredo_core::{CanaryFault, CommitMark, CommitTime, Lsn, Sequence, SourceIdentity, TableName, TableState};
use laredo_testkit::SimDatabase;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::base::BaseWriter;
use crate::journal::tests::{begin, delete, insert, options};
use crate::journal::{BaseMergeInput, Journal, JournalWriter, ResumeOutcome, ResumeRequest};
use crate::store::{AppenderState, BaseFooter, SKIPPED, claim, unsealed};

mod fuzz_tests;

/// The texts of rows by their IDs.
type StoredRowTexts = BTreeMap<i64, String>;

const BYTES_MAX: u64 = 1 << 30;

/// Returns a folder where an fsync costs nothing, if possible.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn table() -> TableName {
    TableName::new("public", "t")
}

fn source() -> SourceServer {
    let identity = SourceIdentity { system_identifier: "s".to_owned(), timeline: 1, ..SourceIdentity::default() };
    SourceServer { identity, written: Lsn(1 << 40), started: String::new() }
}

fn with_about<T>(work: impl FnOnce(&RestoreContext<'_>) -> T) -> T {
    let instance = InstanceId("j".to_owned());
    work(&RestoreContext {
        table: &table(),
        source: &source(),
        instance: &instance,
        now: CommitTime(2),
        bytes_max: BYTES_MAX,
        pipeline: "",
    })
}

/// Begins the journal of an empty table, at sequence 1000 and position 500.
fn begin_journal(folder: &Path) -> (Journal, JournalWriter) {
    let (store, restored) = with_about(|about| open(folder, about)).unwrap();
    assert!(restored.is_none());
    let instance = InstanceId("j".to_owned());
    claim(&store, &instance, &table(), &source()).unwrap();
    let (committed_at, mark) = (CommitTime(0), CommitMark::default());
    let head = Head { sequence: Sequence(1000), position: Lsn(500), committed_at, mark, checksum: None };
    let writer = BaseWriter::kept(store.clone(), instance.clone(), RowDefinition::default()).unwrap();
    let base = Arc::new(writer.finish(head, SimDatabase::schema()).unwrap());
    let beginning = JournalBeginning::from_base(instance.clone(), base, RowDefinition::default());
    let (assigned, schema, definition) = (beginning.assigned, beginning.schema.clone(), RowDefinition::default());
    let appender =
        JournalAppender::begin(store, [].into(), AppenderState { instance, head, assigned, schema, definition })
            .unwrap();
    Journal::open(beginning, options(), Some(appender))
}

/// Opens the journal of a folder again.
fn reopen(folder: &Path) -> Option<(Journal, JournalWriter, TableState)> {
    let (_, restored) = with_about(|about| open(folder, about)).unwrap();
    let RestoredJournal { beginning, appender, rows, .. } = restored?;
    let (journal, writer) = Journal::open(beginning, options(), Some(appender));
    Some((journal, writer, rows))
}

fn rows_of(state: &TableState) -> StoredRowTexts {
    state.rows().map(|row| SimDatabase::parse(row.as_ref()).unwrap()).collect()
}

/// Commits each list of changes (`None` deletes). Returns the rows after each commit by its
/// sequence.
fn write(
    writer: &mut JournalWriter,
    rows: &mut StoredRowTexts,
    changes: &[Vec<(i64, Option<String>)>],
) -> BTreeMap<Sequence, StoredRowTexts> {
    let mut truth = BTreeMap::from([(writer.committed().sequence, rows.clone())]);
    for transaction in changes {
        begin(writer);
        for (id, body) in transaction {
            if let Some(old) = rows.remove(id) {
                delete(writer, *id, &old);
            }
            if let Some(body) = body {
                insert(writer, *id, body);
                rows.insert(*id, body.clone());
            }
        }
        writer.commit().unwrap();
        writer.publish().unwrap();
        truth.insert(writer.committed().sequence, rows.clone());
    }
    truth
}

fn some(id: i64, body: &str) -> (i64, Option<String>) {
    (id, Some(body.to_owned()))
}

/// Waits until everything is on disk.
fn sync(journal: &Journal, store: &JournalFolder) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    assert!(store.wait_for(journal.head().sequence));
}

/// Writes a small journal of a few transactions, each on disk before the next. Returns the rows
/// after each.
fn small(folder: &Path) -> BTreeMap<Sequence, StoredRowTexts> {
    let (journal, mut writer) = begin_journal(folder);
    let mut rows = StoredRowTexts::new();
    let mut truth = BTreeMap::new();
    let transactions = [
        vec![some(1, "one"), some(2, "two")],
        vec![some(1, "uno")],
        vec![(2, None), some(3, "three")],
        vec![some(4, "four")],
    ];
    for transaction in transactions {
        truth.extend(write(&mut writer, &mut rows, &[transaction]));
        sync(&journal, writer.store());
    }
    truth
}

fn copy_of(folder: &Path) -> TempDir {
    let copy = self::folder();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn only_file(folder: &Path, extension: &str) -> PathBuf {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

/// Checks that the journal has the rows of some commit, or that everything was set aside.
fn is_a_prefix(folder: &Path, truth: &BTreeMap<Sequence, StoredRowTexts>, what: &str) -> Option<Sequence> {
    match reopen(folder) {
        Some((journal, _, rows)) => {
            let sequence = journal.head().sequence;
            assert_eq!(Some(&rows_of(&rows)), truth.get(&sequence), "{what}");
            Some(sequence)
        }
        None => {
            assert!(folder.join("set-aside").is_dir(), "{what}");
            None
        }
    }
}

#[test]
fn a_journal_cut_anywhere_comes_back_up_to_its_last_whole_transaction() {
    let original = folder();
    let truth = small(original.path());
    let journal = only_file(original.path(), "journal");
    let bytes = fs::read(&journal).unwrap();
    let mut newest = Sequence(1000);
    for length in 0..bytes.len() {
        let copy = copy_of(original.path());
        fs::write(copy.path().join(journal.file_name().unwrap()), &bytes[..length]).unwrap();
        let found = is_a_prefix(copy.path(), &truth, &format!("cut at {length}"));
        let found = found.unwrap_or_else(|| panic!("cut at {length}, nothing comes back"));
        assert!(found >= newest, "cut at {length}, less comes back than of a shorter one");
        newest = found;
    }
    assert_eq!(is_a_prefix(original.path(), &truth, "whole"), truth.keys().next_back().copied());
    assert_eq!(truth.keys().rev().nth(1), Some(&newest), "the last one needs its last byte");
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let original = folder();
    let truth = small(original.path());
    for extension in ["journal", "base", "json"] {
        let path = only_file(original.path(), extension);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let copy = copy_of(original.path());
            let mut harmed = bytes.clone();
            harmed[at] ^= 1 << (at % 8);
            fs::write(copy.path().join(path.file_name().unwrap()), &harmed).unwrap();
            let what = format!("{extension}, bit {} of byte {at}", at % 8);
            match with_about(|about| open(copy.path(), about)) {
                // The manifest names another table or format. An operator must decide.
                Err(error) => assert!(extension == "json", "{what}: {error}"),
                Ok((_, None)) => assert!(copy.path().join("set-aside").is_dir(), "{what}"),
                Ok((_, Some(restored))) => {
                    let sequence = restored.beginning.head.sequence;
                    assert_eq!(Some(&rows_of(&restored.rows)), truth.get(&sequence), "{what}");
                }
            }
        }
    }
}

#[test]
fn damage_before_what_is_on_disk_for_sure_is_named() {
    let original = folder();
    small(original.path());
    let path = only_file(original.path(), "journal");
    let mut bytes = fs::read(&path).unwrap();
    // Damages the first transaction. The last record states that it is on disk.
    let first = bytes.windows(4).position(|window| window == b"lrec").unwrap();
    bytes[first + 100] ^= 4;
    fs::write(&path, &bytes).unwrap();
    let store = Arc::new(JournalFolder::open(original.path(), BYTES_MAX).unwrap());
    let Err(error) = with_about(|about| restore(&store, about)) else { panic!("it was not noticed") };
    let expected = format!("{} is damaged at byte {first}: a record is not what was written", path.display());
    assert_eq!(error.to_string(), expected);
    drop(store);
    let path = only_file(original.path(), "base");
    let base = original.path().join("0000000000000300.base");
    fs::rename(&path, &base).unwrap();
    let mut bytes = fs::read(&base).unwrap();
    bytes.insert(0, 0);
    fs::write(&base, &bytes).unwrap();
    let store = Arc::new(JournalFolder::open(original.path(), BYTES_MAX).unwrap());
    let Err(error) = with_about(|about| restore(&store, about)) else { panic!("it was not noticed") };
    assert!(error.to_string().starts_with(&format!("{} is damaged at byte ", base.display())), "{error}");
}

#[test]
fn a_journal_without_its_base_is_put_aside() {
    let folder = folder();
    small(folder.path());
    let journal = only_file(folder.path(), "journal");
    fs::remove_file(only_file(folder.path(), "base")).unwrap();
    assert!(reopen(folder.path()).is_none());
    assert!(folder.path().join("set-aside").join(journal.file_name().unwrap()).is_file());
}

/// The rows were wrong before they were written, so checksums of bytes are right.
#[test]
fn a_base_without_the_checksum_of_its_rows_is_put_aside() {
    for canary in [None].into_iter().chain(CanaryFault::ALL.map(Some)) {
        let folder = folder();
        let (journal, writer) = begin_journal(folder.path());
        let mut state = TableState::new(SimDatabase::schema(), &[], 0).unwrap();
        (1..4).for_each(|id| drop(state.put(SimDatabase::row(id, "body").as_ref().to_tuple())));
        let head = Head { checksum: Some(state.checksum()), ..journal.head() };
        assert!(canary.is_none_or(|canary| state.plant(canary)));
        let store = writer.store().clone();
        let mut base = BaseWriter::kept(store, journal.instance().clone(), RowDefinition::default()).unwrap();
        state.rows().for_each(|row| base.push(row.as_ref()).unwrap());
        drop((base.finish(head, SimDatabase::schema()).unwrap(), journal, writer));
        let (_, restored) = with_about(|about| open(folder.path(), about)).unwrap();
        let checksum = restored.map(|restored| restored.rows.checksum());
        assert_eq!(checksum, head.checksum.filter(|_| canary.is_none()), "{canary:?}");
        assert_eq!(folder.path().join("set-aside").is_dir(), canary.is_some(), "{canary:?}");
    }
}

#[test]
fn a_missing_file_is_noticed() {
    let original = folder();
    small(original.path());
    for id in 10..12 {
        let (_journal, mut writer, rows) = reopen(original.path()).unwrap();
        write(&mut writer, &mut rows_of(&rows), &[vec![some(id, "later")]]);
    }
    let mut files: Vec<_> = fs::read_dir(original.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "journal"));
    files.sort();
    assert_eq!(files.len(), 3);
    for missing in &files[..2] {
        let copy = copy_of(original.path());
        fs::remove_file(copy.path().join(missing.file_name().unwrap())).unwrap();
        let store = Arc::new(JournalFolder::open(copy.path(), BYTES_MAX).unwrap());
        let Err(error) = with_about(|about| restore(&store, about)) else { panic!("it was not noticed") };
        assert!(error.to_string().contains("a file is missing"), "{error}");
    }
}

#[test]
fn starting_again_and_again_leaves_one_file() {
    let folder = folder();
    let truth = small(folder.path());
    let files = || fs::read_dir(folder.path()).unwrap().count();
    drop(reopen(folder.path()).unwrap());
    let (before, mut assigned) = (files(), Sequence(0));
    for _ in 0..5 {
        let (journal, mut writer, rows) = reopen(folder.path()).unwrap();
        writer.advance(Lsn(journal.head().position.0 + 1), CommitMark::default());
        assert_eq!((files(), Some(&rows_of(&rows))), (before, truth.values().next_back()));
        // A server that crashed at once may have served it nevertheless.
        begin(&mut writer);
        insert(&mut writer, 50, "never committed");
        assert!(writer.sequence() > assigned);
        assigned = writer.sequence();
    }
}

#[test]
fn a_folder_has_one_server() {
    let folder = folder();
    let (_journal, writer) = begin_journal(folder.path());
    let error = with_about(|about| open(folder.path(), about).map(drop)).unwrap_err();
    assert!(
        matches!(&error, StoreError::Locked { path, holder } if path == folder.path() && holder.starts_with("process ")),
        "{error}"
    );
    drop(writer);
    assert!(reopen(folder.path()).is_some());
}

#[test]
fn what_is_of_another_table_format_or_past_is_not_taken() {
    let folder = folder();
    small(folder.path());
    let ask = |table: &TableName, source: &SourceServer| {
        let store = Arc::new(JournalFolder::open(folder.path(), BYTES_MAX).unwrap());
        let instance = &InstanceId("j".to_owned());
        restore(
            &store,
            &RestoreContext { table, source, instance, now: CommitTime(2), bytes_max: BYTES_MAX, pipeline: "" },
        )
        .map(drop)
        .unwrap_err()
    };
    let other = TableName::new("public", "u");
    assert!(ask(&other, &source()).to_string().contains("holds the data of table public.t, not of public.u"));
    let mut elsewhere = source();
    elsewhere.identity.system_identifier = "other".to_owned();
    assert!(matches!(ask(&table(), &elsewhere), StoreError::History { .. }));
    let earlier = SourceServer { written: Lsn(501), ..source() };
    assert!(ask(&table(), &earlier).to_string().contains("restored to an earlier state"));
    let manifest = folder.path().join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    assert!(matches!(ask(&table(), &source()), StoreError::Version { found: 2, .. }));
}

#[test]
fn who_was_served_what_was_lost_waits_for_it() {
    let folder = folder();
    let truth = small(folder.path());
    let last = *truth.keys().next_back().unwrap();
    let (journal, mut writer, rows) = reopen(folder.path()).unwrap();
    let position = journal.head().position;
    let ask = |journal: &Journal, sequence: Sequence, position: u64| {
        let (instance, position) = ("j".to_owned(), Some(Lsn(position)));
        journal.resolve(&ResumeRequest { instance, sequence, position, ..ResumeRequest::default() })
    };
    assert!(matches!(ask(&journal, last, position.0), ResumeOutcome::Delta(at, _) if at == last));
    // Three entries that were never synced and are lost.
    let lost = (last.plus(3), position.0 + 30);
    assert_eq!(ask(&journal, lost.0, lost.1), ResumeOutcome::Wait(Lsn(lost.1)));
    write(&mut writer, &mut rows_of(&rows), &[vec![some(7, "again")], vec![some(8, "again")], vec![some(9, "again")]]);
    assert!(writer.committed().sequence > last.plus(SKIPPED), "no sequence is given twice");
    assert_eq!(writer.committed().position, Lsn(lost.1));
    // The client resumes by its position. Its sequence may now belong to another entry.
    let all = writer.committed().sequence;
    assert!(matches!(ask(&journal, lost.0, lost.1), ResumeOutcome::Delta(at, _) if at == all));
    assert_eq!((journal.info().entries, journal.entries_after(last)), (10, 3), "what is left out does not count");
}

#[test]
fn a_writer_that_ends_amid_a_burst_says_no_more_than_what_it_wrote() {
    let folder = folder();
    let (_, mut writer) = begin_journal(folder.path());
    begin(&mut writer);
    insert(&mut writer, 1, "not visible yet");
    writer.commit().unwrap();
    let committed = writer.committed();
    drop(writer);
    let (journal, _, rows) = reopen(folder.path()).unwrap();
    let is_there = !rows_of(&rows).is_empty();
    assert_eq!(journal.head().position >= committed.position, is_there, "{:?}", journal.head());
}

#[test]
fn spans_marks_and_definitions_come_back() {
    let folder = folder();
    let (journal, mut writer) = begin_journal(folder.path());
    for (from, to, count) in [(500, 700, 2), (700, 800, 0)] {
        writer.begin(Lsn(to), CommitTime(1), Some(Lsn(from))).unwrap();
        (0..count).for_each(|id| insert(&mut writer, id, "x"));
        writer.commit().unwrap();
        writer.publish().unwrap();
    }
    let definition = RowDefinition { is_whole: true, source: "as it is now".to_owned(), pipeline: String::new() };
    writer.define(definition.clone());
    writer.advance(Lsn(900), CommitMark::default());
    drop((journal, writer));
    let (_, restored) = with_about(|about| open(folder.path(), about)).unwrap();
    let RestoredJournal { beginning, appender, definition: found, .. } = restored.unwrap();
    assert_eq!((beginning.head.position, &found), (Lsn(900), &definition));
    let (journal, _writer) = Journal::open(beginning, options(), Some(appender));
    let resolve = |at: u64| journal.resolve(&ResumeRequest { position: Some(Lsn(at)), ..Default::default() });
    for inside in [501, 699, 701, 799] {
        assert!(matches!(resolve(inside), ResumeOutcome::Full(_)), "{inside}");
    }
    for outside in [500, 700, 800, 850, 900] {
        assert!(matches!(resolve(outside), ResumeOutcome::Delta(..)), "{outside}");
    }
}

#[test]
fn the_definition_of_each_position_comes_back() {
    let named = |source: &str| RowDefinition { is_whole: true, source: source.to_owned(), pipeline: String::new() };
    let (one, two, three) = (named("one"), named("two"), named("three"));
    let folder = folder();
    let (_, mut writer) = begin_journal(folder.path());
    writer.define(one.clone());
    writer.advance(Lsn(600), CommitMark::default());
    // A copy with differences, and a definition that no transaction begins.
    writer.begin(Lsn(700), CommitTime(1), Some(Lsn(600))).unwrap();
    writer.begin_definition(two.version());
    insert(&mut writer, 1, "x");
    writer.commit().unwrap();
    writer.publish().unwrap();
    writer.define(two.clone());
    writer.advance(Lsn(800), CommitMark::default());
    begin(&mut writer);
    insert(&mut writer, 2, "x");
    writer.commit().unwrap();
    writer.publish().unwrap();
    writer.define(three.clone());
    // A copy that is aborted, and one whose record of the definition is lost.
    for is_lost in [false, true] {
        writer.begin(Lsn(900), CommitTime(1), Some(Lsn(810))).unwrap();
        writer.begin_definition(one.version());
        insert(&mut writer, 3, &"x".repeat(3_000_000));
        if is_lost { writer.commit().unwrap() } else { writer.abort() }
    }
    drop(writer);
    for round in 0..3 {
        let (journal, writer, _) = reopen(folder.path()).unwrap();
        let at = [500, 699, 700, 809, 810, 899, 900].map(|at| journal.definition_at(Lsn(at)));
        let expected = [&one, &one, &two, &two, &three, &three, &one].map(RowDefinition::version);
        assert_eq!(at, expected, "{round}");
        drop(writer);
    }
}

/// Writes a journal like a version that did not notice the change of a composite type.
#[test]
fn a_journal_with_rows_of_two_forms_is_put_aside() {
    use laredo_core::{Cell, Column, KeyColumns, Schema, TupleBuf, TypeDef, TypeKind};
    use laredo_proto::batch::EntryAction;
    let column = |name: &str, type_oid| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: String::new(),
        not_null: false,
        is_text: false,
    };
    let fields = vec![("a".to_owned(), 23), ("b".to_owned(), 23)];
    let pair = TypeDef { name: "pair".to_owned(), kind: TypeKind::Composite(fields) };
    let columns = vec![column("id", 20), column("p", 16_400)];
    let schema = Arc::new(Schema::new(columns, KeyColumns::new([0]), [(16_400, pair)].into()));
    let row = |fields: i32| -> TupleBuf {
        let null = [23_u32.to_be_bytes(), (-1_i32).to_be_bytes()].concat();
        let pair = [fields.to_be_bytes().to_vec(), null.repeat(usize::try_from(fields).unwrap())].concat();
        [Cell::Value(&1_i64.to_be_bytes()), Cell::Value(&pair)].into_iter().collect()
    };
    // The number of fields in the row of the base, and in the rows before and after an update.
    for (base_fields, old, new, is_whole) in [(2, 2, 2, true), (2, 2, 3, false), (2, 1, 2, false), (3, 3, 2, false)] {
        let folder = folder();
        let (store, _) = with_about(|about| open(folder.path(), about)).unwrap();
        let instance = InstanceId("j".to_owned());
        claim(&store, &instance, &table(), &source()).unwrap();
        let (committed_at, mark) = (CommitTime(0), CommitMark::default());
        let head = Head { sequence: Sequence(1000), position: Lsn(500), committed_at, mark, checksum: None };
        let mut base = BaseWriter::kept(store.clone(), instance.clone(), RowDefinition::default()).unwrap();
        base.push(row(base_fields).as_ref()).unwrap();
        let beginning = JournalBeginning::from_base(
            instance.clone(),
            Arc::new(base.finish(head, schema.clone()).unwrap()),
            RowDefinition::default(),
        );
        let (assigned, schema, definition) = (beginning.assigned, schema.clone(), RowDefinition::default());
        let appender =
            JournalAppender::begin(store, [].into(), AppenderState { instance, head, assigned, schema, definition })
                .unwrap();
        let (journal, mut writer) = Journal::open(beginning, options(), Some(appender));
        begin(&mut writer);
        writer.push(EntryAction::Update, row(new).as_ref(), Some(row(old).as_ref())).unwrap();
        writer.commit().unwrap();
        writer.publish().unwrap();
        drop((journal, writer));
        assert_eq!(reopen(folder.path()).is_some(), is_whole, "{base_fields} {old} {new}");
    }
}

#[test]
fn a_base_that_states_more_rows_than_it_has_is_set_aside() {
    let original = folder();
    small(original.path());
    let path = only_file(original.path(), "base");
    let bytes = fs::read(&path).unwrap();
    let (rest, length) = bytes.split_last_chunk::<8>().unwrap();
    let (frames, footer) = rest.split_at(rest.len() - usize::try_from(u64::from_be_bytes(*length)).unwrap());
    for rows in [1, 1 << 40, u64::MAX] {
        let copy = copy_of(original.path());
        let mut footer: BaseFooter = unsealed(footer).unwrap();
        footer.rows = rows;
        fs::write(copy.path().join(path.file_name().unwrap()), [frames, &footer.ending()].concat()).unwrap();
        assert!(reopen(copy.path()).is_none(), "{rows} rows are stated");
    }
}

#[derive(Clone, Debug)]
enum StoreTestStep {
    Transaction(Vec<(i64, Option<String>)>),
    Aborted(usize),
    Advance,
    Base,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<StoreTestStep>> {
    let size = prop_oneof![6 => 1..200_usize, 2 => 2000..40_000_usize, 1 => Just(700_000_usize)];
    let change = (0..12_i64, prop::option::weighted(0.8, size.prop_map(|size| "b".repeat(size))));
    let step = prop_oneof![
        10 => prop::collection::vec(change, 1..6).prop_map(StoreTestStep::Transaction),
        1 => (1..5_usize).prop_map(StoreTestStep::Aborted),
        2 => Just(StoreTestStep::Advance),
        2 => Just(StoreTestStep::Base),
        3 => Just(StoreTestStep::Reopen),
    ];
    prop::collection::vec(step, 1..30)
}

/// Makes the next base in the store.
fn merge_base(journal: &Journal, store: &Arc<JournalFolder>) {
    sync(journal, store);
    let BaseMergeInput { base, after, head, definition, .. } = journal.base_and_after();
    let writer = BaseWriter::kept(store.clone(), journal.instance().clone(), definition).unwrap();
    let next = crate::base::merge(&base, &after, head, &std::env::temp_dir(), writer).unwrap();
    journal.replace_base(Arc::new(next), tokio::time::Instant::now());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_journal_that_is_opened_again_and_again_has_the_same_rows(steps in steps()) {
        let folder = folder();
        let (mut journal, mut writer) = begin_journal(folder.path());
        let (mut rows, mut commits) = (StoredRowTexts::new(), vec![(Sequence(1000), StoredRowTexts::new())]);
        for step in steps {
            match step {
                StoreTestStep::Transaction(changes) => {
                    let written = write(&mut writer, &mut rows, &[changes]);
                    commits.extend(written.into_iter().next_back());
                }
                StoreTestStep::Aborted(count) => {
                    begin(&mut writer);
                    (0..count).for_each(|_| insert(&mut writer, 99, &"a".repeat(600_000)));
                    writer.abort();
                }
                StoreTestStep::Advance => {
                    let position = Lsn(writer.committed().position.0 + 3);
                    writer.advance(position, CommitMark::default());
                    writer.publish().unwrap();
                }
                StoreTestStep::Base => merge_base(&journal, writer.store()),
                StoreTestStep::Reopen => {
                    let head = journal.head();
                    drop((journal, writer));
                    let (reopened, its_writer, state) = reopen(folder.path()).expect("nothing is damaged");
                    prop_assert_eq!(reopened.head(), Head { checksum: Some(state.checksum()), ..head });
                    prop_assert_eq!(&rows_of(&state), &rows);
                    (journal, writer) = (reopened, its_writer);
                }
            }
        }
        commits.dedup();
        let base = journal.pin_base();
        let of_newcomer = crate::journal::tests::rows_of_newcomer(&journal, base.base());
        prop_assert_eq!(&of_newcomer, &rows);
        // A client at any commit resumes from there: it gets the right number of entries and the
        // same rows.
        for (sequence, then) in commits {
            let (mut had, mut entries) = (then, 0);
            let mut cursor = journal.cursor(sequence);
            while let Some(piece) = cursor.next_piece().unwrap() {
                entries += crate::journal::tests::apply_frames(piece.frames, sequence, &mut had);
            }
            prop_assert_eq!(&had, &rows);
            prop_assert_eq!(entries, journal.entries_after(sequence));
        }
    }
}
