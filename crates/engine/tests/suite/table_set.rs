//! Tables that are added to a running engine, and removed from it.

use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Lsn, ScopedMark, Xid};
use laredo_engine::source::SourceError;
use laredo_engine::{MarkVerdict, TableOptions, TableSetChange};
use laredo_testkit::{RunningEngine, SimDatabase, eventually, sim_table, wait_until_reached};

use crate::support::{JournalTestReader, PATIENCE, commit, start, tables};

/// Adds the table `t1`, and waits until it is served.
async fn add(running: &RunningEngine, options: TableOptions) {
    let handle = running.handle();
    let others = vec![sim_table("t0").request];
    handle.check_tables(vec![options.request.clone()], others, true).await.unwrap();
    handle.change_tables(TableSetChange { removed: Vec::new(), added: vec![options] }).await.unwrap();
    running.journal(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_added_and_removed_next_to_one_that_continues() {
    let database = SimDatabase::new(2);
    for id in 0..50 {
        commit(&database, (id % 2) as usize, id, "before");
    }
    let running = start(&database, tables(1)).await;
    let kept = running.reached(0, database.end()).await;
    let scope = running.table(0).history().scope();
    for id in 50..60 {
        commit(&database, (id % 2) as usize, id, "unfollowed");
    }
    // A commit that another server remembers, and this one does not.
    let early = CommitMark { end: Lsn(database.end().0 - 1), xid: Xid(1), committed_at: CommitTime(0) };
    add(&running, sim_table("t1")).await;
    let mut end = Lsn::ZERO;
    for id in 60..80 {
        end = commit(&database, (id % 2) as usize, id, "after");
    }
    for (index, name) in [(0, "public.t0"), (1, "public.t1")] {
        let journal = running.reached(index, end).await;
        assert_eq!(running.table(index).name().to_string(), name);
        assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(index, end), "{name}");
    }
    assert!(!kept.is_closed(), "the other table continues");
    assert_eq!((running.copies(0), running.copies(1)), (1, 1));
    // A commit of the new table that came before it proves no other history.
    let history = running.table(1).history().scope();
    assert_ne!(history, scope);
    for scope in [scope, 0] {
        let verdict = running.table(1).judge(ScopedMark { commit: early, scope });
        assert_ne!(verdict, MarkVerdict::Other, "{scope}");
    }
    // The table that was followed all the time has all of its commits.
    let of_table = ScopedMark { commit: early, scope: 0 };
    assert_eq!(running.table(0).judge(of_table), MarkVerdict::Other);
    eventually(PATIENCE, async || running.handle().acknowledged() >= end).await.expect("the source may forget it");

    let (removed, journal) = (running.table(1), running.journal(1).await);
    let change = TableSetChange { removed: vec![removed.name().clone()], added: Vec::new() };
    running.handle().change_tables(change).await.unwrap();
    tokio::time::timeout(PATIENCE, journal.closed()).await.expect("its readers are ended");
    assert!(removed.journal().is_none() && running.handle().tables().len() == 1);
    let end = commit(&database, 0, 200, "on").max(commit(&database, 1, 201, "unfollowed"));
    wait_until_reached(&kept, end).await;
    eventually(PATIENCE, async || running.handle().acknowledged() >= end).await.expect("no table holds it back");
    assert_eq!(JournalTestReader::from_base(&kept).rows(), database.rows_at(0, end));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_added_after_a_fork_notes_the_next_one() {
    let database = SimDatabase::new(2);
    let common = commit(&database, 0, 1, "in both").max(commit(&database, 1, 1, "in both"));
    let running = start(&database, tables(1)).await;
    running.reached(0, common).await;
    for round in 1..=2_i64 {
        if round == 2 {
            add(&running, sim_table("t1")).await;
        }
        let lost = commit(&database, 0, 10 * round, "lost");
        running.reached(0, lost).await;
        database.put_back(common);
        let forks = round.cast_unsigned();
        let all_noted = async || running.handle().tables().iter().all(|table| table.status().forks == forks);
        eventually(PATIENCE, all_noted).await.expect("the fork is noticed");
        let mut id = 100 * round;
        while commit(&database, (id % 2) as usize, id, "new") <= lost {
            id += 1;
        }
    }
    let end = commit(&database, 0, 7000, "end").max(commit(&database, 1, 7000, "end"));
    for index in [0, 1] {
        let journal = running.reached(index, end).await;
        assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(index, end), "{index}");
        assert_eq!(running.table(index).status().forks, 2, "{index}");
    }
    // Positions count only if all tables are of one history.
    eventually(PATIENCE, async || running.handle().acknowledged() >= end).await.expect("it is acknowledged");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_begins_again_with_other_options_in_its_own_folder() {
    let (database, folder) = (SimDatabase::new(2), tempfile::tempdir().unwrap());
    let end = commit(&database, 0, 1, "x").max(commit(&database, 1, 1, "x"));
    let options = |run: u64| TableOptions {
        instance: laredo_engine::journal::InstanceId(format!("run{run}")),
        store: Some(folder.path().join("t1")),
        ..sim_table("t1")
    };
    let running = start(&database, vec![sim_table("t0"), options(1)]).await;
    let (kept, before) = (running.reached(0, end).await, running.reached(1, end).await);
    let reader = JournalTestReader::from_base(&before);
    let mut changed = options(2);
    changed.journal.entries_max = 5;
    let change = TableSetChange { removed: vec![changed.request.name.clone()], added: vec![changed] };
    // The simulated table has another number now, and no rows.
    database.create_table();
    running.handle().change_tables(change).await.unwrap();
    commit(&database, 0, 2, "y");
    tokio::time::timeout(PATIENCE, before.closed()).await.expect("readers have to come back");
    let is_copied = async || JournalTestReader::from_base(&running.journal(1).await).rows().is_empty();
    eventually(PATIENCE, is_copied).await.expect("it is copied");
    let after = running.journal(1).await;
    assert_ne!(after.instance(), before.instance());
    assert!(after.head().sequence > reader.at, "no sequence is given twice");
    assert!(!kept.is_closed());
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_not_followed_refuses_changes() {
    let database = SimDatabase::new(2);
    database.fail(laredo_testkit::SimFault::Refused, u32::MAX);
    let engine = laredo_engine::Engine::new("sim", database, tables(1), laredo_testkit::stopped_clock(CommitTime(0)));
    let running = RunningEngine::run(engine);
    tokio::time::timeout(PATIENCE, running.handle().wait_refused()).await.expect("it is refused");
    let checked = running.handle().check_tables(vec![sim_table("t1").request], Vec::new(), true);
    let refused = tokio::time::timeout(Duration::from_secs(30), checked).await.expect("an answer").unwrap_err();
    assert!(matches!(&refused, SourceError::Transient(reason) if reason.contains("refused")), "{refused}");
    let change = TableSetChange { removed: vec![sim_table("t0").request.name], added: Vec::new() };
    running.handle().change_tables(change).await.unwrap_err();
    assert_eq!(running.handle().tables().len(), 1);
    running.end().await;
}
