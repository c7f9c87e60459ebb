use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;

use super::*;
use laredo_core::{Cell, Column, IndexSpec, Key, KeyColumns, Schema, Tuple, TupleBuf};

fn schema() -> Arc<Schema> {
    let column = |name: &str| Column {
        name: name.to_owned(),
        type_oid: 20,
        type_modifier: -1,
        type_name: "bigint".to_owned(),
        not_null: true,
        is_text: false,
    };
    Arc::new(Schema::new(vec![column("id"), column("amount")], KeyColumns::new([0]), BTreeMap::new()))
}

fn row(id: i64, amount: i64) -> Tuple {
    let cells = [id.to_be_bytes(), amount.to_be_bytes()];
    let row: TupleBuf = cells.iter().map(|c| Cell::Value(c)).collect();
    row.as_ref().to_tuple()
}

fn side(rows: i64) -> ReplicaTable {
    let index = IndexSpec { name: "amount".to_owned(), columns: vec!["amount".to_owned()], unique: false };
    let mut table = TableState::new(schema(), &[index], 0).unwrap();
    (0..rows).for_each(|id| drop(table.put(row(id, 100))));
    ReplicaTable { table: Some(table), ..ReplicaTable::empty(Arc::new(RowLayout::new(schema()))) }
}

fn transaction(position: u64, changes: Vec<Change>) -> Transaction {
    Transaction { position: Lsn(position), span_from: None, committed_at: CommitTime(0), changes }
}

fn amounts(side: &ReplicaTable) -> Vec<i64> {
    let table = side.table.as_ref().unwrap();
    let amount = |t: &Tuple| i64::from_be_bytes(t.as_ref().cell(1).value().unwrap().try_into().unwrap());
    table.rows().map(amount).collect()
}

#[test]
fn readers_on_many_threads_see_whole_transfers_only() {
    const ROWS: i64 = 10;
    const TRANSFERS: u64 = 20_000;
    let front = ReplicaFront::new(side(ROWS));
    let seen = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = Lsn::ZERO;
                while last < Lsn(TRANSFERS) {
                    let held = front.hold(Location::caller());
                    let side = held.side();
                    let amounts = amounts(side);
                    assert_eq!(amounts.iter().sum::<i64>(), ROWS * 100, "half a transfer at {}", side.position);
                    let index = side.table.as_ref().unwrap().index("amount").unwrap();
                    for amount in amounts {
                        let key = Key::new([Cell::Value(&amount.to_be_bytes())]);
                        assert!(index.rows(&key).next().is_some(), "the index lags at {}", side.position);
                    }
                    assert!(side.position >= last);
                    last = side.position;
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut writer = ReplicaWriter::new(front.clone());
        let mut amounts = [100; ROWS as usize];
        for n in 1..=TRANSFERS {
            let (from, to) = (n as usize % amounts.len(), (n as usize * 7 + 3) % amounts.len());
            amounts[from] -= 1;
            amounts[to] += 1;
            let update = |i: usize| Change::Update(row(i as i64, amounts[i]));
            writer.apply(transaction(n, vec![update(from), update(to)]), None).unwrap();
            // Every third transaction is published together with the next one.
            if n % 3 != 0 || n == TRANSFERS {
                writer.publish();
            }
        }
    });
    assert!(seen.into_inner() > 0);
}

#[test]
fn a_held_view_stays_as_it_was_and_delays_only_the_second_state_after_it() {
    let front = ReplicaFront::new(side(1));
    let mut writer = ReplicaWriter::new(front.clone());
    let update = |amount| vec![Change::Update(row(0, amount))];
    writer.apply(transaction(1, update(1)), None).unwrap();
    writer.publish();
    let held = front.hold(Location::caller());
    writer.apply(transaction(2, update(2)), None).unwrap();
    writer.publish();
    assert_eq!(amounts(held.side()), [1]);
    assert_eq!(amounts(front.hold(Location::caller()).side()), [2]);

    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            writer.apply(transaction(3, update(3)), None).unwrap();
            writer.publish();
            finished.store(true, Ordering::SeqCst);
        });
        while !front.writer_waits.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        assert_eq!(amounts(held.side()), [1]);
        assert!(!finished.load(Ordering::SeqCst));
        assert_eq!(front.holders.older_than(u64::MAX).len(), 1);
        drop(held);
        waiting.join().unwrap();
    });
    assert_eq!(amounts(front.hold(Location::caller()).side()), [3]);
}

