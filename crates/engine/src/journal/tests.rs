//! Tests of the writer, the merging of bases and readers together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Key, KeyColumns, Lsn, Sequence};
use laredo_proto::batch::{BatchEntries, EntryAction};
use laredo_testkit::SimDatabase;
use tokio::time::Instant;

use super::{BaseMergeInput, CursorError, Head, InstanceId, Journal, JournalOptions, JournalWriter, frames};
use crate::base::{self, Base, BaseWriter};

/// The texts of rows by their IDs.
pub(crate) type JournalRowTexts = BTreeMap<i64, String>;

pub(crate) fn options() -> JournalOptions {
    JournalOptions {
        entries_max: 1_000_000,
        age_max: Duration::from_secs(3600),
        bytes_max: 1 << 40,
        memory_bytes_max: 1 << 40,
        folder: std::env::temp_dir(),
    }
}

/// Returns the journal of an empty table at sequence 1000 and position 500.
pub(crate) fn journal(options: JournalOptions) -> (Journal, JournalWriter) {
    let (committed_at, mark) = (CommitTime(0), CommitMark::default());
    let head = Head { sequence: Sequence(1000), position: Lsn(500), committed_at, mark, checksum: None };
    let base = BaseWriter::new(&std::env::temp_dir()).unwrap().finish(head, SimDatabase::schema()).unwrap();
    Journal::new(InstanceId("j".to_owned()), options, Arc::new(base))
}

pub(crate) fn insert(writer: &mut JournalWriter, id: i64, body: &str) {
    writer.push(EntryAction::Insert, SimDatabase::row(id, body).as_ref(), None).unwrap();
}

pub(crate) fn delete(writer: &mut JournalWriter, id: i64, old: &str) {
    let old = SimDatabase::row(id, old);
    let key: Key = KeyColumns::new([0]).key_of(old.as_ref());
    writer.push(EntryAction::Delete, key.as_ref(), Some(old.as_ref())).unwrap();
}

pub(crate) fn begin(writer: &mut JournalWriter) {
    let position = Lsn(writer.committed().position.0 + 10);
    writer.begin(position, CommitTime(1), None).unwrap();
}

pub(crate) fn commit(writer: &mut JournalWriter, changes: impl FnOnce(&mut JournalWriter)) {
    begin(writer);
    changes(writer);
    writer.commit().unwrap();
    writer.publish().unwrap();
}

pub(crate) fn rows_of_base(base: &Base) -> JournalRowTexts {
    let mut rows = JournalRowTexts::new();
    base.for_each_row::<base::BaseError>(|row| {
        let (id, body) = SimDatabase::parse(row).unwrap();
        assert!(rows.insert(id, body).is_none(), "row {id} is there twice");
        Ok(())
    })
    .unwrap();
    assert_eq!(rows.len() as u64, base.rows());
    rows
}

/// Returns the rows of a new client that receives this base and everything after it.
pub(crate) fn rows_of_newcomer(journal: &Journal, base: &Base) -> JournalRowTexts {
    let mut rows = rows_of_base(base);
    let mut cursor = journal.cursor(base.sequence());
    while let Some(piece) = cursor.next_piece().unwrap() {
        assert!(piece.last <= journal.head().sequence, "beyond the head");
        apply_frames(piece.frames, base.sequence(), &mut rows);
    }
    rows
}

/// Applies the entries after `after`, and returns their number.
pub(crate) fn apply_frames(run: bytes::Bytes, after: Sequence, rows: &mut JournalRowTexts) -> u64 {
    let mut applied = 0;
    for frame in frames(run).filter(|frame| frame.header.last_sequence > after) {
        for entry in BatchEntries::new(&frame.batch.entries, &SimDatabase::schema()) {
            let entry = entry.unwrap();
            applied += 1;
            match entry.action {
                EntryAction::Insert | EntryAction::Update => {
                    let (id, body) = SimDatabase::parse(entry.row).unwrap();
                    rows.insert(id, body);
                }
                EntryAction::Delete => {
                    let id = entry.row.cell(0).value().unwrap().try_into().unwrap();
                    rows.remove(&i64::from_be_bytes(id));
                }
                EntryAction::Truncate => rows.clear(),
            }
        }
    }
    applied
}

