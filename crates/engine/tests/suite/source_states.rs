//! A source whose task fails is prepared again, and ends with the database's rows.

use std::path::Path;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::source::SourceState;
use laredo_engine::{Engine, EngineHandle, TableOptions};
use laredo_testkit::{RunningEngine, SimDatabase, SimFault, eventually, sim_table, stopped_clock};

use crate::support::{PATIENCE, commit};

async fn heals(fault: SimFault, store: Option<&Path>) {
    let database = SimDatabase::new(1);
    commit(&database, 0, 1, "one");
    database.fail(fault, 2);
    let options = TableOptions { store: store.map(|folder| folder.join("t0")), ..sim_table("t0") };
    let engine = Engine::new("sim", database.clone(), vec![options], stopped_clock(CommitTime(0)));
    assert_eq!(engine.handle().source_status().state, SourceState::Connecting, "nothing is asked before it runs");
    let running = RunningEngine::run(engine);
    let handle = running.handle();
    let is_followed = async || handle.source_status().state.is_following();
    eventually(PATIENCE, is_followed).await.unwrap_or_else(|_| panic!("{fault:?}: {:?}", handle.source_status()));
    let end = commit(&database, 0, 2, "two");
    has_rows(handle, 2, end).await;
    running.end().await;
}

async fn has_rows(handle: &EngineHandle, rows: u64, end: Lsn) {
    let has = async || {
        let status = handle.tables()[0].status();
        status.rows == rows && status.position >= end && handle.tables()[0].journal().is_some()
    };
    eventually(PATIENCE, has).await.unwrap_or_else(|_| panic!("{:?}", handle.tables()[0].status()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_task_fails_is_prepared_again() {
    for fault in [SimFault::Panic, SimFault::PanicAtStart, SimFault::Held, SimFault::Ended] {
        heals(fault, None).await;
        let folder = tempfile::tempdir().unwrap();
        heals(fault, Some(folder.path())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_refused_is_looked_at_again() {
    heals(SimFault::Refused, None).await;
}
