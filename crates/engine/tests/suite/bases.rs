//! Bases on request: new clients of the same moment share one base that shows the head, and every
//! request is answered.

use std::time::Duration;

use laredo_core::Lsn;
use laredo_engine::TableOptions;
use laredo_engine::base::Base;
use laredo_engine::journal::{Journal, PinnedBase};
use laredo_testkit::{RunningEngine, SimDatabase, SimRows, sim_table, wait_until_reached};
use tokio::task::JoinSet;

use crate::support::{PATIENCE, commit, start};

/// An engine over one simulated table.
struct BaseTestEngine {
    database: SimDatabase,
    journal: Journal,
    engine: RunningEngine,
}

impl BaseTestEngine {
    async fn start(database: &SimDatabase, table: TableOptions) -> BaseTestEngine {
        let engine = start(database, vec![table]).await;
        BaseTestEngine { database: database.clone(), journal: engine.journal(0).await, engine }
    }

    /// Inserts these rows, each in a transaction of its own, and waits until the journal shows
    /// them.
    async fn insert(&self, ids: std::ops::Range<i64>) -> Lsn {
        let mut end = Lsn::ZERO;
        for id in ids {
            end = commit(&self.database, 0, id, "row");
        }
        wait_until_reached(&self.journal, end).await;
        end
    }

    async fn end(self) {
        self.engine.end().await;
    }
}

async fn fresh(journal: &Journal) -> PinnedBase {
    tokio::time::timeout(PATIENCE, journal.fresh_base()).await.expect("a request is answered")
}

fn rows(base: &Base) -> SimRows {
    let mut rows = SimRows::new();
    base.for_each_row::<laredo_engine::base::BaseError>(|row| {
        rows.extend(SimDatabase::parse(row));
        Ok(())
    })
    .unwrap();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_of_one_moment_share_a_base_of_the_head() {
    let running = BaseTestEngine::start(&SimDatabase::new(1), sim_table("t0")).await;
    let end = running.insert(0..100).await;
    assert!(running.journal.fresh_base_now().is_none(), "the base shows none of it");
    let mut newcomers = JoinSet::new();
    for _ in 0..50 {
        let journal = running.journal.clone();
        newcomers.spawn(async move { fresh(&journal).await });
    }
    for pinned in newcomers.join_all().await {
        assert_eq!(rows(pinned.base()), running.database.rows_at(0, end));
        assert!(pinned.shown_at().is_some());
    }
    assert_eq!(running.journal.info().bases, 2, "the first one, and one for all of them");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_shows_the_head_is_not_made_again() {
    let running = BaseTestEngine::start(&SimDatabase::new(1), sim_table("t0")).await;
    for _ in 0..5 {
        assert_eq!(fresh(&running.journal).await.base().rows(), 0);
    }
    assert_eq!(running.journal.info().bases, 1);
    running.insert(0..1).await;
    for _ in 0..5 {
        assert_eq!(fresh(&running.journal).await.base().rows(), 1);
    }
    assert_eq!(running.journal.info().bases, 2);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_shows_whole_transactions_and_was_the_head_when_it_says() {
    let running = BaseTestEngine::start(&SimDatabase::new(1), sim_table("t0")).await;
    let mut made = 0;
    for round in 0..200 {
        let end = running.insert(round..round + 1).await;
        let seen_at = tokio::time::Instant::now();
        let pinned = fresh(&running.journal).await;
        let position = pinned.base().position();
        assert_eq!(rows(pinned.base()), running.database.rows_at(0, position));
        // A base that claims to be newer than the last commit shows that commit.
        if pinned.shown_at().is_some_and(|shown_at| shown_at >= seen_at) {
            assert!(position >= end, "{position} before {end}");
            made += 1;
        }
    }
    assert!(made > 0, "no base was made");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_the_base_there_is_where_none_can_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let table = TableOptions { folder: folder.path().to_owned(), ..sim_table("t0") };
    let running = BaseTestEngine::start(&SimDatabase::new(1), table).await;
    running.insert(0..3).await;
    drop(folder);
    assert_eq!(fresh(&running.journal).await.base().rows(), 0);
    assert_eq!(running.journal.info().bases, 1);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_does_not_wait_for_an_engine_that_has_ended() {
    let running = BaseTestEngine::start(&SimDatabase::new(1), sim_table("t0")).await;
    running.insert(0..3).await;
    let journal = running.journal.clone();
    running.end().await;
    assert_eq!(fresh(&journal).await.base().rows(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_journal_has_one_base_on_disk_and_restarts_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let table = || TableOptions { store: Some(folder.path().join("t0")), ..sim_table("t0") };
    let running = BaseTestEngine::start(&database, table()).await;
    let mut held = Vec::new();
    for round in 0..3 {
        running.insert(round * 10..round * 10 + 10).await;
        // Wait for a new base, not one made a moment ago.
        let before = running.journal.info().bases;
        while running.journal.info().bases == before {
            held.push(fresh(&running.journal).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let kept = || std::fs::read_dir(folder.path().join("t0")).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(kept().filter(|path| path.extension().is_some_and(|end| end == "base")).count(), 1);
    for pinned in &held {
        let base = pinned.base();
        assert_eq!(rows(base), database.rows_at(0, base.position()), "a base that a reader holds stays readable");
    }
    let newest = running.journal.base().sequence();
    running.end().await;
    drop(held);
    let running = BaseTestEngine::start(&database, table()).await;
    assert_eq!(running.journal.base().sequence(), newest);
    let end = running.insert(100..101).await;
    assert_eq!(rows(fresh(&running.journal).await.base()), database.rows_at(0, end), "the first after a restart");
    running.end().await;
}