/// Makes the next base and replaces the current one with it.
pub(crate) fn merge_base(journal: &Journal) {
    let BaseMergeInput { base, after, head, .. } = journal.base_and_after();
    let writer = BaseWriter::new(&journal.options().folder).unwrap();
    let next = base::merge(&base, &after, head, &journal.options().folder, writer).unwrap();
    journal.replace_base(Arc::new(next), Instant::now());
}

#[test]
fn what_is_visible_is_never_joined_with_what_is_not() {
    let (journal, mut writer) = journal(options());
    for id in 0..10 {
        commit(&mut writer, |writer| insert(writer, id, &"v".repeat(30_000)));
    }
    let head = journal.head();
    // The first transaction is committed and small, so it waits. The large one after it moves both
    // into the journal, where they are not visible yet.
    begin(&mut writer);
    insert(&mut writer, 10, &"w".repeat(250_000));
    writer.commit().unwrap();
    begin(&mut writer);
    for id in 11..21 {
        insert(&mut writer, id, &"x".repeat(300_000));
    }
    assert_eq!(journal.head(), head);
    let seen = rows_of_newcomer(&journal, &journal.pin_base().base().clone());
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), Vec::from_iter(0..10));
    merge_base(&journal);
    let merged = journal.pin_base().base().clone();
    assert_eq!(merged.sequence(), head.sequence);
    assert_eq!(rows_of_base(&merged), seen, "the base shows what it claims");
    writer.commit().unwrap();
    writer.publish().unwrap();
    assert_eq!(rows_of_newcomer(&journal, &merged).len(), 21);
}

#[test]
fn bases_made_during_writes_show_what_they_claim() {
    const IDS: i64 = 40;
    const TRANSACTIONS: i64 = 4000;
    // The nth transaction has two entries, so a sequence determines the transactions in a base.
    let truth = |sequence: Sequence| {
        let transactions = i64::try_from(sequence.entries_since(Sequence(1000)) / 2).unwrap();
        let rows = (1..=transactions).map(|n| (n % IDS, format!("{n} {}", "b".repeat(3000))));
        rows.collect::<JournalRowTexts>()
    };
    let (journal, mut writer) = journal(options());
    let writing = std::thread::spawn(move || {
        for n in 1..=TRANSACTIONS {
            begin(&mut writer);
            insert(&mut writer, n % IDS, "first");
            insert(&mut writer, n % IDS, &format!("{n} {}", "b".repeat(3000)));
            writer.commit().unwrap();
            if n % 3 == 0 {
                writer.publish().unwrap();
            }
        }
        writer.publish().unwrap();
    });
    loop {
        let is_last = writing.is_finished();
        merge_base(&journal);
        let base = journal.pin_base().base().clone();
        assert_eq!(rows_of_base(&base), truth(base.sequence()));
        if is_last {
            break;
        }
    }
    writing.join().unwrap();
    let base = journal.pin_base().base().clone();
    assert_eq!(rows_of_newcomer(&journal, &base), truth(journal.head().sequence));
    assert_eq!(journal.head().sequence, Sequence(1000 + 2 * u64::try_from(TRANSACTIONS).unwrap()));
}

#[test]
fn an_aborted_change_of_the_schema_leaves_none() {
    let (journal, mut writer) = journal(options());
    let before = journal.schema();
    begin(&mut writer);
    let columns = before.columns().iter().cloned().map(|mut column| {
        column.name.push('x');
        column
    });
    let schema = laredo_core::Schema::new(columns.collect(), before.key().clone(), BTreeMap::new());
    writer.change_schema(&Arc::new(schema));
    for id in 0..10 {
        insert(&mut writer, id, &"x".repeat(300_000));
    }
    writer.abort();
    assert_eq!(journal.schema(), before);
}

