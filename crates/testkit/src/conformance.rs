//! Tests of the contract that every [`Source`] must satisfy, for any database.

#![allow(clippy::panic, reason = "it is a test, called by tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use laredo_core::{CommitMark, Lsn, TableName, TupleRef, Xid};
use laredo_engine::source::{
    CopyEvent, KnownTable, ResumeDecision, SnapshotCheck, Source, SourceError, SourceEvent, SourceStateReporter,
    TableIndex, TableRequest, TransactionSnapshot,
};
use laredo_engine::spool::{RawChange, Spool, SpoolEntry};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::{SimDatabase, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// A database with the empty tables `public.t0` and `public.t1` of [`SimDatabase::schema`], and no
/// others.
pub trait ConformanceDatabase {
    /// The source that follows the database.
    type Source: Source;

    /// Returns a source that keeps what was not acknowledged. Each new source continues from the
    /// state that the previous one left.
    fn source(&self) -> Self::Source;

    /// Commits rows, each a table and an ID, in one transaction.
    fn insert(&self, rows: &[(usize, i64)]) -> impl Future<Output = ()> + Send;

    /// Writes something unrelated to the tables, and returns the end of the WAL afterwards.
    fn write_elsewhere(&self) -> impl Future<Output = Lsn> + Send;

    /// Writes so much unrelated data that the database can forget the newest commits. Returns a
    /// position after that data.
    fn write_far(&self) -> impl Future<Output = Lsn> + Send {
        self.write_elsewhere()
    }

    /// Returns the position up to which the source has let the database forget its WAL.
    fn forgotten(&self) -> impl Future<Output = Lsn> + Send;
}

/// Tests the whole contract.
///
/// # Panics
/// When the source violates the contract.
pub async fn keeps_to_the_contract(bed: &impl ConformanceDatabase) {
    // A source that only reported progress would otherwise never end.
    tokio::time::timeout(PATIENCE * 5, contract(bed)).await.expect("the contract is checked in time");
}

async fn contract(bed: &impl ConformanceDatabase) {
    what_cannot_be_followed_is_refused(bed).await;
    let mut run = ConformanceRun::begin(bed, &[None, None], false).await;
    assert_eq!(run.resumes, [ResumeDecision::Follow, ResumeDecision::Follow], "nothing is left of tables that are new");
    // Everything that commits from here on is kept for the stream.
    let first = run.next().await;
    assert!(matches!(first, SourceEvent::Progress(_) | SourceEvent::Current { .. }), "{first:?}");
    let definitions = run.copies_show_what_was_sent(bed).await;
    run.commits_come_whole_and_in_order(bed).await;
    run.idle_time_is_progress(bed).await;
    let end = run.end_of_a_commit(bed, 500).await;
    let end = run.what_was_acknowledged_is_forgotten(bed, end).await;
    run.stop().await;

    bed.insert(&[(0, 600), (1, 601)]).await;
    let known = |position: Lsn, definition: &str| {
        Some(KnownTable {
            position,
            mark: CommitMark::default(),
            definition: definition.to_owned(),
            is_of_same_server: true,
        })
    };
    let left = definitions.map(|definition| known(end, &definition));
    let mut run = ConformanceRun::begin(bed, &left, false).await;
    assert_eq!(run.resumes, [ResumeDecision::Follow, ResumeDecision::Follow], "all after {end} is there");
    let sent = run.commit().await;
    assert_eq!(sent.rows, [(0, 600), (1, 601)], "what was committed meanwhile comes, and nothing before it");
    let end = run.what_was_acknowledged_is_forgotten(bed, sent.end).await;
    run.stop().await;

    let [left, other] = left;
    what_is_missing_or_not_known_is_not_followed(bed, &[left.clone(), known(end, "of another world")]).await;
    // A table that is followed receives resets, including one that was requested before the stream
    // began.
    let followed = left.map(|left| KnownTable { position: end, ..left });
    let mut run = ConformanceRun::begin(bed, &[followed, other], true).await;
    assert_eq!(run.resumes[0], ResumeDecision::Follow);
    run.a_reset_is_reported(bed, 700).await;
    run.source.reset(false).await.expect("the source can be reset");
    run.a_reset_is_reported(bed, 800).await;
    run.stop().await;
}

fn requests(names: &[&str]) -> Vec<TableRequest> {
    let request = |name: &&str| TableRequest { name: TableName::new("public", *name), key_fields: Vec::new() };
    names.iter().map(request).collect()
}

async fn what_cannot_be_followed_is_refused(bed: &impl ConformanceDatabase) {
    let refused = bed.source().prepare(&requests(&["t0", "t1", "absent"])).await;
    assert!(matches!(refused, Err(SourceError::Definite(_))), "a table that is not there: {refused:?}");
    let source = bed.source();
    source.prepare(&requests(&["t0", "t1"])).await.expect("the tables are there");
    let (rows, _events) = mpsc::channel(8);
    let refused = source.copy(TableIndex(2), None, Arc::new(|_| true), rows).await;
    assert!(matches!(refused, Err(SourceError::Definite(_))), "a table of no number: {refused:?}");
}

async fn what_is_missing_or_not_known_is_not_followed(bed: &impl ConformanceDatabase, known: &[Option<KnownTable>; 2]) {
    let source = bed.source();
    source.prepare(&requests(&["t0", "t1"])).await.expect("the tables are there");
    let resumes = source.resume(known).await.expect("the database answers");
    assert!(matches!(resumes[0], ResumeDecision::Copy(_)), "what was forgotten is missing: {resumes:?}");
    assert_ne!(resumes[1], ResumeDecision::Follow, "a definition that is not known");
}

/// A source that streams.
struct ConformanceRun<S> {
    source: Arc<S>,
    resumes: Vec<ResumeDecision>,
    events: mpsc::Receiver<SourceEvent>,
    acknowledged: watch::Sender<Lsn>,
    task: JoinHandle<Result<(), SourceError>>,
    /// The furthest position that the stream has reported.
    sent: Lsn,
}

/// A commit whose changes are all inserts.
#[derive(Debug)]
struct InsertCommit {
    xid: Xid,
    end: Lsn,
    rows: Vec<(usize, i64)>,
}

/// A copy, with the IDs of its rows.
struct CollectedCopy {
    snapshot: TransactionSnapshot,
    ids: BTreeSet<i64>,
    inserted: Lsn,
    definition: String,
}

impl<S: Source> ConformanceRun<S> {
    /// Begins a stream from known states. If `is_reset` is true, the source is reset before it
    /// streams.
    async fn begin(
        bed: &impl ConformanceDatabase<Source = S>,
        known: &[Option<KnownTable>],
        is_reset: bool,
    ) -> ConformanceRun<S> {
        let source = Arc::new(bed.source());
        source.prepare(&requests(&["t0", "t1"])).await.expect("the tables are there");
        let resumes = source.resume(known).await.expect("the database answers");
        assert_eq!(resumes.len(), known.len(), "each table has an answer");
        if is_reset {
            source.reset(false).await.expect("the source can be reset");
        }
        let (sender, events) = mpsc::channel(8);
        let (acknowledged, reader) = watch::channel(Lsn::ZERO);
        let streaming = source.clone();
        let reporter = SourceStateReporter::new("conformance");
        let acknowledge = Arc::new(move || *reader.borrow());
        let task = tokio::spawn(async move { streaming.stream(sender, acknowledge, reporter).await });
        ConformanceRun { source, resumes, events, acknowledged, task, sent: Lsn::ZERO }
    }

    /// Stops the stream. A stream ends without an error when its receiver is dropped.
    async fn stop(self) {
        drop(self.events);
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").expect("it does not panic");
        assert_eq!(ended, Ok(()));
    }

    /// Returns the next event that is not a new connection.
    async fn next(&mut self) -> SourceEvent {
        let event = loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event in time");
            match event.expect("the stream continues") {
                SourceEvent::Connected { .. } => {}
                event => break event,
            }
        };
        match &event {
            SourceEvent::Commit(commit) => {
                assert!(commit.end > self.sent, "a commit at {} after {} was sent", commit.end, self.sent);
                self.sent = commit.end;
            }
            SourceEvent::Progress(position) | SourceEvent::Current { position, .. } => {
                self.sent = self.sent.max(*position);
            }
            _ => {}
        }
        event
    }

    async fn commit(&mut self) -> InsertCommit {
        loop {
            match self.next().await {
                SourceEvent::Commit(commit) => {
                    let rows = commit
                        .tables
                        .into_iter()
                        .flat_map(|(table, spool)| inserted(spool).into_iter().map(move |id| (table.0, id)));
                    let mut rows: Vec<_> = rows.collect();
                    rows.sort_unstable();
                    return InsertCommit { xid: commit.xid, end: commit.end, rows };
                }
                SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
                other => panic!("{other:?} instead of a commit"),
            }
        }
    }

    async fn end_of_a_commit(&mut self, bed: &impl ConformanceDatabase, id: i64) -> Lsn {
        bed.insert(&[(0, id)]).await;
        let sent = self.commit().await;
        assert_eq!(sent.rows, [(0, id)]);
        sent.end
    }

    /// Tests the contents of copies, and returns the definitions of the tables.
    ///
    /// A copy includes everything that the stream sent before the copy began. A later commit is
    /// included exactly if the copy's snapshot sees it.
    async fn copies_show_what_was_sent(&mut self, bed: &impl ConformanceDatabase) -> [String; 2] {
        let (mut definitions, mut sent) = ([String::new(), String::new()], Vec::new());
        for (table, definition) in definitions.iter_mut().enumerate() {
            let first = 100 * (table as i64 + 1);
            bed.insert(&[(table, first), (table, first + 1)]).await;
            bed.insert(&[(table, first + 2)]).await;
            for _ in 0..2 {
                let commit = self.commit().await;
                sent.push((commit.xid, commit.rows));
            }
            let applied: Vec<Xid> = sent.iter().map(|(xid, _)| *xid).collect();
            let asked = Arc::new(AtomicUsize::new(0));
            let asking = asked.clone();
            // The first snapshot is refused, so that the source must take another one.
            let admits: SnapshotCheck = Arc::new(move |snapshot| {
                asking.fetch_add(1, Ordering::Relaxed) > 0 && applied.iter().all(|xid| snapshot.sees(*xid))
            });
            let before = self.sent;
            let (copied, mut later) = self.copy_while_writing(bed, table, admits, &asked).await;
            sent.append(&mut later);
            let seen = sent.iter().filter(|(xid, _)| copied.snapshot.sees(*xid)).flat_map(|(_, rows)| rows);
            let seen: BTreeSet<i64> = seen.filter(|(of, _)| *of == table).map(|(_, id)| *id).collect();
            assert_eq!(copied.ids, seen, "the rows of a copy under {:?}", copied.snapshot);
            // Although nothing more is written, the stream must reach a position after the copy and
            // after everything it sent before.
            while self.sent < copied.inserted || self.sent <= before {
                let event = self.next().await;
                assert!(matches!(event, SourceEvent::Progress(_) | SourceEvent::Current { .. }), "{event:?}");
            }
            *definition = copied.definition;
        }
        definitions
    }

    /// Copies a table while a transaction on both tables commits. The transaction commits after the
    /// first snapshot was refused. Returns the copy and what the stream sent meanwhile.
    async fn copy_while_writing(
        &mut self,
        bed: &impl ConformanceDatabase,
        table: usize,
        admits: SnapshotCheck,
        asked: &AtomicUsize,
    ) -> (CollectedCopy, Vec<(Xid, Vec<(usize, i64)>)>) {
        let (sender, rows) = mpsc::channel(8);
        let source = self.source.clone();
        let copying = tokio::spawn(async move { source.copy(TableIndex(table), None, admits, sender).await });
        let collecting = tokio::spawn(collect(rows));
        eventually(PATIENCE, async || asked.load(Ordering::Relaxed) > 0).await.expect("the snapshot is shown");
        let id = 1000 + table as i64;
        bed.insert(&[(0, id), (1, id)]).await;
        let later = self.commit().await;
        assert_eq!(later.rows, [(0, id), (1, id)], "the stream continues during a copy");
        copying.await.expect("no panic").expect("a copy");
        let copied = collecting.await.expect("no panic");
        (copied, vec![(later.xid, later.rows)])
    }

    async fn commits_come_whole_and_in_order(&mut self, bed: &impl ConformanceDatabase) {
        let mut committed = Vec::new();
        for n in 0..20 {
            let id = 2000 + n;
            let rows = match n % 3 {
                0 => vec![(0, id)],
                1 => vec![(1, id)],
                _ => vec![(0, id), (0, id + 100), (1, id)],
            };
            bed.insert(&rows).await;
            committed.push(rows);
        }
        for rows in committed {
            assert_eq!(self.commit().await.rows, rows);
        }
    }

    async fn idle_time_is_progress(&mut self, bed: &impl ConformanceDatabase) {
        let end = bed.write_elsewhere().await;
        while self.sent < end {
            let event = self.next().await;
            assert!(matches!(event, SourceEvent::Progress(_) | SourceEvent::Current { .. }), "{event:?}");
        }
    }

    /// Tests that the database forgets what was acknowledged. Returns the acknowledged position.
    async fn what_was_acknowledged_is_forgotten(&mut self, bed: &impl ConformanceDatabase, position: Lsn) -> Lsn {
        assert!(bed.forgotten().await < position, "nothing is forgotten of its own accord");
        let far = bed.write_far().await;
        while self.sent < far {
            self.next().await;
        }
        let acknowledged = self.sent;
        self.acknowledged.send_replace(acknowledged);
        let is_forgotten = eventually(PATIENCE, async || bed.forgotten().await >= position);
        // The events are received meanwhile, because the source would wait otherwise.
        let ended = tokio::select! {
            ended = is_forgotten => ended,
            () = async { loop { self.next().await; } } => Ok(()),
        };
        ended.expect("what is acknowledged is forgotten");
        acknowledged
    }

    async fn a_reset_is_reported(&mut self, bed: &impl ConformanceDatabase, id: i64) {
        while !matches!(self.next().await, SourceEvent::Restarted { .. }) {}
        let _ = self.end_of_a_commit(bed, id).await;
        let losses = self.source.retention().borrow().losses;
        assert!(losses > 0, "it is counted");
    }
}

