//! A table that cannot be copied or kept reports it, retries if that may help, and ends equal to
//! the database.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use laredo_core::Lsn;
use laredo_engine::source::{SourceError, SourceEvent, TableIndex};
use laredo_engine::{ReloadError, TablePhase};
use laredo_testkit::{RunningEngine, SimChange, SimDatabase, eventually, wait_until_reached};

use crate::support::{JournalTestReader, PATIENCE, commit, start, tables};

async fn is_in(running: &RunningEngine, table: usize, state: &str) {
    let is_there = async || running.phase(table).name() == state;
    assert!(eventually(PATIENCE, is_there).await.is_ok(), "{:?} is not {state}", running.phase(table));
}

/// Compares a table with the database, for a reader that has followed it and for a new one.
async fn is_equal(running: &RunningEngine, database: &SimDatabase, table: usize, follower: &mut JournalTestReader) {
    let end = commit(database, table, 99_999, "last");
    let journal = running.reached(table, end).await;
    follower.read_on(&journal);
    assert_eq!(follower.rows(), database.rows_at(table, end));
    assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(table, end));
}

fn passing() -> SourceError {
    SourceError::Transient("the server is a standby".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_until_it_has_passed() {
    let database = SimDatabase::new(1);
    commit(&database, 0, 1, "one");
    database.refuse_copies(0, passing());
    let running = start(&database, tables(1)).await;
    is_in(&running, 0, "retrying").await;
    let TablePhase::Retrying { error, .. } = running.phase(0) else { panic!("it does not wait") };
    assert_eq!(error, "copying the table: the server is a standby");
    assert!(running.phase(0).next_attempt_in().unwrap() <= Duration::from_secs(30));
    commit(&database, 0, 2, "two");
    assert!(database.allow_copies(0) > 0);
    let journal = running.table(0).wait_journal().await.unwrap();
    let mut follower = JournalTestReader::from_base(&journal);
    // Fail again, now that the table has rows.
    database.refuse_copies(0, passing());
    assert!(running.table(0).reload("asked").await);
    is_in(&running, 0, "retrying").await;
    database.commit(0, vec![SimChange::Update(1, "another".to_owned())]);
    database.change_silently(0, vec![SimChange::Delete(2)]);
    let before = running.copies(0);
    database.allow_copies(0);
    eventually(PATIENCE, async || running.copies(0) > before).await.unwrap();
    is_equal(&running, &database, 0, &mut follower).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_copies_fail_holds_up_no_other_and_nothing_in_the_source() {
    let database = SimDatabase::new(2);
    let running = start(&database, tables(2)).await;
    let mut followers = Vec::new();
    for table in running.handle().tables().iter() {
        followers.push(JournalTestReader::from_base(&table.wait_journal().await.unwrap()));
    }
    database.refuse_copies(0, passing());
    assert!(running.table(0).reload("asked").await);
    is_in(&running, 0, "retrying").await;
    // Commit forty times the limit of changes held for a copy, and more than may wait for one
    // table.
    for id in 0..80 {
        commit(&database, 0, id, &"x".repeat(1 << 19));
    }
    let end = commit(&database, 1, 1, "beside it");
    wait_until_reached(&running.table(1).journal().unwrap(), end).await;
    eventually(PATIENCE, async || database.acknowledged() >= end).await.unwrap();
    assert!(running.phase(0).error().is_some());
    database.allow_copies(0);
    is_in(&running, 0, "live").await;
    for (table, follower) in followers.iter_mut().enumerate() {
        is_equal(&running, &database, table, follower).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_answers_what_has_become_of_it() {
    let database = SimDatabase::new(1);
    commit(&database, 0, 1, "one");
    let running = start(&database, tables(1)).await;
    let table = running.table(0);
    let mut follower = JournalTestReader::from_base(&table.wait_journal().await.unwrap());
    let lasting = || SourceError::Definite(vec!["run GRANT SELECT".to_owned()]);
    database.refuse_copies(0, lasting());
    let failed = ReloadError::Failed("copying the table: run GRANT SELECT".to_owned());
    assert_eq!(table.begin_reload("asked").await, Err(failed.clone()));
    assert_eq!(running.phase(0), TablePhase::Failed { error: "copying the table: run GRANT SELECT".to_owned() });
    // The order fails again, because each order is carried out.
    assert_eq!(table.begin_reload("asked").await, Err(failed));
    assert_eq!(database.allow_copies(0), 2);
    database.change_silently(0, vec![SimChange::Update(1, "untold".to_owned())]);
    assert_eq!(table.begin_reload("asked").await, Ok(()));
    is_in(&running, 0, "live").await;
    is_equal(&running, &database, 0, &mut follower).await;
    database.refuse_copies(0, passing());
    let answer = table.begin_reload("asked").await;
    assert!(matches!(answer, Err(ReloadError::Retrying { .. })), "{answer:?}");
    database.allow_copies(0);
    assert_eq!(table.begin_reload("at once, and not when the next attempt is due").await, Ok(()));
    is_in(&running, 0, "live").await;
    is_equal(&running, &database, 0, &mut follower).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_table_is_followed_again_on_an_order_and_when_its_definition_moves() {
    let database = SimDatabase::new(2);
    let running = start(&database, tables(2)).await;
    let mut followers = Vec::new();
    for table in running.handle().tables().iter() {
        followers.push(JournalTestReader::from_base(&table.wait_journal().await.unwrap()));
    }
    for index in 0..2 {
        let error = "its primary key was dropped".to_owned();
        database.inject_event(SourceEvent::Broken { table: TableIndex(index), error }).await;
        is_in(&running, index, "failed").await;
        commit(&database, index, 7, "while it had failed");
    }
    assert_eq!(running.table(0).begin_reload("asked").await, Ok(()));
    let (table, reason) = (TableIndex(1), "it can be followed again".to_owned());
    database.inject_event(SourceEvent::Moved { table, reason, definition: None }).await;
    for (index, follower) in followers.iter_mut().enumerate() {
        is_in(&running, index, "live").await;
        is_equal(&running, &database, index, follower).await;
    }
}

/// Temporary files cannot be created while the folder is missing. The folder returns later.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_temporary_files_is_followed_again_when_there_are_some() {
    let folder = tempfile::tempdir().unwrap();
    let gone: PathBuf = folder.path().join("temporary");
    let database = SimDatabase::new(2);
    let mut options = tables(2);
    options[0].folder.clone_from(&gone);
    options[0].journal.folder.clone_from(&gone);
    options[0].journal.memory_bytes_max = 1 << 20;
    let running = start(&database, options).await;
    is_in(&running, 0, "retrying").await;
    std::fs::create_dir(&gone).unwrap();
    let table = running.table(0);
    let mut follower = JournalTestReader::from_base(&table.wait_journal().await.unwrap());
    std::fs::remove_dir_all(&gone).unwrap();
    let id = AtomicI64::new(0);
    let has_stopped = async || {
        let id = id.fetch_add(1, Ordering::Relaxed);
        commit(&database, 0, id, &"x".repeat(1 << 19));
        running.phase(0).name() == "retrying"
    };
    eventually(PATIENCE, has_stopped).await.unwrap();
    let end = commit(&database, 1, 1, "beside it");
    wait_until_reached(&running.table(1).wait_journal().await.unwrap(), end).await;
    std::fs::create_dir(&gone).unwrap();
    is_in(&running, 0, "live").await;
    is_equal(&running, &database, 0, &mut follower).await;
    assert!(table.status().position > Lsn::ZERO);
}