#[test]
fn old_rows_are_bounded_by_their_own_bytes() {
    let (journal, mut writer) = journal(JournalOptions { memory_bytes_max: 0, ..options() });
    let big = "o".repeat(1 << 20);
    commit(&mut writer, |writer| (0..40).for_each(|id| delete(writer, id, &big)));
    let mut cursor = journal.cursor(Sequence(1000));
    let mut entries = 0;
    while let Some(piece) = cursor.next_piece().unwrap() {
        assert!(piece.olds.len() <= 3 << 20, "{} bytes of old rows in one piece", piece.olds.len());
        entries += frames(piece.frames).map(|frame| frame.batch.count).sum::<u32>();
    }
    assert_eq!(entries, 40);
}

#[test]
fn memory_is_counted_as_it_is_used() {
    let (journal, mut writer) = journal(options());
    commit(&mut writer, |writer| insert(writer, 1, &"x".repeat(70_000)));
    let inner = journal.contents();
    let crate::segment::SegmentData::Memory { frames, .. } = inner.segments[0].data.clone() else {
        panic!("not in memory")
    };
    let length = frames.len();
    drop(inner);
    drop((journal, writer));
    // The only owner gets its buffer back, with the reserved capacity.
    assert_eq!(frames.try_into_mut().unwrap().capacity(), length);
}

#[test]
fn what_a_base_covers_is_pruned_beyond_the_limit_of_entries() {
    let (journal, mut writer) = journal(JournalOptions { entries_max: 10, ..options() });
    for id in 0..50 {
        commit(&mut writer, |writer| insert(writer, id, "x"));
    }
    assert_eq!(journal.info().entries, 50, "no base covers them");
    merge_base(&journal);
    assert_eq!(journal.info().entries, 10);
    assert_eq!(journal.info().oldest_sequence, Sequence(1041));
    assert_eq!(journal.cursor(Sequence(1040)).next_piece().unwrap().unwrap().last, Sequence(1050));
    let pruned = journal.cursor(Sequence(1039)).next_piece();
    assert!(matches!(pruned, Err(CursorError::Pruned(Sequence(1039)))), "{pruned:?}");
    commit(&mut writer, |writer| insert(writer, 50, "x"));
    assert_eq!(journal.info().entries, 10, "as more come");
    for id in 51..61 {
        commit(&mut writer, |writer| insert(writer, id, "x"));
    }
    assert_eq!(journal.info().oldest_sequence, Sequence(1051), "up to the base");
}

#[test]
fn what_a_base_covers_is_pruned_beyond_the_limit_of_bytes() {
    let (journal, mut writer) = journal(JournalOptions { bytes_max: 5_000_000, ..options() });
    for id in 0..20 {
        commit(&mut writer, |writer| insert(writer, id, &"x".repeat(1_000_000)));
    }
    assert!(journal.info().bytes > 20_000_000);
    merge_base(&journal);
    let info = journal.info();
    assert!(info.bytes <= 5_000_000 && info.entries == 4, "{info:?}");
}

/// Covers small transactions that are joined, large ones in pieces, aborted ones, bases in between,
/// and pruning.
#[test]
fn bytes_after_the_base_are_those_that_came_after_it() {
    let (all, mut writer_of_all) = journal(options());
    let (pruned, mut writer_of_pruned) = journal(JournalOptions { bytes_max: 2_000_000, ..options() });
    let mut at_base = 0;
    for round in 0..120 {
        for writer in [&mut writer_of_all, &mut writer_of_pruned] {
            match round % 8 {
                3 => {
                    begin(writer);
                    (0..8).for_each(|id| insert(writer, id, &"large".repeat(100_000)));
                    if round % 16 == 3 {
                        writer.abort()
                    } else {
                        writer.commit().unwrap()
                    }
                    writer.publish().unwrap();
                }
                _ => (0..10).for_each(|id| commit(writer, |writer| insert(writer, id, &"small".repeat(3000)))),
            }
        }
        if round % 11 == 10 {
            [&all, &pruned].into_iter().for_each(merge_base);
            at_base = all.info().bytes;
        }
        let after = all.info().bytes - at_base;
        assert_eq!((all.base_debt().1, pruned.base_debt().1), (after, after), "round {round}");
    }
    assert!(pruned.info().bytes < all.info().bytes / 2, "there is something to prune");
}

