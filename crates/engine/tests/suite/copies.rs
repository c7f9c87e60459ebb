//! Commits during copies and repeated copies, which become visible in any order. The journal
//! rebuilds the database's rows at its head, and at every commit where a reader may resume.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn, TableState};
use laredo_engine::journal::{Journal, ResumeOutcome, ResumeRequest};
use laredo_engine::source::{SourceEvent, TableIndex};
use laredo_testkit::{RunningEngine, SimChange, SimDatabase, eventually, wait_until_reached};
use proptest::prelude::*;

use crate::support::{JournalTestReader, LockedRows, PATIENCE, cases, changes, start, tables, written};

#[derive(Clone, Debug)]
enum CopyTestStep {
    Commit { seed: u64, changes: usize, table: usize },
    Hide { seed: u64, changes: usize, table: usize },
    ShowAll,
    Reload { table: usize },
    Restart,
    Other,
    Yield,
}

fn steps() -> impl Strategy<Value = Vec<CopyTestStep>> {
    let table = 0..2_usize;
    let step = prop_oneof![
        8 => (any::<u64>(), 1..6_usize, table.clone()).prop_map(|(seed, changes, table)| CopyTestStep::Commit { seed, changes, table }),
        3 => (any::<u64>(), 1..6_usize, table.clone()).prop_map(|(seed, changes, table)| CopyTestStep::Hide { seed, changes, table }),
        2 => Just(CopyTestStep::ShowAll),
        2 => table.prop_map(|table| CopyTestStep::Reload { table }),
        1 => Just(CopyTestStep::Restart),
        1 => Just(CopyTestStep::Other),
        3 => Just(CopyTestStep::Yield),
    ];
    prop::collection::vec(step, 1..60)
}

async fn play(steps: Vec<CopyTestStep>) {
    let database = SimDatabase::new(2);
    for i in 0..8 {
        database.commit(0, vec![SimChange::Insert(i, format!("first {i}"))]);
    }
    let running = start(&database, tables(2)).await;
    let (mut hidden, mut locked) = (Vec::new(), LockedRows::new());
    for step in steps {
        match step {
            CopyTestStep::Commit { seed, changes: count, table } => {
                database.commit(table, changes(&database, table, seed, count, &locked));
            }
            CopyTestStep::Hide { seed, changes: count, table } => {
                let changes = changes(&database, table, seed, count, &locked);
                locked.extend(written(&changes).into_iter().map(|id| (table, id)));
                hidden.push(database.commit_unseen(changes.into_iter().map(|c| (table, c)).collect()));
            }
            CopyTestStep::ShowAll => {
                hidden.drain(..).rev().for_each(|end| database.make_visible(end));
                locked.clear();
            }
            CopyTestStep::Reload { table } => assert!(running.table(table).reload("asked").await),
            CopyTestStep::Restart => {
                database.inject_event(SourceEvent::Restarted { reason: "slot lost".to_owned(), fork: None }).await
            }
            CopyTestStep::Other => drop(database.commit_unseen(Vec::new())),
            CopyTestStep::Yield => tokio::task::yield_now().await,
        }
    }
    hidden.drain(..).for_each(|end| database.make_visible(end));
    let end = database.end();
    for (index, table) in running.handle().tables().iter().enumerate() {
        let journal = table.wait_journal().await.unwrap();
        wait_until_reached(&journal, end).await;
        let mut fresh = JournalTestReader::from_base(&journal);
        assert_eq!(fresh.rows(), database.rows_at(index, end), "a fresh reader of table {index}");
        let after = database.commit(index, vec![SimChange::Insert(9999, "last".to_owned())]);
        wait_until_reached(&journal, after).await;
        fresh.read_on(&journal);
        assert_eq!(fresh.rows(), database.rows_at(index, after), "and live");
        resumes_from_every_commit(&database, index, &journal);
    }
    running.end().await;
}

