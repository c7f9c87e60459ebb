//! A journal with transactions of every size, bounds that push it to disk, and readers that start
//! anywhere.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Lsn, Sequence};
use laredo_engine::base::BaseWriter;
use laredo_engine::journal::{
    CursorError, Head, InstanceId, Journal, JournalOptions, JournalWriter, ResumeOutcome, ResumeRequest, frames,
};
use laredo_proto::batch::{BatchEntries, EntryAction};
use laredo_testkit::SimDatabase;
use proptest::prelude::*;

fn options() -> JournalOptions {
    JournalOptions {
        entries_max: 1_000_000,
        age_max: Duration::from_secs(3600),
        bytes_max: 1 << 40,
        memory_bytes_max: 1 << 40,
        folder: std::env::temp_dir(),
    }
}

fn journal(options: JournalOptions) -> (Journal, JournalWriter) {
    let (committed_at, mark) = (CommitTime(0), CommitMark::default());
    let head = Head { sequence: Sequence(1000), position: Lsn(500), committed_at, mark, checksum: None };
    let base = BaseWriter::new(&std::env::temp_dir()).unwrap().finish(head, SimDatabase::schema()).unwrap();
    Journal::new(InstanceId("j".to_owned()), options, Arc::new(base))
}

/// Writes a transaction of `count` updates with bodies of `size` bytes.
fn write(writer: &mut JournalWriter, position: Lsn, count: usize, size: usize) -> Vec<i64> {
    writer.begin(position, CommitTime(1), None).unwrap();
    let ids: Vec<i64> = (0..count as i64).map(|i| position.0 as i64 * 1_000_000 + i).collect();
    for id in &ids {
        let (new, old) = (SimDatabase::row(*id, &"n".repeat(size)), SimDatabase::row(*id, "old"));
        writer.push(EntryAction::Update, new.as_ref(), Some(old.as_ref())).unwrap();
    }
    ids
}

