//! Fuzz targets of what PostgreSQL sends, and of connection strings.

use std::collections::VecDeque;
use std::sync::Arc;

use laredo_core::{Lsn, TableName, Xid};
use laredo_engine::spool::SpoolOptions;
use laredo_fuzz::{FuzzTarget, outcome};

use crate::message_bytes::{self as bytes, SentCell};

/// Joins messages, each with its length of two bytes.
fn joined(messages: &[Vec<u8>]) -> Vec<u8> {
    let with_length = |message: &Vec<u8>| {
        let length = u16::try_from(message.len()).expect("the samples are short");
        [&length.to_be_bytes()[..], message].concat()
    };
    messages.iter().flat_map(with_length).collect()
}

fn split(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first_chunk::<2>()?;
        let (message, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        input = rest;
        Some(message)
    })
}

/// Returns streams of messages: transactions that come whole, and that come in blocks.
fn streams() -> Vec<Vec<u8>> {
    let (one, two) = ([SentCell::Text("1"), SentCell::Text("a")], [SentCell::Binary(b"2"), SentCell::Unchanged]);
    let relation = |xid| bytes::relation(xid, 10, "users", b'd', &["*id", "note"]);
    let whole = [
        bytes::begin(7, 100),
        relation(None),
        bytes::insert(None, 10, &one),
        bytes::update(None, 10, Some((b'K', &[SentCell::Text("1"), SentCell::Null])), &two),
        bytes::delete(None, 10, b'O', &one),
        bytes::truncate(None, &[10]),
        bytes::commit(100),
    ];
    let streamed = [
        bytes::stream_start(8, true),
        relation(Some(8)),
        bytes::insert(Some(9), 10, &one),
        bytes::update(Some(8), 10, None, &two),
        bytes::stream_stop(),
        bytes::stream_abort(8, 9),
        bytes::stream_commit(8, 300),
    ];
    let aborted = [
        bytes::stream_start(8, true),
        relation(Some(8)),
        bytes::delete(Some(8), 10, b'K', &one),
        bytes::stream_stop(),
        bytes::stream_abort(8, 8),
        bytes::begin(9, 400),
        bytes::commit(400),
    ];
    [whole.as_slice(), &streamed, &aborted].map(joined).to_vec()
}

mod pgoutput {
    use super::*;
    use crate::pgoutput::PgoutputDecoder;

    #[test]
    fn any_message_is_refused_or_leaves_a_decoder_that_repeats_itself() {
        FuzzTarget::new("pgoutput", streams()).run(|input| {
            let (mut decoder, mut kinds) = (PgoutputDecoder::new(), 0);
            for message in split(input) {
                let shown = match decoder.decode(message) {
                    Ok(decoded) => format!("{decoded:?}"),
                    Err(error) => {
                        assert!(error.offset <= error.length && error.length == message.len(), "{error}");
                        return Err(outcome(error));
                    }
                };
                kinds |= 1_u64 << (message.first().copied().unwrap_or_default() % 64);
                // Only the start and the end of a block change the decoder.
                let again = decoder.decode(message).map(|decoded| format!("{decoded:?}"));
                assert_eq!(again.map_err(outcome), Ok(shown));
            }
            Ok(kinds)
        });
    }
}

mod assembly {
    use super::*;
    use crate::assemble::PgoutputAssembler;

    /// Assembles streams. No stream panics, and commits end in order.
    #[test]
    fn any_stream_is_refused_or_its_positions_grow() {
        FuzzTarget::new("assembly", streams()).run(|input| {
            let spool = SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() };
            let tables = ["users", "orders"].map(|table| TableName::new("public", table));
            let mut assembler = PgoutputAssembler::new(tables, Arc::new(spool));
            assembler.connected(Lsn(50), Xid(1000));
            let (mut events, mut position) = (VecDeque::new(), assembler.position());
            for message in split(input) {
                assembler.take_message(message, &mut events).map_err(outcome)?;
                assert!(assembler.position() >= position);
                position = assembler.position();
            }
            Ok(events.len().min(10) as u64)
        });
    }
}

mod connection_strings {
    use super::*;
    use crate::{ConnectionOptions, PasswordSource};

    #[test]
    fn any_connection_string_is_refused_or_masked() {
        let seeds = [
            "postgresql://user:p%40ss@h1:5433/db?sslmode=require&application_name=x&connect_timeout=5",
            "host=/var/run/postgresql port=5432 user=u password='a b\\'c' dbname=d options='-c work_mem=1MB'",
            "postgres://u@[::1]/db?keepalives=0&require_auth=scram-sha-256",
            "host=a hostaddr=10.0.0.1 user=u sslmode=prefer channel_binding=prefer tcp_user_timeout=7",
        ];
        let seeds = seeds.map(|seed| seed.as_bytes().to_vec()).to_vec();
        let words = ["password=", "sslpassword=", "passfile=", "%00", "%ff", "host=", "?", "&", "@", "\\", "'", "://"];
        FuzzTarget::new("connection_strings", seeds).dictionary(&words).run(|input| {
            let text = std::str::from_utf8(input).map_err(outcome)?;
            let masked = ConnectionOptions::masked(text, "*");
            let options = ConnectionOptions::parse(text).map_err(outcome)?;
            let masked = masked.expect("what is valid is masked");
            let PasswordSource::Text(password) = &options.password else { return Ok(2) };
            // A short password may be a part of another word, and a long one may be there twice.
            let password = password.expose();
            if password.len() > 12 && text.matches(password).count() == 1 {
                assert!(!masked.contains(password), "{masked}");
            }
            Ok(u64::from(password.is_empty()))
        });
    }
}