#[test]
fn a_writer_that_waits_stops_no_reader_and_hears_of_all_who_leave() {
    const ROUNDS: u64 = 100;
    const READERS: usize = 8;
    let front = ReplicaFront::new(side(1));
    let (done, waits) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begin = std::sync::Barrier::new(READERS + 1);
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                begin.wait();
                while !done.load(Ordering::SeqCst) {
                    let held = front.hold(Location::caller());
                    // The view is held until the writer waits for it.
                    let position = held.side().position;
                    while position > Lsn(1)
                        && !front.writer_waits.load(Ordering::SeqCst)
                        && !done.load(Ordering::SeqCst)
                    {
                        let other = front.hold(Location::caller());
                        assert!(other.side().position >= position);
                        drop(other);
                        std::thread::yield_now();
                    }
                    waits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        begin.wait();
        // The writer starts after the first look of a reader.
        while waits.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        let mut writer = ReplicaWriter::new(front.clone());
        for n in 1..=ROUNDS {
            let amount = i64::try_from(n).unwrap();
            writer.apply(transaction(n, vec![Change::Update(row(0, amount))]), None).unwrap();
            writer.publish();
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(front.hold(Location::caller()).side().position, Lsn(ROUNDS));
}

#[test]
fn a_log_that_blocks_blocks_no_reader() {
    let front = ReplicaFront::new(side(1));
    let mut writer = ReplicaWriter::new(front.clone());
    for n in 1..=2 {
        writer.apply(transaction(n, vec![]), None).unwrap();
        writer.publish();
    }
    let (said, told) = std::sync::mpsc::channel();
    let (go_on, waiting) = std::sync::mpsc::channel();
    let held = front.hold(Location::caller());
    writer.apply(transaction(3, vec![]), None).unwrap();
    writer.publish();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let log = BlockingSubscriber { said, waiting: std::sync::Mutex::new(waiting) };
            tracing::subscriber::with_default(log, || writer.apply(transaction(4, vec![]), None)).unwrap();
        });
        told.recv().unwrap();
        // The log line does not end before these readers have come and gone.
        for _ in 0..100 {
            assert_eq!(front.hold(Location::caller()).side().position, Lsn(3));
        }
        go_on.send(()).unwrap();
        drop(held);
    });
}

/// A log writer that notifies the test of each write, and then blocks.
struct BlockingSubscriber {
    said: std::sync::mpsc::Sender<()>,
    waiting: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl tracing::Subscriber for BlockingSubscriber {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.said.send(()).unwrap();
        // Receiving fails if the test has already continued.
        let _ = self.waiting.lock().unwrap().recv();
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn closing_ends_the_wait_for_a_held_view() {
    let front = ReplicaFront::new(side(1));
    let mut writer = ReplicaWriter::new(front.clone());
    writer.apply(transaction(1, vec![]), None).unwrap();
    writer.publish();
    let _held = front.hold(Location::caller());
    writer.apply(transaction(2, vec![]), None).unwrap();
    writer.publish();
    front.close();
    assert_eq!(writer.apply(transaction(3, vec![]), None), Err(ReplicaWriteError::Closing));
}

#[test]
fn what_does_not_fit_is_never_seen_and_takes_what_was_not_shown_with_it() {
    let front = ReplicaFront::new(side(2));
    let mut writer = ReplicaWriter::new(front.clone());
    writer.apply(transaction(1, vec![Change::Update(row(0, 7))]), None).unwrap();
    let bad = transaction(2, vec![Change::Update(row(1, 8)), Change::Insert(row(1, 9))]);
    assert_eq!(writer.apply(bad, None), Err(ReplicaWriteError::State(StateError::KeyExists)));
    writer.publish();
    assert_eq!(amounts(front.hold(Location::caller()).side()), [100, 100]);
    writer.apply(transaction(3, vec![Change::Update(row(0, 5))]), None).unwrap();
    writer.publish();
    writer.catch_up();
    writer.apply(transaction(4, vec![]), None).unwrap();
    writer.publish();
    let mut amounts = amounts(front.hold(Location::caller()).side());
    amounts.sort_unstable();
    assert_eq!(amounts, [5, 100]);
}

#[test]
fn a_truncate_reports_every_row() {
    let front = ReplicaFront::new(side(3));
    let mut writer = ReplicaWriter::new(front);
    let mut changes = Vec::new();
    let truncate = vec![Change::Truncate, Change::Insert(row(1, 1))];
    writer.apply(transaction(1, truncate), Some(&mut changes)).unwrap();
    assert_eq!(changes.iter().filter(|c| c.new.is_none()).count(), 3);
    assert_eq!(changes[3].new.as_ref().unwrap().get::<i64>("amount").unwrap(), 1);
}
