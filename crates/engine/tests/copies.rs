//! Whatever is committed while tables are copied and copied again, and in whatever order commits become visible, the journal
//! rebuilds what the database held at its head, and at every commit that a reader may go on from.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Change, CommitTime, Lsn, Sequence, TableState};
use laredo_engine::journal::{Journal, Resolution, ResumeRequest, frames};
use laredo_engine::source::{SourceEvent, TableIndex};
use laredo_engine::{Engine, EngineHandle};
use laredo_proto::batch::Entries;
use laredo_testkit::{SimChange, SimDatabase, SimRows, sim_table};
use proptest::prelude::*;
use tokio::sync::oneshot;

/// What a reader has: rows, and where it goes on.
struct Reader {
    state: TableState,
    at: Sequence,
    position: Lsn,
}

impl Reader {
    fn from_base(journal: &Journal) -> Reader {
        let pinned = journal.pin_base();
        let base = pinned.base();
        let mut state = TableState::new(base.schema().clone(), &[], 0).unwrap();
        base.for_each_row::<laredo_engine::base::BaseError>(|row| {
            state.put(row.to_tuple());
            Ok(())
        })
        .unwrap();
        let mut reader = Reader { state, at: base.sequence(), position: base.position() };
        reader.read_on(journal);
        reader
    }

    /// Applies what is there; every change must fit exactly.
    fn read_on(&mut self, journal: &Journal) {
        let mut cursor = journal.cursor(self.at);
        while let Some(piece) = cursor.next_piece().unwrap() {
            for frame in frames(piece.frames.clone()) {
                if let Some(schema) = frame.batch.schema.clone() {
                    let schema = Arc::new(laredo_proto::schema::from_wire(schema).unwrap());
                    self.state.apply_change(&Change::Schema(schema)).unwrap();
                }
                let schema = self.state.schema().clone();
                for entry in Entries::new(&frame.batch.entries, &schema) {
                    self.state.apply_change(&entry.unwrap().to_change()).unwrap();
                }
                assert!(frame.header.last_sequence > self.at, "sequences increase");
                self.at = frame.header.last_sequence;
                if frame.header.ends {
                    assert!(frame.header.position > self.position, "positions of commits increase");
                    self.position = frame.header.position;
                }
            }
        }
    }

    fn rows(&self) -> SimRows {
        self.state.rows().map(|row| SimDatabase::parse(row.as_ref()).unwrap()).collect()
    }
}

struct Running {
    handle: EngineHandle,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), laredo_engine::source::SourceError>>,
}

async fn start(database: &SimDatabase, tables: usize) -> Running {
    let options = (0..tables).map(|i| sim_table(&format!("t{i}"))).collect();
    let clock: laredo_engine::Clock = Arc::new(|| CommitTime(0));
    let engine = Engine::prepare(database.clone(), options, clock).await.unwrap();
    let handle = engine.handle();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(engine.run(async move {
        let _ = stopped.await;
    }));
    Running { handle, stop, task }
}

async fn reached(journal: &Journal, position: Lsn) {
    let mut head = journal.watch_head();
    let waiting = head.wait_for(|head| head.position >= position);
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the head gets there").unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Commit { seed: u64, changes: usize, table: usize },
    Hide { seed: u64, changes: usize, table: usize },
    ShowAll,
    Reload { table: usize },
    Restart,
    Other,
    Yield,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let table = 0..2_usize;
    let step = prop_oneof![
        8 => (any::<u64>(), 1..6_usize, table.clone()).prop_map(|(seed, changes, table)| Step::Commit { seed, changes, table }),
        3 => (any::<u64>(), 1..6_usize, table.clone()).prop_map(|(seed, changes, table)| Step::Hide { seed, changes, table }),
        2 => Just(Step::ShowAll),
        2 => table.prop_map(|table| Step::Reload { table }),
        1 => Just(Step::Restart),
        1 => Just(Step::Other),
        3 => Just(Step::Yield),
    ];
    prop::collection::vec(step, 1..60)
}

