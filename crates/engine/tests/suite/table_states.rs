//! A table that cannot be copied or kept reports it, retries if that may help, and ends equal to
//! the database.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::source::{SourceError, SourceEvent, TableIndex};
use laredo_engine::{Engine, EngineHandle, ReloadError, TableOptions, TablePhase};
use laredo_testkit::{SimChange, SimDatabase, eventually, sim_table};
use tokio::sync::oneshot;

use crate::reader::{JournalTestReader, wait_until_reached};

const LONG: Duration = Duration::from_secs(60);

struct TableStateTestEngine {
    handle: EngineHandle,
    _stop: oneshot::Sender<()>,
}

async fn start(database: &SimDatabase, tables: Vec<TableOptions>) -> TableStateTestEngine {
    let engine = Engine::prepare(database.clone(), tables, Arc::new(|| CommitTime(0))).await.unwrap();
    let handle = engine.handle();
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(engine.run(async move {
        let _ = stopped.await;
    }));
    TableStateTestEngine { handle, _stop: stop }
}

impl TableStateTestEngine {
    fn phase(&self, table: usize) -> TablePhase {
        self.handle.tables()[table].status().phase
    }

    async fn is_in(&self, table: usize, state: &str) {
        let is_there = async || self.phase(table).name() == state;
        assert!(eventually(LONG, is_there).await.is_ok(), "{:?} is not {state}", self.phase(table));
    }

    /// Compares a table with the database, for a reader that has followed it and for a new one.
    async fn is_equal(&self, database: &SimDatabase, table: usize, follower: &mut JournalTestReader) {
        let end = database.commit(table, vec![SimChange::Insert(99_999, "last".to_owned())]);
        let journal = self.handle.tables()[table].wait_journal().await.unwrap();
        wait_until_reached(&journal, end).await;
        follower.read_on(&journal);
        assert_eq!(follower.rows(), database.rows_at(table, end));
        assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(table, end));
    }
}

fn tables(count: usize) -> Vec<TableOptions> {
    (0..count).map(|i| sim_table(&format!("t{i}"))).collect()
}

fn insert(id: i64, body: &str) -> Vec<SimChange> {
    vec![SimChange::Insert(id, body.to_owned())]
}

fn passing() -> SourceError {
    SourceError::Transient("the server is a standby".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_until_it_has_passed() {
    let database = SimDatabase::new(1);
    database.commit(0, insert(1, "one"));
    database.refuse_copies(0, passing());
    let running = start(&database, tables(1)).await;
    running.is_in(0, "retrying").await;
    let TablePhase::Retrying { error, .. } = running.phase(0) else { panic!("it does not wait") };
    assert_eq!(error, "copying the table: the server is a standby");
    assert!(running.phase(0).next_attempt_in().unwrap() <= Duration::from_secs(30));
    database.commit(0, insert(2, "two"));
    assert!(database.allow_copies(0) > 0);
    let journal = running.handle.tables()[0].wait_journal().await.unwrap();
    let mut follower = JournalTestReader::from_base(&journal);
    // Fail again, now that the table has rows.
    database.refuse_copies(0, passing());
    assert!(running.handle.tables()[0].reload("asked").await);
    running.is_in(0, "retrying").await;
    database.commit(0, vec![SimChange::Update(1, "another".to_owned())]);
    database.change_silently(0, vec![SimChange::Delete(2)]);
    let before = running.handle.tables()[0].status().copies;
    database.allow_copies(0);
    eventually(LONG, async || running.handle.tables()[0].status().copies > before).await.unwrap();
    running.is_equal(&database, 0, &mut follower).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_copies_fail_holds_up_no_other_and_nothing_in_the_source() {
    let database = SimDatabase::new(2);
    let running = start(&database, tables(2)).await;
    let mut followers = Vec::new();
    for table in running.handle.tables() {
        followers.push(JournalTestReader::from_base(&table.wait_journal().await.unwrap()));
    }
    database.refuse_copies(0, passing());
    assert!(running.handle.tables()[0].reload("asked").await);
    running.is_in(0, "retrying").await;
    // Commit forty times the limit of changes held for a copy, and more than may wait for one
    // table.
    for id in 0..80 {
        database.commit(0, insert(id, &"x".repeat(1 << 19)));
    }
    let end = database.commit(1, insert(1, "beside it"));
    wait_until_reached(&running.handle.tables()[1].journal().unwrap(), end).await;
    eventually(LONG, async || database.acknowledged() >= end).await.unwrap();
    assert!(running.phase(0).error().is_some());
    database.allow_copies(0);
    running.is_in(0, "live").await;
    for (table, follower) in followers.iter_mut().enumerate() {
        running.is_equal(&database, table, follower).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_answers_what_has_become_of_it() {
    let database = SimDatabase::new(1);
    database.commit(0, insert(1, "one"));
    let running = start(&database, tables(1)).await;
    let table = &running.handle.tables()[0];
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
    running.is_in(0, "live").await;
    running.is_equal(&database, 0, &mut follower).await;
    database.refuse_copies(0, passing());
    let answer = table.begin_reload("asked").await;
    assert!(matches!(answer, Err(ReloadError::Retrying { .. })), "{answer:?}");
    database.allow_copies(0);
    assert_eq!(table.begin_reload("at once, and not when the next attempt is due").await, Ok(()));
    running.is_in(0, "live").await;
    running.is_equal(&database, 0, &mut follower).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_table_is_followed_again_on_an_order_and_when_its_definition_moves() {
    let database = SimDatabase::new(2);
    let running = start(&database, tables(2)).await;
    let mut followers = Vec::new();
    for table in running.handle.tables() {
        followers.push(JournalTestReader::from_base(&table.wait_journal().await.unwrap()));
    }
    for index in 0..2 {
        let error = "its primary key was dropped".to_owned();
        database.inject_event(SourceEvent::Broken { table: TableIndex(index), error }).await;
        running.is_in(index, "failed").await;
        database.commit(index, insert(7, "while it had failed"));
    }
    assert_eq!(running.handle.tables()[0].begin_reload("asked").await, Ok(()));
    let (table, reason) = (TableIndex(1), "it can be followed again".to_owned());
    database.inject_event(SourceEvent::Moved { table, reason, definition: None }).await;
    for (index, follower) in followers.iter_mut().enumerate() {
        running.is_in(index, "live").await;
        running.is_equal(&database, index, follower).await;
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
    running.is_in(0, "retrying").await;
    std::fs::create_dir(&gone).unwrap();
    let table = &running.handle.tables()[0];
    let mut follower = JournalTestReader::from_base(&table.wait_journal().await.unwrap());
    std::fs::remove_dir_all(&gone).unwrap();
    let id = AtomicI64::new(0);
    let has_stopped = async || {
        let id = id.fetch_add(1, Ordering::Relaxed);
        database.commit(0, insert(id, &"x".repeat(1 << 19)));
        running.phase(0).name() == "retrying"
    };
    eventually(LONG, has_stopped).await.unwrap();
    let end = database.commit(1, insert(1, "beside it"));
    wait_until_reached(&running.handle.tables()[1].wait_journal().await.unwrap(), end).await;
    std::fs::create_dir(&gone).unwrap();
    running.is_in(0, "live").await;
    running.is_equal(&database, 0, &mut follower).await;
    assert!(table.status().position > Lsn::ZERO);
}
