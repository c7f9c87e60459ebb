//! A verification finds every row that differs from the database's, and no other row. This holds
//! for all concurrent commits, and for any order in which they become visible.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::source::SourceEvent;
use laredo_engine::{TableHandle, TablePhase, VerifyError, VerifyReport, VerifyTerms};
use laredo_testkit::{RunningEngine, SimChange, SimDatabase, eventually, stopped_clock, wait_until_reached};
use proptest::prelude::*;
use tokio::sync::oneshot;

use crate::support::{JournalTestReader, LockedRows, cases, changes, tables, written};

/// The first ID of the rows that random commits do not change.
const PLANTED: i64 = 1000;
const LOOK: VerifyTerms = VerifyTerms { bytes_per_second: None, heals: false };
const HEAL: VerifyTerms = VerifyTerms { bytes_per_second: None, heals: true };

async fn start(database: &SimDatabase) -> RunningEngine {
    let running = RunningEngine::start(database.clone(), tables(1), stopped_clock(CommitTime(7))).await.unwrap();
    running.journal(0).await;
    running
}

async fn verify(running: &RunningEngine, terms: VerifyTerms) -> Arc<VerifyReport> {
    running.table(0).verify(terms).await.unwrap()
}

#[derive(Clone, Debug)]
enum VerifyTestStep {
    Commit { seed: u64, changes: usize },
    Hide { seed: u64, changes: usize },
    Show { newest: bool },
    Touch { id: i64 },
    Reload,
    Restart,
    Yield { times: usize },
}

fn steps(disturbs: bool, touches: u32) -> impl Strategy<Value = Vec<VerifyTestStep>> {
    let disturbance = u32::from(disturbs);
    let step = prop_oneof![
        40 => (any::<u64>(), 1..6_usize).prop_map(|(seed, changes)| VerifyTestStep::Commit { seed, changes }),
        15 => (any::<u64>(), 1..6_usize).prop_map(|(seed, changes)| VerifyTestStep::Hide { seed, changes }),
        20 => any::<bool>().prop_map(|newest| VerifyTestStep::Show { newest }),
        touches => (PLANTED..PLANTED + 2).prop_map(|id| VerifyTestStep::Touch { id }),
        disturbance => Just(VerifyTestStep::Reload),
        disturbance => Just(VerifyTestStep::Restart),
        100 => (1..25_usize).prop_map(|times| VerifyTestStep::Yield { times }),
    ];
    prop::collection::vec(step, 1..120)
}

/// The hidden commits, oldest first, each with the rows that it locks.
type HiddenCommits = Vec<(Lsn, Vec<i64>)>;