/// Checks a reader that has exactly the database's rows at a position and resumes there. It ends
/// equal, or it must load the table.
fn resumes_from_every_commit(database: &SimDatabase, index: usize, journal: &Journal) {
    let head = journal.head();
    for position in (990..=head.position.0 + 1).map(Lsn) {
        let request = ResumeRequest { position: Some(position), whole_transactions: true, ..Default::default() };
        match journal.resolve(&request) {
            ResumeOutcome::Delta(at, _) => {
                let mut state = TableState::new(SimDatabase::schema(), &[], 0).unwrap();
                for (id, body) in database.rows_at(index, position) {
                    state.put(SimDatabase::row(id, &body).as_ref().to_tuple());
                }
                let mut reader = JournalTestReader { state, at, position: Lsn::ZERO };
                reader.read_on(journal);
                assert_eq!(reader.rows(), database.rows_at(index, head.position), "resumed at {position}");
            }
            ResumeOutcome::AnotherHistory(why) => panic!("{why}"),
            ResumeOutcome::Full(_) => {}
            ResumeOutcome::Wait(_) => assert!(position > head.position),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_journal_rebuilds_the_database(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_waits_for_applied_commits_to_become_visible() {
    let database = SimDatabase::new(1);
    let running = start(&database, tables(1)).await;
    let table = running.table(0);
    let journal = table.wait_journal().await.unwrap();
    let late = database.commit_unseen(vec![(0, SimChange::Insert(1, "late".to_owned()))]);
    wait_until_reached(&journal, late).await;
    assert!(table.reload("asked").await);
    // The commit is applied but no snapshot sees it: a copy taken now would lose it.
    let next = database.commit(0, vec![SimChange::Insert(2, "next".to_owned())]);
    database.make_visible(late);
    wait_until_reached(&journal, next).await;
    assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, next));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_table_does_not_stop_its_neighbor_and_no_longer_holds_the_slot_back() {
    let database = SimDatabase::new(2);
    let running = start(&database, tables(2)).await;
    let journal = running.table(1).wait_journal().await.unwrap();
    running.table(0).wait_journal().await.unwrap();
    let error = "the primary key of public.t0 was dropped".to_owned();
    database.inject_event(SourceEvent::Broken { table: TableIndex(0), error: error.clone() }).await;
    let end = database.commit(1, vec![SimChange::Insert(1, "one".to_owned())]);
    wait_until_reached(&journal, end).await;
    let failed = laredo_engine::TablePhase::Failed { error };
    laredo_testkit::eventually(Duration::from_secs(30), async || {
        running.table(0).status().phase == failed && database.acknowledged() >= end
    })
    .await
    .unwrap();
    running.end().await;
}

/// On an idle database, the position passes an unannounced change before the change is noticed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_copy_shows_gets_a_position_of_its_own() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![SimChange::Insert(1, "before".to_owned())]);
    let running = start(&database, tables(1)).await;
    let table = running.table(0);
    let journal = table.wait_journal().await.unwrap();
    let known = database.change_silently(0, vec![SimChange::Update(1, "after".to_owned())]);
    wait_until_reached(&journal, known).await;
    let known = journal.head().position;
    let mut reader = JournalTestReader::from_base(&journal);
    assert_eq!(reader.rows()[&1], "before");
    database
        .inject_event(SourceEvent::Moved { table: TableIndex(0), reason: "rewritten".to_owned(), definition: None })
        .await;
    let copied = async || table.status().copies == 2;
    eventually(PATIENCE, copied).await.unwrap();
    assert!(journal.head().position > known);
    let request = ResumeRequest { position: Some(known), whole_transactions: true, ..Default::default() };
    let ResumeOutcome::Delta(at, _) = journal.resolve(&request) else { panic!("the journal has it all") };
    reader.at = at;
    reader.read_on(&journal);
    assert_eq!(reader.rows()[&1], "after");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_takes_nothing_does_not_stall_its_neighbor() {
    let database = SimDatabase::new(2);
    let running = start(&database, tables(2)).await;
    let tables = running.handle().tables();
    let [slow, neighbor] = &*tables else { panic!("two tables") };
    let (slow_journal, journal) = (slow.wait_journal().await.unwrap(), neighbor.wait_journal().await.unwrap());
    // The commit is applied but not visible, so the next copy waits. Then the table holds as many
    // changes as it may.
    let hidden = database.commit_unseen(vec![(0, SimChange::Insert(1, "hidden".to_owned()))]);
    wait_until_reached(&slow_journal, hidden).await;
    assert!(slow.reload("asked").await);
    let is_full = async || {
        let id = 10 + database.rows_at(0, database.end()).len() as i64;
        database.commit(0, vec![SimChange::Insert(id, "x".repeat(1 << 19))]);
        slow.status().held_bytes > 1 << 20
    };
    eventually(PATIENCE, is_full).await.unwrap();
    // These commits wait for the table, and no other table waits for them.
    for i in 0..300 {
        database.commit(0, vec![SimChange::Insert(1000 + i, format!("small {i}"))]);
    }
    for i in 0..300 {
        let end = database.commit(1, vec![SimChange::Insert(i, format!("row {i}"))]);
        wait_until_reached(&journal, end).await;
    }
    database.make_visible(hidden);
    let end = database.end();
    wait_until_reached(&slow_journal, end).await;
    assert_eq!(JournalTestReader::from_base(&slow_journal).rows(), database.rows_at(0, end));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_copies_every_table_again_even_a_failed_one() {
    let database = SimDatabase::new(2);
    database.commit(0, vec![SimChange::Insert(1, "one".to_owned())]);
    let running = start(&database, tables(2)).await;
    let tables = running.handle().tables();
    let [table, failed] = &*tables else { panic!("two tables") };
    let journal = table.wait_journal().await.unwrap();
    failed.wait_journal().await.unwrap();
    let mut reader = JournalTestReader::from_base(&journal);
    let error = "the primary key of public.t1 was dropped".to_owned();
    database.inject_event(SourceEvent::Broken { table: TableIndex(1), error }).await;
    let is_failed = async || matches!(failed.status().phase, laredo_engine::TablePhase::Failed { .. });
    eventually(PATIENCE, is_failed).await.unwrap();
    // The stream does not report this change, so only a copy shows it.
    database.change_silently(0, vec![SimChange::Update(1, "another".to_owned())]);
    running.handle().reset(false).await.unwrap();
    let are_copied = async || table.status().copies == 2 && failed.status().copies == 2;
    eventually(PATIENCE, are_copied).await.unwrap();
    reader.read_on(&journal);
    assert_eq!(reader.rows(), database.rows_at(0, database.end()));
    assert_eq!(running.handle().retention().losses, 1);
    assert!(running.handle().reset(true).await.is_err_and(|error| error.to_string().contains("no publication")));
    let handle = running.handle().clone();
    running.end().await;
    assert!(handle.reset(false).await.is_err_and(|error| error.to_string().contains("stopping")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_stops_while_as_much_is_held_as_may_be() {
    let database = SimDatabase::new(1);
    let running = start(&database, tables(1)).await;
    let table = running.table(0);
    let hidden = database.commit_unseen(vec![(0, SimChange::Insert(1, "hidden".to_owned()))]);
    wait_until_reached(&table.wait_journal().await.unwrap(), hidden).await;
    assert!(table.reload("asked").await);
    let is_full = async || {
        let id = 10 + database.rows_at(0, database.end()).len() as i64;
        database.commit(0, vec![SimChange::Insert(id, "x".repeat(1 << 19))]);
        table.status().held_bytes > 1 << 20
    };
    eventually(PATIENCE, is_full).await.unwrap();
    tokio::time::timeout(PATIENCE, running.end()).await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_table_can_be_followed_nothing_is_kept_for_them() {
    let database = SimDatabase::new(1);
    let running = start(&database, tables(1)).await;
    running.table(0).wait_journal().await.unwrap();
    let error = "the primary key of public.t0 was dropped".to_owned();
    database.inject_event(SourceEvent::Broken { table: TableIndex(0), error }).await;
    let is_failed = async || matches!(running.table(0).status().phase, laredo_engine::TablePhase::Failed { .. });
    eventually(PATIENCE, is_failed).await.unwrap();
    let end = database.commit(0, vec![SimChange::Insert(1, "one".to_owned())]);
    let is_forgotten = async || database.acknowledged() >= end;
    eventually(PATIENCE, is_forgotten).await.unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_one_table_is_reported_and_stops_no_other() {
    let database = SimDatabase::new(2);
    let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clock = armed.clone();
    let clock = move || match clock.swap(false, std::sync::atomic::Ordering::SeqCst) {
        true => panic!("the clock has stopped"),
        false => CommitTime(0),
    };
    let running = RunningEngine::start(database.clone(), tables(2), Arc::new(clock)).await.unwrap();
    for table in running.handle().tables().iter() {
        table.wait_journal().await.unwrap();
    }
    armed.store(true, std::sync::atomic::Ordering::SeqCst);
    // A table asks for the time once a commit is visible.
    database.commit(0, vec![SimChange::Insert(9, "nine".to_owned())]);
    let failed = || -> Vec<bool> {
        let tables = running.handle().tables();
        let phases = tables.iter().map(|table| table.status().phase);
        let is_reported = |error: &str| error.contains("the clock has stopped");
        phases.map(|p| matches!(p, laredo_engine::TablePhase::Failed { error } if is_reported(&error))).collect()
    };
    let one_failed = async || failed().contains(&true);
    eventually(PATIENCE, one_failed).await.unwrap();
    let other = failed().iter().position(|failed| !failed).expect("the other goes on");
    let end = database.commit(other, vec![SimChange::Insert(1, "one".to_owned())]);
    wait_until_reached(&running.table(other).journal().unwrap(), end).await;
    let is_forgotten = async || database.acknowledged() >= end;
    eventually(PATIENCE, is_forgotten).await.unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_encoded_once() {
    let database = SimDatabase::new(1);
    let running = start(&database, tables(1)).await;
    let journal = running.table(0).wait_journal().await.unwrap();
    let mut end = Lsn::ZERO;
    for i in 0..1000 {
        end = database.commit(0, vec![SimChange::Insert(i, format!("row {i}")), SimChange::Delete(i)]);
    }
    wait_until_reached(&journal, end).await;
    for _ in 0..3 {
        assert!(JournalTestReader::from_base(&journal).rows().is_empty());
    }
    assert_eq!(journal.info().encoded_entries, 2000);
    running.end().await;
}