/// Returns the IDs of the rows that a transaction has inserted into a table.
fn inserted(mut spool: Spool) -> Vec<i64> {
    let mut ids = Vec::new();
    let read = spool.for_each_entry::<std::io::Error>(|entry| {
        match entry {
            SpoolEntry::Change(RawChange::Insert { new }) => ids.push(id_of(new)),
            SpoolEntry::Change(other) => panic!("{other:?} where rows were inserted"),
            SpoolEntry::Shape(shape) => assert!(shape.fits(&SimDatabase::schema()), "{shape:?}"),
        }
        Ok(())
    });
    read.expect("a spool can be read");
    ids
}

fn id_of(row: TupleRef<'_>) -> i64 {
    SimDatabase::parse(row).expect("a row of the table").0
}

async fn collect(mut rows: mpsc::Receiver<CopyEvent>) -> CollectedCopy {
    let (mut begun, mut ids) = (None, BTreeMap::new());
    while let Some(event) = tokio::time::timeout(PATIENCE, rows.recv()).await.expect("a copy continues") {
        match event {
            CopyEvent::Begin { schema, snapshot, .. } => {
                assert_eq!(schema.columns().len(), 2);
                ids.clear();
                begun = Some(snapshot);
            }
            CopyEvent::Rows(bytes) => {
                assert!(begun.is_some(), "rows before the beginning");
                let mut rest = bytes.as_slice();
                while let Some((length, after)) = rest.split_first_chunk::<4>() {
                    let (row, after) = after.split_at(u32::from_ne_bytes(*length) as usize);
                    let row = TupleRef::parse(row, 2).expect("a whole row");
                    *ids.entry(id_of(row)).or_insert(0) += 1;
                    rest = after;
                }
            }
            CopyEvent::End { inserted, definition, is_streamed } => {
                assert!(!is_streamed, "a change of rows that are unknown cannot have been streamed");
                assert!(ids.values().all(|count| *count == 1), "a row is there twice: {ids:?}");
                let snapshot = begun.expect("a copy begins");
                return CollectedCopy { snapshot, ids: ids.into_keys().collect(), inserted, definition };
            }
        }
    }
    panic!("a copy that does not end")
}