/// Changes that fit what the table holds at the end of the log. Rows that a commit has written which is not visible yet are
/// `locked`, as in PostgreSQL, where its locks go when it becomes visible.
fn changes(database: &SimDatabase, table: usize, seed: u64, count: usize, locked: &Locked) -> Vec<SimChange> {
    let mut rows = database.rows_at(table, Lsn(u64::MAX));
    let mut made = Vec::new();
    for i in 0..count as u64 {
        let random = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i * 1_442_695_040_888_963_407) >> 20;
        let id = (random % 12) as i64;
        let body = format!("body {random}");
        let taken = |id: &i64| rows.contains_key(id) || locked.contains(&(table, *id));
        let free = (0..).find(|id| !taken(id)).unwrap();
        if locked.contains(&(table, id)) {
            continue;
        }
        let change = match (rows.contains_key(&id), random % 7) {
            (false, _) => SimChange::Insert(id, body.clone()),
            (true, 0 | 1) => SimChange::Update(id, body.clone()),
            (true, 2) => SimChange::Rekey(id, free, body.clone()),
            (true, 3) => SimChange::Touch(id),
            (true, 4) if random.is_multiple_of(5) && locked.is_empty() => SimChange::Truncate,
            (true, _) => SimChange::Delete(id),
        };
        match &change {
            SimChange::Insert(..) | SimChange::Update(..) => drop(rows.insert(id, body)),
            SimChange::Rekey(..) => {
                rows.remove(&id);
                rows.insert(free, body);
            }
            SimChange::Touch(_) => {}
            SimChange::Delete(_) => drop(rows.remove(&id)),
            SimChange::Truncate => rows.clear(),
        }
        made.push(change);
    }
    made
}

/// Tables and ids.
type Locked = BTreeSet<(usize, i64)>;

fn written(changes: &[SimChange]) -> Vec<i64> {
    let ids = |change: &SimChange| match change {
        SimChange::Insert(id, _) | SimChange::Update(id, _) | SimChange::Touch(id) | SimChange::Delete(id) => vec![*id],
        SimChange::Rekey(old, new, _) => vec![*old, *new],
        SimChange::Truncate => (0..100).collect(),
    };
    changes.iter().flat_map(ids).collect()
}

async fn play(steps: Vec<Step>) {
    let database = SimDatabase::new(2);
    for i in 0..8 {
        database.commit(0, vec![SimChange::Insert(i, format!("first {i}"))]);
    }
    let running = start(&database, 2).await;
    let (mut hidden, mut locked) = (Vec::new(), Locked::new());
    for step in steps {
        match step {
            Step::Commit { seed, changes: count, table } => {
                database.commit(table, changes(&database, table, seed, count, &locked));
            }
            Step::Hide { seed, changes: count, table } => {
                let changes = changes(&database, table, seed, count, &locked);
                locked.extend(written(&changes).into_iter().map(|id| (table, id)));
                hidden.push(database.commit_unseen(changes.into_iter().map(|c| (table, c)).collect()));
            }
            Step::ShowAll => {
                hidden.drain(..).rev().for_each(|end| database.show(end));
                locked.clear();
            }
            Step::Reload { table } => assert!(running.handle.tables()[table].reload("asked").await),
            Step::Restart => database.say(SourceEvent::Restarted { reason: "slot lost".to_owned() }).await,
            Step::Other => drop(database.commit_unseen(Vec::new())),
            Step::Yield => tokio::task::yield_now().await,
        }
    }
    hidden.drain(..).for_each(|end| database.show(end));
    let end = database.end();
    for (index, table) in running.handle.tables().iter().enumerate() {
        let journal = table.wait_journal().await.unwrap();
        reached(&journal, end).await;
        let mut fresh = Reader::from_base(&journal);
        assert_eq!(fresh.rows(), database.rows_at(index, end), "a fresh reader of table {index}");
        let after = database.commit(index, vec![SimChange::Insert(9999, "last".to_owned())]);
        reached(&journal, after).await;
        fresh.read_on(&journal);
        assert_eq!(fresh.rows(), database.rows_at(index, after), "and live");
        resumes_from_every_commit(&database, index, &journal);
    }
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
}

