//! Any bytes in place of a pgoutput stream cause an error at most. They never cause a panic or an
//! incomplete row.
//!
//! Streams of a real PostgreSQL are recorded and then damaged in many ways. The test takes three
//! seconds. With `LAREDO_TEST_FULL=1` it takes a minute.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use laredo_core::{Lsn, TupleRef, Xid};
use laredo_engine::source::SourceEvent;
use laredo_engine::spool::{RawChange, Spool, SpoolEntry};
use laredo_testkit::is_full;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::hostile::recording::{RecordedMessages, assembler, damage, record};

#[test]
fn damaged_streams_are_refused() {
    let recordings = record();
    let length = if is_full() { 60 } else { 3 };
    let until = Instant::now() + Duration::from_secs(length);
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    for seed in 0.. {
        let is_fair = accepted > 20 && refused > 20;
        if Instant::now() > until && is_fair {
            break;
        }
        let seen = accepted + refused;
        assert!(
            is_fair || seen < 10_000,
            "{accepted} of {seen} streams were accepted: damage is too little or too much"
        );
        // The seed alone reproduces a failure.
        let outcome = std::panic::catch_unwind(|| run(&recordings, seed));
        match outcome.unwrap_or_else(|_| panic!("seed {seed} panics")) {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    println!("{accepted} damaged streams were accepted, {refused} refused");
}

#[test]
fn whole_streams_are_accepted() {
    let recordings = record();
    let kinds: BTreeSet<u8> = recordings.iter().flatten().map(|message| message[0]).collect();
    assert_eq!(kinds, BTreeSet::from(*b"BCORYIUDTMSEcA"), "every message is in them");
    for recording in recordings {
        let mut events = VecDeque::new();
        let mut assembler = assembler();
        for message in &recording {
            assembler.take_message(message, &mut events).unwrap();
        }
        let commits = events.iter().filter(|event| matches!(event, SourceEvent::Commit(_))).count();
        assert!(commits > 10, "{commits}");
        events.into_iter().for_each(read);
    }
}

/// Returns true if all messages of a damaged stream were accepted.
fn run(recordings: &[RecordedMessages], seed: u64) -> bool {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut messages = recordings.choose(&mut rng).unwrap().clone();
    for _ in 0..rng.random_range(1..6) {
        damage(&mut messages, &mut rng);
    }
    let mut assembler = assembler();
    let mut events = VecDeque::new();
    let mut all = true;
    for message in &messages {
        if assembler.take_message(message, &mut events).is_err() {
            all = false;
            // Continue as after a lost connection.
            assembler.connected(assembler.position(), Xid(1000));
        }
        if rng.random_bool(0.01) {
            assembler.keepalive(Lsn(rng.random())).unwrap();
            events.extend(assembler.progress());
        }
    }
    events.into_iter().for_each(read);
    all
}

/// Checks that every row has a cell for each column.
fn read(event: SourceEvent) {
    let SourceEvent::Commit(commit) = event else { return };
    for (_, spool) in commit.tables {
        check(spool);
    }
}

fn check(mut spool: Spool) {
    let mut columns = None;
    let read = spool.for_each_entry::<std::io::Error>(|entry| {
        match entry {
            SpoolEntry::Shape(shape) => columns = Some(shape.columns.len()),
            SpoolEntry::Change(change) => rows(change).into_iter().flatten().for_each(|row| {
                assert_eq!(Some(row.cells().count()), columns);
                let bytes = row.cells().map(|cell| 4 + cell.value().map_or(0, <[u8]>::len)).sum::<usize>();
                assert_eq!(bytes, row.bytes().len());
            }),
        }
        Ok(())
    });
    read.unwrap();
}

fn rows(change: RawChange<'_>) -> [Option<TupleRef<'_>>; 2] {
    match change {
        RawChange::Insert { new } => [None, Some(new)],
        RawChange::Update { old, new } => [old, Some(new)],
        RawChange::Delete { old } => [Some(old), None],
        RawChange::Truncate => [None, None],
    }
}