#[tokio::test(start_paused = true)]
async fn what_a_base_covers_is_pruned_beyond_the_limit_of_age() {
    let age_max = Duration::from_secs(60);
    let (journal, mut writer) = journal(JournalOptions { age_max, ..options() });
    commit(&mut writer, |writer| insert(writer, 1, "x"));
    tokio::time::advance(age_max).await;
    commit(&mut writer, |writer| insert(writer, 2, "x"));
    merge_base(&journal);
    assert_eq!(journal.info().entries, 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    commit(&mut writer, |writer| insert(writer, 3, "x"));
    assert_eq!(journal.info().entries, 2);
}

#[test]
fn a_reader_of_a_base_is_kept_everything_after_it_though_a_newer_one_took_its_place() {
    let (journal, mut writer) = journal(JournalOptions { entries_max: 10, ..options() });
    let pinned = journal.pin_base();
    for id in 0..50 {
        commit(&mut writer, |writer| insert(writer, id, "x"));
    }
    merge_base(&journal);
    commit(&mut writer, |writer| insert(writer, 50, "x"));
    assert_eq!(journal.info().entries, 51);
    assert_eq!(rows_of_newcomer(&journal, pinned.base()).len(), 51);
    drop(pinned);
    assert_eq!(journal.info().entries, 10, "and goes with the promise");
}

#[test]
fn a_pin_is_overdue_when_it_alone_keeps_twice_what_the_limits_allow() {
    let (journal, mut writer) = journal(JournalOptions { entries_max: 10, ..options() });
    let pinned = journal.pin_base();
    let commits = |writer: &mut JournalWriter, count| {
        (0..count).for_each(|id| commit(writer, |writer| insert(writer, id, "x")));
    };
    commits(&mut writer, 21);
    assert_eq!(journal.overdue_pin(), None, "without it they would be kept too: no newer base covers them");
    merge_base(&journal);
    assert_eq!(journal.overdue_pin(), None);
    commits(&mut writer, 1);
    assert_eq!(journal.overdue_pin(), Some(Sequence(1000)));
    let newer = journal.pin_base();
    drop(pinned);
    assert_eq!(journal.overdue_pin(), None);
    drop(newer);

    let (journal, mut writer) = self::journal(JournalOptions { bytes_max: 1_000_000, ..options() });
    let _pinned = journal.pin_base();
    for id in 0..4 {
        commit(&mut writer, |writer| insert(writer, id, &"x".repeat(900_000)));
    }
    merge_base(&journal);
    assert_eq!(journal.overdue_pin(), Some(Sequence(1000)));
}

#[test]
fn who_stops_behind_a_change_of_the_schema_stands_on_the_new_one() {
    let (journal, mut writer) = journal(options());
    let old = journal.schema();
    let mut columns = old.columns().to_vec();
    columns[1].name = "renamed".to_owned();
    let new = Arc::new(laredo_core::Schema::new(columns, old.key().clone(), BTreeMap::new()));
    commit(&mut writer, |writer| {
        insert(writer, 1, "x");
        writer.change_schema(&new);
        insert(writer, 2, "x");
        insert(writer, 3, "x");
    });
    let stands_on = [1000, 1001, 1002, 1003, 1004].map(|at| journal.cursor(Sequence(at)).origin().unwrap().schema);
    assert_eq!(stands_on, [old.clone(), old, new.clone(), new.clone(), new]);
}

/// A reader that takes one piece of the journal at a time.
struct CountingReader {
    cursor: super::JournalCursor,
    reader: super::JournalReader,
    entries: u64,
}

impl CountingReader {
    fn start(journal: &Journal) -> CountingReader {
        let options = super::ReaderOptions {
            client_id: "reader".to_owned(),
            owner: String::new(),
            behind_max: 10,
            policy: super::BufferPolicy::DropDisconnect,
        };
        let at = journal.head().sequence;
        let reader = journal.register(options, at);
        reader.note_progress(at, true);
        CountingReader { cursor: journal.cursor(at), reader, entries: 0 }
    }

    fn take_piece(&mut self) -> Result<bool, CursorError> {
        let Some(piece) = self.cursor.next_piece()? else { return Ok(false) };
        self.entries += piece.last.entries_since(piece.after);
        self.reader.note_progress(piece.last, false);
        Ok(true)
    }
}

/// Returns limits and transactions that exceed them by themselves: by their entries, by their bytes
/// in one segment, and by their bytes in several segments.
fn oversized() -> [(JournalOptions, i64, usize); 3] {
    [
        (JournalOptions { entries_max: 100, ..options() }, 1000, 5000),
        (JournalOptions { bytes_max: 50_000, ..options() }, 10, 20_000),
        (JournalOptions { bytes_max: 1 << 20, ..options() }, 10, 1 << 20),
    ]
}

#[test]
fn a_transaction_larger_than_the_limits_is_kept_for_those_who_read_it() {
    for (limits, entries, bytes) in oversized() {
        let (journal, mut writer) = journal(limits);
        commit(&mut writer, |writer| insert(writer, -1, "before"));
        let (mut early, mut late) = (CountingReader::start(&journal), CountingReader::start(&journal));
        commit(&mut writer, |writer| (0..entries).for_each(|id| insert(writer, id, &"x".repeat(bytes))));
        assert!(early.take_piece().unwrap());
        // The newest base covers the transaction, and more is committed. Each would have it pruned.
        merge_base(&journal);
        commit(&mut writer, |writer| insert(writer, -2, "after"));
        merge_base(&journal);
        commit(&mut writer, |writer| insert(writer, -3, "after"));
        for taking in [&mut early, &mut late] {
            while taking.take_piece().unwrap() {}
            assert_eq!(taking.entries, u64::try_from(entries).unwrap() + 2, "{entries} entries of {bytes} bytes");
        }
        // Both readers have the transaction.
        commit(&mut writer, |writer| insert(writer, -4, "after"));
        let pruned = journal.info().oldest_sequence;
        assert!(pruned > Sequence(1001 + u64::try_from(entries).unwrap()), "it is kept for nobody: {pruned:?}");
    }
}

#[test]
fn a_reader_that_has_stopped_keeps_no_more_than_the_limits_behind_a_large_transaction() {
    for (limits, entries, bytes) in oversized() {
        let (journal, mut writer) = journal(limits.clone());
        let mut stopped = CountingReader::start(&journal);
        commit(&mut writer, |writer| (0..entries).for_each(|id| insert(writer, id, &"x".repeat(bytes))));
        stopped.take_piece().unwrap();
        for round in 0..30 {
            commit(&mut writer, |writer| {
                (0..20).for_each(|id| insert(writer, id, &format!("{round} {}", "y".repeat(5000))))
            });
            merge_base(&journal);
        }
        commit(&mut writer, |writer| insert(writer, -1, "last"));
        let info = journal.info();
        assert!(info.entries <= 200 || info.bytes <= 2 * limits.bytes_max, "{info:?}");
        assert!(info.oldest_sequence > Sequence(1000 + u64::try_from(entries).unwrap()), "{info:?}");
    }
}