/// A reader that has exactly what the database held at a position, and asks to go on from there, ends equal or is told to load
/// the table.
fn resumes_from_every_commit(database: &SimDatabase, index: usize, journal: &Journal) {
    let head = journal.head();
    for position in (990..=head.position.0 + 1).map(Lsn) {
        let request = ResumeRequest { position: Some(position), whole_transactions: true, ..Default::default() };
        match journal.resolve(&request) {
            Resolution::Delta(at, _) => {
                let mut state = TableState::new(SimDatabase::schema(), &[], 0).unwrap();
                for (id, body) in database.rows_at(index, position) {
                    state.put(SimDatabase::row(id, &body).as_ref().to_tuple());
                }
                let mut reader = Reader { state, at, position: Lsn::ZERO };
                reader.read_on(journal);
                assert_eq!(reader.rows(), database.rows_at(index, head.position), "resumed at {position}");
            }
            Resolution::Full(_) => {}
            Resolution::Wait(_) => assert!(position > head.position),
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

fn cases() -> u32 {
    if std::env::var_os("LAREDO_TEST_FULL").is_some() { 2000 } else { 150 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_waits_for_applied_commits_to_become_visible() {
    let database = SimDatabase::new(1);
    let running = start(&database, 1).await;
    let table = &running.handle.tables()[0];
    let journal = table.wait_journal().await.unwrap();
    let late = database.commit_unseen(vec![(0, SimChange::Insert(1, "late".to_owned()))]);
    reached(&journal, late).await;
    assert!(table.reload("asked").await);
    // The commit is applied but no snapshot sees it: a copy taken now would lose it.
    let next = database.commit(0, vec![SimChange::Insert(2, "next".to_owned())]);
    database.show(late);
    reached(&journal, next).await;
    assert_eq!(Reader::from_base(&journal).rows(), database.rows_at(0, next));
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_table_does_not_stop_its_neighbour_and_no_longer_holds_the_slot_back() {
    let database = SimDatabase::new(2);
    let running = start(&database, 2).await;
    let journal = running.handle.tables()[1].wait_journal().await.unwrap();
    running.handle.tables()[0].wait_journal().await.unwrap();
    let error = "the primary key of public.t0 was dropped".to_owned();
    database.say(SourceEvent::Broken { table: TableIndex(0), error: error.clone() }).await;
    let end = database.commit(1, vec![SimChange::Insert(1, "one".to_owned())]);
    reached(&journal, end).await;
    let failed = laredo_engine::TablePhase::Failed { error };
    laredo_testkit::eventually(Duration::from_secs(30), async || {
        running.handle.tables()[0].status().phase == failed && database.acknowledged() >= end
    })
    .await
    .unwrap();
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
}

/// On an idle database the position passes a change that was not announced before anybody notices.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_copy_shows_gets_a_position_of_its_own() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![SimChange::Insert(1, "before".to_owned())]);
    let running = start(&database, 1).await;
    let table = &running.handle.tables()[0];
    let journal = table.wait_journal().await.unwrap();
    let known = database.change_silently(0, vec![SimChange::Update(1, "after".to_owned())]);
    reached(&journal, known).await;
    let known = journal.head().position;
    let mut reader = Reader::from_base(&journal);
    assert_eq!(reader.rows()[&1], "before");
    database.say(SourceEvent::Moved { table: TableIndex(0), reason: "rewritten".to_owned() }).await;
    let copied = async || table.status().copies == 2;
    laredo_testkit::eventually(Duration::from_secs(60), copied).await.unwrap();
    assert!(journal.head().position > known);
    let request = ResumeRequest { position: Some(known), whole_transactions: true, ..Default::default() };
    let Resolution::Delta(at, _) = journal.resolve(&request) else { panic!("the journal has it all") };
    reader.at = at;
    reader.read_on(&journal);
    assert_eq!(reader.rows()[&1], "after");
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_encoded_once() {
    let database = SimDatabase::new(1);
    let running = start(&database, 1).await;
    let journal = running.handle.tables()[0].wait_journal().await.unwrap();
    let mut end = Lsn::ZERO;
    for i in 0..1000 {
        end = database.commit(0, vec![SimChange::Insert(i, format!("row {i}")), SimChange::Delete(i)]);
    }
    reached(&journal, end).await;
    for _ in 0..3 {
        assert!(Reader::from_base(&journal).rows().is_empty());
    }
    assert_eq!(journal.info().encoded_entries, 2000);
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
}