/// Applies the steps to a table, and shows every commit in the end.
async fn play(steps: Vec<VerifyTestStep>, database: &SimDatabase, running: &RunningEngine, truncates: bool) {
    let (mut hidden, mut locked) = (HiddenCommits::new(), LockedRows::new());
    let fitting = |seed, count, locked: &LockedRows| {
        let mut changes = changes(database, 0, seed, count, locked);
        if !truncates && let Some(at) = changes.iter().position(|change| *change == SimChange::Truncate) {
            changes.truncate(at);
        }
        changes
    };
    for step in steps {
        match step {
            VerifyTestStep::Commit { seed, changes: count } => drop(database.commit(0, fitting(seed, count, &locked))),
            VerifyTestStep::Hide { seed, changes: count } => {
                let changes = fitting(seed, count, &locked);
                let ids = written(&changes);
                locked.extend(ids.iter().map(|id| (0, *id)));
                hidden.push((database.commit_unseen(changes.into_iter().map(|c| (0, c)).collect()), ids));
            }
            VerifyTestStep::Show { newest } if !hidden.is_empty() => {
                let (end, ids) = hidden.remove(if newest { hidden.len() - 1 } else { 0 });
                database.make_visible(end);
                ids.iter().for_each(|id| _ = locked.remove(&(0, *id)));
            }
            VerifyTestStep::Show { .. } => {}
            VerifyTestStep::Touch { id } => {
                if database.rows_at(0, Lsn(u64::MAX)).contains_key(&id) {
                    database.commit(0, vec![SimChange::Touch(id)]);
                }
            }
            VerifyTestStep::Reload => assert!(running.table(0).reload("asked").await),
            VerifyTestStep::Restart => {
                database.inject_event(SourceEvent::Restarted { reason: "slot lost".to_owned(), fork: None }).await
            }
            VerifyTestStep::Yield { times } => {
                for _ in 0..times {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    hidden.into_iter().for_each(|(end, _)| database.make_visible(end));
}

/// Verifies the table repeatedly until it is stopped, and then once more.
async fn verify_on(
    table: TableHandle,
    mut stopped: oneshot::Receiver<()>,
) -> Vec<Result<Arc<VerifyReport>, VerifyError>> {
    let mut results = Vec::new();
    loop {
        let is_last = stopped.try_recv().is_ok();
        results.push(table.verify(LOOK).await);
        if is_last {
            return results;
        }
    }
}

async fn finds_nothing(steps: Vec<VerifyTestStep>, yields: u64) {
    let database = SimDatabase::new(1);
    database.slow_parts_down(yields);
    database.commit(0, (0..8).map(|id| SimChange::Insert(id, format!("first {id}"))).collect());
    database.commit(0, (PLANTED..PLANTED + 6).map(|id| SimChange::Insert(id, format!("first {id}"))).collect());
    let running = start(&database).await;
    let (stop, stopped) = oneshot::channel();
    let verifying = tokio::spawn(verify_on(running.table(0).clone(), stopped));
    play(steps, &database, &running, true).await;
    stop.send(()).unwrap();
    for result in verifying.await.unwrap() {
        match result {
            Ok(report) => {
                let VerifyReport { differing, suspects, unverified, .. } = *report;
                assert_eq!((differing, suspects, unverified), (0, 0, 0), "{:?}", report.differences);
            }
            Err(VerifyError::GivenUp(reason)) => assert!(reason.contains("several times"), "{reason}"),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(running.table(0).status().verify.differences, 0);
    running.end().await;
}

/// Returns the keys that differ, each with the kind of its difference.
fn found(report: &VerifyReport) -> BTreeMap<i64, &'static str> {
    let id = |key: &laredo_core::Key| i64::from_be_bytes(key.as_ref().cell(0).value().unwrap().try_into().unwrap());
    report.differences.iter().map(|difference| (id(&difference.key), difference.kind())).collect()
}

async fn finds_what_is_planted(steps: Vec<VerifyTestStep>, kinds: [bool; 3], yields: u64) {
    let database = SimDatabase::new(1);
    database.slow_parts_down(yields);
    let ids = (0..8).chain(PLANTED..PLANTED + 6);
    database.commit(0, ids.map(|id| SimChange::Insert(id, format!("first {id}"))).collect());
    let running = start(&database).await;
    let mut planted = BTreeMap::new();
    for (kind, change) in [
        ("different", SimChange::Update(PLANTED, "planted".to_owned())),
        ("extra", SimChange::Delete(PLANTED + 1)),
        ("missing", SimChange::Insert(PLANTED + 10, "planted".to_owned())),
    ]
    .into_iter()
    .zip(kinds)
    .filter_map(|(plant, is_planted)| is_planted.then_some(plant))
    {
        planted.extend(written(std::slice::from_ref(&change)).into_iter().map(|id| (id, kind)));
        database.change_silently(0, vec![change]);
    }
    let (report, ()) = tokio::join!(verify(&running, LOOK), play(steps, &database, &running, false));
    assert_eq!((found(&report), report.unverified), (planted.clone(), 0));
    assert!(report.differences.iter().all(|row| (row.kind() == "different") == (row.columns == ["body"])));
    let healing = verify(&running, HEAL).await;
    assert_eq!(found(&healing), planted);
    healed(&database, &running).await;
    running.end().await;
}

/// Waits until readers have the database's rows, and then verifies the table.
async fn healed(database: &SimDatabase, running: &RunningEngine) {
    let journal = running.table(0).journal().unwrap();
    let is_healed = async || {
        let is_live = running.phase(0) == TablePhase::Live;
        is_live && JournalTestReader::from_base(&journal).rows() == database.rows_at(0, database.end())
    };
    eventually(Duration::from_secs(60), is_healed).await.unwrap();
    assert_eq!(verify(running, LOOK).await.differing, 0);
}

/// Runs a test on one thread or on several. On one thread, steps come between the rows of a part;
/// on two, they come at any time.
fn run(threads: usize, future: impl Future<Output = ()>) {
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        _ => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap(),
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), future).await.unwrap() });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn equal_tables_are_never_found_to_differ(steps in steps(true, 10), threads in 1..3_usize, yields in 0..40_u64) {
        run(threads, finds_nothing(steps, yields));
    }

    #[test]
    fn every_planted_difference_is_found_and_healed(
        steps in steps(false, 60), kinds: [bool; 3], threads in 1..3_usize, yields in 0..40_u64,
    ) {
        run(threads, finds_what_is_planted(steps, kinds, yields));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_differs_everywhere_is_reported_early_and_healed() {
    let database = SimDatabase::new(1);
    database.commit(0, (0..3000).map(|id| SimChange::Insert(id, "right".to_owned())).collect());
    let running = start(&database).await;
    database.change_silently(0, (0..3000).map(|id| SimChange::Update(id, "wrong".to_owned())).collect());
    let report = verify(&running, HEAL).await;
    assert!(report.is_cut && report.differing >= 1000, "{} rows", report.differing);
    assert_eq!(report.differences.len(), VerifyReport::DIFFERENCES_MAX);
    healed(&database, &running).await;
    let status = running.table(0).status().verify;
    assert_eq!((status.passes, status.differences, status.failures), (2, report.differing, 0));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pass_runs_at_a_time_and_ends_with_those_who_asked() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![SimChange::Insert(1, "one".to_owned())]);
    let running = start(&database).await;
    let journal = running.table(0).journal().unwrap();
    // No snapshot sees this commit, so a pass waits for it.
    let hidden = database.commit_unseen(vec![(0, SimChange::Insert(2, "two".to_owned()))]);
    wait_until_reached(&journal, hidden).await;
    let table = running.table(0).clone();
    let first = tokio::spawn(async move { table.verify(LOOK).await });
    eventually(Duration::from_secs(60), async || running.table(0).status().verify.running.is_some()).await.unwrap();
    assert_eq!(running.table(0).verify(LOOK).await, Err(VerifyError::Busy));
    first.abort();
    eventually(Duration::from_secs(60), async || running.table(0).status().verify.running.is_none()).await.unwrap();
    database.make_visible(hidden);
    assert_eq!(verify(&running, LOOK).await.differing, 0);
    running.end().await;
}

/// At this rate each row takes longer than the database leaves a session unread.
#[tokio::test(start_paused = true)]
async fn a_slow_pass_leaves_no_part_unread() {
    let database = SimDatabase::new(1);
    let rows = (0..200).map(|id| SimChange::Insert(id, "x".repeat(100)));
    database.commit(0, rows.collect());
    let running = start(&database).await;
    let began = tokio::time::Instant::now();
    let report = verify(&running, VerifyTerms { bytes_per_second: Some(1), heals: false }).await;
    assert_eq!((report.rows, report.differing), (200, 0));
    assert!(began.elapsed() > Duration::from_secs(10_000), "the rate is kept: {:?}", began.elapsed());
    running.end().await;
}

/// The stream never comes past what was read, so the rows can never be compared.
#[tokio::test(start_paused = true)]
async fn a_pass_is_given_up_while_the_stream_stays_behind() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![SimChange::Insert(1, "followed".to_owned())]);
    let running = start(&database).await;
    running.handle().pause(true);
    database.commit(0, vec![SimChange::Insert(2, "not followed".to_owned())]);
    let an_hour = Duration::from_secs(3600);
    let outcome = tokio::time::timeout(an_hour, running.table(0).verify(LOOK)).await.expect("the pass ends");
    let Err(VerifyError::GivenUp(reason)) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("the table's lag"), "{reason}");
    running.handle().pause(false);
    assert_eq!(verify(&running, LOOK).await.differing, 0, "the stream has caught up");
    running.end().await;
}
