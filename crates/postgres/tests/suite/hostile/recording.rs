//! Recorded messages of a real PostgreSQL, and functions that damage them.

use std::sync::Arc;

use laredo_core::{Lsn, Xid};
use laredo_engine::spool::SpoolOptions;
use laredo_postgres::assemble::PgoutputAssembler;
use laredo_testkit::{Cluster, ClusterOptions};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// The messages of a stream.
pub(crate) type RecordedMessages = Vec<Vec<u8>>;

/// The followed tables.
pub(crate) const TABLES: [&str; 2] = ["public.users", "public.orders"];

/// Damages a stream in one place.
pub(crate) fn damage(messages: &mut RecordedMessages, rng: &mut StdRng) {
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
        // A length or a count with a special value.
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

pub(crate) fn assembler() -> PgoutputAssembler {
    let options = SpoolOptions { memory_bytes_max: 1 << 16, folder: std::env::temp_dir() };
    let tables = TABLES.map(|name| name.parse().unwrap());
    let mut assembler = PgoutputAssembler::new(tables, Arc::new(options));
    assembler.connected(Lsn(0), Xid(1000));
    assembler
}

/// Returns PostgreSQL's messages for the same history twice: with cells as text and in binary.
pub(crate) fn record() -> Vec<RecordedMessages> {
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
        lines.lines().map(unhex).collect::<RecordedMessages>()
    };
    vec![record(false), record(true)]
}

fn unhex(line: &str) -> Vec<u8> {
    let digits = line.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