/// Returns everything that a reader gets after `after`: the sequence, commit position and ID of
/// each entry. Checks that each old row is at its place.
fn read(journal: &Journal, after: Sequence) -> Result<Vec<(u64, u64, i64)>, CursorError> {
    let mut cursor = journal.cursor(after);
    let mut all = Vec::new();
    while let Some(piece) = cursor.next_piece()? {
        let mut olds = &piece.olds[..];
        for frame in frames(piece.frames.clone()) {
            let (length, rest) = olds.split_first_chunk::<4>().unwrap();
            let (mut frame_olds, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
            olds = rest;
            let first = frame.header.last_sequence.0 + 1 - u64::from(frame.batch.count);
            for (i, entry) in BatchEntries::new(&frame.batch.entries, &SimDatabase::schema()).enumerate() {
                let (id, _) = SimDatabase::parse(entry.unwrap().row).unwrap();
                let (length, rest) = frame_olds.split_first_chunk::<4>().unwrap();
                let (old, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
                frame_olds = rest;
                let old = SimDatabase::parse(laredo_core::TupleRef::parse(old, 2).unwrap()).unwrap();
                assert_eq!(old, (id, "old".to_owned()));
                let sequence = first + i as u64;
                if sequence > after.0 {
                    all.push((sequence, frame.header.position.0, id));
                }
            }
            assert!(frame_olds.is_empty());
        }
        assert!(olds.is_empty());
    }
    Ok(all)
}

#[derive(Clone, Debug)]
enum JournalWriteStep {
    Transaction { count: usize, size: usize },
    Aborted { count: usize, size: usize },
    Publish,
    Advance,
}

fn steps() -> impl Strategy<Value = Vec<JournalWriteStep>> {
    let size = prop_oneof![6 => 1..200_usize, 2 => 2000..40_000_usize, 1 => Just(700_000_usize)];
    let count = prop_oneof![8 => 0..20_usize, 1 => 50..120_usize];
    let step = prop_oneof![
        8 => (count.clone(), size.clone()).prop_map(|(count, size)| JournalWriteStep::Transaction { count, size }),
        2 => (count, size).prop_map(|(count, size)| JournalWriteStep::Aborted { count, size }),
        4 => Just(JournalWriteStep::Publish),
        1 => Just(JournalWriteStep::Advance),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn readers_get_every_entry_once_wherever_they_start(steps in steps(), memory in prop_oneof![Just(0_u64), Just(1 << 20), Just(1 << 40)]) {
        let (journal, mut writer) = journal(JournalOptions { memory_bytes_max: memory, ..options() });
        let (mut expected, mut sequence, mut position) = (Vec::new(), 1000, 500);
        let mut commits = vec![(1000, 500)];
        for step in steps {
            position += 100;
            match step {
                JournalWriteStep::Transaction { count, size } => {
                    for id in write(&mut writer, Lsn(position), count, size) {
                        sequence += 1;
                        expected.push((sequence, position, id));
                    }
                    writer.commit().unwrap();
                    commits.push((sequence, position));
                }
                JournalWriteStep::Aborted { count, size } => {
                    write(&mut writer, Lsn(position), count, size);
                    writer.abort();
                }
                JournalWriteStep::Publish => writer.publish().unwrap(),
                JournalWriteStep::Advance => writer.advance(Lsn(position), CommitMark::default()),
            }
            let head = journal.head();
            prop_assert!(commits.iter().any(|(s, _)| *s == head.sequence.0), "the head stands at a commit");
            let visible = expected.iter().filter(|(s, ..)| *s <= head.sequence.0).copied().collect::<Vec<_>>();
            prop_assert_eq!(read(&journal, Sequence(1000)).unwrap(), visible);
        }
        writer.publish().unwrap();
        prop_assert_eq!(journal.info().encoded_entries, expected.len() as u64);
        prop_assert!(journal.info().memory_bytes <= memory);
        for (after, at) in &commits {
            let rest = expected.iter().filter(|(s, ..)| s > after).copied().collect::<Vec<_>>();
            prop_assert_eq!(&read(&journal, Sequence(*after)).unwrap(), &rest);
            let request = ResumeRequest { position: Some(Lsn(at + 7)), whole_transactions: true, ..Default::default() };
            match journal.resolve(&request) {
                ResumeOutcome::Delta(found, _) => prop_assert_eq!(found, Sequence(*after)),
                ResumeOutcome::Wait(_) => prop_assert!(Lsn(at + 7) > journal.head().position),
                ResumeOutcome::Full(why) | ResumeOutcome::AnotherHistory(why) => prop_assert!(false, "{}", why),
            }
        }
        // Readers of single entries may also start in the middle of a transaction.
        for (after, ..) in expected.iter().step_by(7) {
            let rest = expected.iter().filter(|(s, ..)| s > after).copied().collect::<Vec<_>>();
            prop_assert_eq!(read(&journal, Sequence(*after)).unwrap(), rest);
        }
    }
}

#[test]
fn a_single_huge_transaction_is_kept_whole_beyond_every_limit() {
    let bounds = JournalOptions { entries_max: 10, bytes_max: 1, memory_bytes_max: 0, ..options() };
    let (journal, mut writer) = journal(bounds);
    write(&mut writer, Lsn(600), 5000, 1000);
    assert_eq!(journal.head().sequence, Sequence(1000), "nothing is visible before the commit");
    writer.commit().unwrap();
    assert_eq!(read(&journal, Sequence(1000)).unwrap().len(), 5000);
    assert_eq!(journal.info().memory_bytes, 0);
}

#[test]
fn a_position_inside_a_new_copy_is_nowhere_to_continue_from() {
    let (journal, mut writer) = journal(options());
    for (from, to, count) in [(500, 700, 3), (700, 800, 0)] {
        writer.begin(Lsn(to), CommitTime(1), Some(Lsn(from))).unwrap();
        for id in 0..count {
            writer.push(EntryAction::Insert, SimDatabase::row(id, "x").as_ref(), None).unwrap();
        }
        writer.commit().unwrap();
        writer.publish().unwrap();
        let resolve = |at: u64| journal.resolve(&ResumeRequest { position: Some(Lsn(at)), ..Default::default() });
        assert!(matches!(resolve(from), ResumeOutcome::Delta(..)), "from its beginning");
        assert!(matches!(resolve(from + 1), ResumeOutcome::Full(_)), "from inside, even where nothing differed");
        assert!(matches!(resolve(to - 1), ResumeOutcome::Full(_)));
        assert!(matches!(resolve(to), ResumeOutcome::Delta(..)), "from its end");
        assert!(matches!(resolve(to + 1), ResumeOutcome::Wait(_)));
    }
}

#[test]
fn requests_resolve_by_the_first_rule_that_matches() {
    let (journal, mut writer) = journal(options());
    for i in 1..=3 {
        write(&mut writer, Lsn(500 + 100 * i), 2, 10);
        writer.commit().unwrap();
        writer.publish().unwrap();
    }
    let ask = |request: ResumeRequest| journal.resolve(&request);
    let fresh = ResumeRequest::default;
    let delta = |request, at| assert!(matches!(ask(request), ResumeOutcome::Delta(s, _) if s == Sequence(at)));
    let full = |request| assert!(matches!(ask(request), ResumeOutcome::Full(_)));
    let own = |at: u64| ResumeRequest { instance: "j".to_owned(), sequence: Sequence(at), ..fresh() };
    let snapshot = |id: &str, at: u64| ResumeRequest { snapshot_id: id.to_owned(), sequence: Sequence(at), ..fresh() };

    delta(own(1004), 1004);
    delta(own(1003), 1003);
    full(ResumeRequest { whole_transactions: true, ..own(1003) });
    full(own(1007));
    full(own(999));
    full(own(0));
    delta(ResumeRequest { position: Some(Lsn(710)), ..own(1004) }, 1004);
    delta(ResumeRequest { position: Some(Lsn(710)), ..own(9999) }, 1004);
    full(ResumeRequest { sequence: Sequence(1004), ..fresh() });
    full(ResumeRequest { instance: "k".to_owned(), ..own(1004) });
    full(ResumeRequest { position: Some(Lsn(499)), ..fresh() });
    delta(ResumeRequest { position: Some(Lsn(500)), ..fresh() }, 1000);
    delta(ResumeRequest { position: Some(Lsn(799)), ..fresh() }, 1004);
    assert_eq!(ask(ResumeRequest { position: Some(Lsn(801)), ..fresh() }), ResumeOutcome::Wait(Lsn(801)));
    delta(snapshot("j-1002", 1002), 1002);
    delta(snapshot("j-1002", 1005), 1005);
    full(snapshot("j-1002", 1001));
    full(snapshot("k-1002", 1005));
    full(snapshot("j-x", 1005));
}
