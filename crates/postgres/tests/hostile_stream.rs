//! Whatever bytes pretend to be a stream of pgoutput: an error at most, never a panic, and never a row that is not
//! whole.
//!
//! Streams of a real PostgreSQL are recorded and then damaged in every way, three seconds long; a minute with
//! `LAREDO_TEST_FULL=1`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use laredo_core::{Lsn, TupleRef, Xid};
use laredo_engine::source::SourceEvent;
use laredo_engine::spool::{RawChange, Spool, SpoolEntry, SpoolOptions};
use laredo_postgres::assemble::Assembler;
use laredo_testkit::{Cluster, ClusterOptions, is_full};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

type Messages = Vec<Vec<u8>>;

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
        // The seed is all that it takes to see a failure again.
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
            assembler.take(message, &mut events).unwrap();
        }
        let commits = events.iter().filter(|event| matches!(event, SourceEvent::Commit(_))).count();
        assert!(commits > 10, "{commits}");
        events.into_iter().for_each(read);
    }
}

/// Whether all messages of a damaged stream were accepted.
fn run(recordings: &[Messages], seed: u64) -> bool {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut messages = recordings.choose(&mut rng).unwrap().clone();
    for _ in 0..rng.random_range(1..6) {
        damage(&mut messages, &mut rng);
    }
    let mut assembler = assembler();
    let mut events = VecDeque::new();
    let mut all = true;
    for message in &messages {
        if assembler.take(message, &mut events).is_err() {
            all = false;
            // As after a lost connection.
            assembler.connected(assembler.position(), Xid(1000));
        }
        if rng.random_bool(0.01) {
            assembler.keepalive(Lsn(rng.random()));
            events.extend(assembler.progress());
        }
    }
    events.into_iter().for_each(read);
    all
}

fn damage(messages: &mut Messages, rng: &mut StdRng) {
    let at = rng.random_range(0..messages.len());
    let other = rng.random_range(0..messages.len());
    let message = messages[at].len();
    match rng.random_range(0..9) {
        0 => messages.swap(at, other),
        1 => drop(messages.remove(at)),
        2 => messages.insert(other, messages[at].clone()),
        3 => messages[at].truncate(rng.random_range(0..=message)),
        4 => messages[at].extend((0..rng.random_range(1..20)).map(|_| rng.random::<u8>())),
        5 if message > 0 => messages[at][rng.random_range(0..message)] = rng.random(),
        6 if message > 0 => messages[at][rng.random_range(0..message)] ^= 1 << rng.random_range(0..8),
        // A length or a count that means something.
        7 if message > 4 => {
            let place = rng.random_range(0..message - 4);
            let values = [0, 1, -1, -2, i32::MAX, i32::MIN, 0x7fff, 0xffff];
            messages[at][place..place + 4].copy_from_slice(&values.choose(rng).unwrap().to_be_bytes());
        }
        8 => {
            let tail = messages[other].get(message / 2..).unwrap_or_default().to_vec();
            messages[at].truncate(message / 2);
            messages[at].extend(tail);
        }
        _ => {}
    }
    if messages.is_empty() {
        messages.push(Vec::new());
    }
}

fn assembler() -> Assembler {
    let options = SpoolOptions { memory_bytes_max: 1 << 16, folder: std::env::temp_dir() };
    let tables = ["public.users", "public.orders"].map(|name| name.parse().unwrap());
    let mut assembler = Assembler::new(tables, Arc::new(options));
    assembler.connected(Lsn(0), Xid(1000));
    assembler
}

/// Every row has a cell for each column.
fn read(event: SourceEvent) {
    let SourceEvent::Commit(commit) = event else { return };
    for (_, spool) in commit.tables {
        check(spool);
    }
}

fn check(mut spool: Spool) {
    let mut columns = None;
    let read = spool.read::<std::io::Error>(|entry| {
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

/// What PostgreSQL sends of the same history, with cells as text and in binary.
fn record() -> Vec<Messages> {
    let cluster = Cluster::start(ClusterOptions::default().set("logical_decoding_work_mem", "64kB")).unwrap();
    let rows = "SELECT i::text, repeat('x', 20), i, i / 3.0, NULL FROM generate_series(1, 1000) i";
    let history = format!(
        "CREATE TYPE mood AS ENUM ('fine', 'not');
         CREATE TABLE users (id text PRIMARY KEY, note text, number int, price numeric, mood mood);
         CREATE TABLE orders (id int PRIMARY KEY, at timestamptz DEFAULT now());
         CREATE TABLE other (id int PRIMARY KEY);
         CREATE PUBLICATION laredo FOR ALL TABLES;
         SELECT pg_create_logical_replication_slot('laredo', 'pgoutput');
         SELECT pg_replication_origin_create('elsewhere');
         INSERT INTO users VALUES ('a', 'b', 1, 2, 'fine'), ('c', NULL, NULL, NULL, NULL);
         UPDATE users SET note = 'd';
         UPDATE users SET id = id || '2';
         DELETE FROM users WHERE id = 'a2';
         INSERT INTO orders SELECT generate_series(1, 20);
         INSERT INTO other SELECT generate_series(1, 20);
         INSERT INTO users SELECT 'large', string_agg(md5(i::text), '') FROM generate_series(1, 300) i;
         UPDATE users SET number = 7 WHERE id = 'large';
         BEGIN; {insert} SAVEPOINT s; {insert2} ROLLBACK TO s; TRUNCATE orders, other; COMMIT;
         BEGIN; {insert2} ROLLBACK;
         SELECT pg_logical_emit_message(true, 'prefix', 'content');
         ALTER TABLE users REPLICA IDENTITY FULL;
         DELETE FROM users WHERE number < 10;
         ALTER TABLE orders ADD COLUMN more text DEFAULT 'x';
         BEGIN; UPDATE orders SET more = 'y'; INSERT INTO orders VALUES (50); COMMIT;
         SELECT pg_replication_origin_session_setup('elsewhere');
         BEGIN; SELECT pg_replication_origin_xact_setup('0/1234', now()); INSERT INTO orders VALUES (51); COMMIT;",
        insert = format_args!("INSERT INTO users {rows};"),
        insert2 = format_args!("INSERT INTO orders SELECT generate_series(1000, 3000);"),
    );
    cluster.psql(&history).unwrap();
    let record = |binary: bool| {
        let sql = format!(
            "SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('laredo', NULL, NULL, \
             'proto_version', '2', 'publication_names', 'laredo', 'messages', 'true', 'streaming', 'on', 'binary', '{binary}')"
        );
        let lines = cluster.psql(&sql).unwrap();
        lines.lines().map(unhex).collect::<Messages>()
    };
    vec![record(false), record(true)]
}

fn unhex(line: &str) -> Vec<u8> {
    let digits = line.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
