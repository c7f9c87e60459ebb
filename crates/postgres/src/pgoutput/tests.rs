use proptest::prelude::*;

use super::*;
use crate::message_bytes::{self as bytes, MessageBuilder, SentCell};

fn cells(row: PgoutputRow<'_>) -> Vec<Cell<'_>> {
    assert_eq!(row.cells.cells().count(), row.columns);
    row.cells.cells().collect()
}

#[test]
fn rows_come_in_every_form() {
    let mut decoder = PgoutputDecoder::new();
    let row = [SentCell::Text("a"), SentCell::Null, SentCell::Unchanged, SentCell::Binary(&[0, 1])];
    let expected = vec![Cell::Value(b"a"), Cell::Null, Cell::Unchanged, Cell::Value(&[0, 1])];
    let key = [SentCell::Text("k"), SentCell::Null, SentCell::Null, SentCell::Null];
    let expected_key = vec![Cell::Value(b"k"), Cell::Null, Cell::Null, Cell::Null];

    let message = bytes::insert(None, 7, &row);
    let PgoutputMessage::Insert { xid: None, relation: 7, new } = decoder.decode(&message).unwrap() else {
        panic!("not an insert")
    };
    assert_eq!(cells(new), expected);
    for (old, part) in [(None, 0), (Some(&key), b'K'), (Some(&key), b'O')] {
        let message = bytes::update(None, 7, old.map(|old| (part, old.as_slice())), &row);
        let PgoutputMessage::Update { old: found, new, .. } = decoder.decode(&message).unwrap() else {
            panic!("not an update")
        };
        assert_eq!(found.map(cells), old.map(|_| expected_key.clone()));
        assert_eq!(cells(new), expected);
    }
    for part in *b"KO" {
        let message = bytes::delete(None, 7, part, &key);
        let PgoutputMessage::Delete { old, .. } = decoder.decode(&message).unwrap() else { panic!("not a delete") };
        assert_eq!(cells(old), expected_key);
    }
}

#[test]
fn inside_a_streamed_block_messages_have_an_id() {
    let mut decoder = PgoutputDecoder::new();
    let plain = bytes::truncate(None, &[1, 2]);
    let within = bytes::truncate(Some(9), &[1, 2]);
    let expect = |decoder: &mut PgoutputDecoder, message: &[u8], expected| {
        let PgoutputMessage::Truncate { xid, relations } = decoder.decode(message).unwrap() else {
            panic!("not a truncate")
        };
        assert_eq!((xid, relations.iter().collect::<Vec<_>>()), (expected, vec![1, 2]));
    };
    expect(&mut decoder, &plain, None);
    decoder.decode(&bytes::stream_start(5, true)).unwrap();
    expect(&mut decoder, &within, Some(9));
    assert!(decoder.decode(&plain).is_err());
    decoder.decode(&bytes::stream_stop()).unwrap();
    expect(&mut decoder, &plain, None);
}

#[test]
fn the_small_messages() {
    let mut decoder = PgoutputDecoder::new();
    let committed_at = CommitTime(1_000_000);
    let record = CommitRecord { begins: Lsn(16), end: Lsn(24), committed_at };
    let expected = [
        (bytes::begin(3, 16), PgoutputMessage::Begin { xid: 3, commit: Lsn(16), committed_at }),
        (bytes::commit(16), PgoutputMessage::Commit(record)),
        (bytes::stream_commit(3, 16), PgoutputMessage::StreamCommit { xid: 3, record }),
        (bytes::stream_abort(3, 4), PgoutputMessage::StreamAbort { xid: 3, subtransaction: 4 }),
        (
            MessageBuilder::new(b'O').u64(5).text("elsewhere").0,
            PgoutputMessage::Origin { commit: Lsn(5), name: "elsewhere" },
        ),
        (
            MessageBuilder::new(b'Y').u32(5).text("public").text("mood").0,
            PgoutputMessage::Type { xid: None, oid: 5, schema: "public", name: "mood" },
        ),
        (
            MessageBuilder::new(b'M').u8(1).u64(5).text("laredo").u32(2).u16(0x6869).0,
            PgoutputMessage::Message { xid: None, transactional: true, lsn: Lsn(5), prefix: "laredo", content: b"hi" },
        ),
    ];
    for (message, expected) in expected {
        assert_eq!(decoder.decode(&message).unwrap(), expected);
    }
}

#[test]
fn a_relation_names_its_columns_and_key() {
    let mut decoder = PgoutputDecoder::new();
    let message = bytes::relation(None, 7, "users", b'd', &["*id", "näme"]);
    let PgoutputMessage::Relation { relation, .. } = decoder.decode(&message).unwrap() else {
        panic!("not a relation")
    };
    assert_eq!((relation.oid, relation.schema, relation.name), (7, "public", "users"));
    assert_eq!(relation.replica_identity, ReplicaIdentity::Default);
    let columns: Vec<_> = relation.columns.iter().map(|c| (c.is_key, c.name)).collect();
    assert_eq!(columns, [(true, "id"), (false, "näme")]);
    assert_eq!((relation.columns[0].type_oid, relation.columns[0].type_modifier), (25, -1));
}

#[test]
fn errors_say_where_and_what() {
    let cases: [(Vec<u8>, &str); 10] = [
        (vec![], "pgoutput message of an unknown kind, byte 0 of 0: 1 more bytes are expected and 0 are left"),
        (b"?".to_vec(), "pgoutput message of an unknown kind, byte 0 of 1: there is no message of kind 0x3f"),
        (
            bytes::begin(1, 1)[..20].to_vec(),
            "pgoutput message Begin, byte 17 of 20: 4 more bytes are expected and 3 are left",
        ),
        (
            [bytes::stream_stop(), vec![1, 2]].concat(),
            "pgoutput message Stream Stop, byte 1 of 3: 2 bytes follow the end of the message",
        ),
        (
            MessageBuilder::new(b'I').u32(7).u8(b'X').0,
            "pgoutput message Insert, byte 5 of 6: 0x58 introduces neither an old nor a new row",
        ),
        (
            MessageBuilder::new(b'I').u32(7).u8(b'N').u16(1).u8(b'z').0,
            "pgoutput message Insert, byte 8 of 9: there is no cell of kind 0x7a",
        ),
        (
            MessageBuilder::new(b'I').u32(7).u8(b'N').u16(1).u8(b't').u32(u32::MAX).0,
            "pgoutput message Insert, byte 9 of 13: length -1 is impossible",
        ),
        (
            MessageBuilder::new(b'I').u32(7).u8(b'N').u16(0xffff).0,
            "pgoutput message Insert, byte 6 of 8: length -1 is impossible",
        ),
        (
            MessageBuilder::new(b'R').u32(7).u8(0xff).u8(0).0,
            "pgoutput message Relation, byte 5 of 7: the name is not UTF-8",
        ),
        (
            bytes::relation(None, 7, "t", b'z', &[]),
            "pgoutput message Relation, byte 14 of 17: there is no replica identity of kind 0x7a",
        ),
    ];
    for (message, expected) in cases {
        assert_eq!(PgoutputDecoder::new().decode(&message).unwrap_err().to_string(), expected);
    }
    let prepared = PgoutputDecoder::new().decode(b"b").unwrap_err();
    assert_eq!(prepared.problem, PgoutputProblem::TwoPhase(b'b'));
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(kind in "[BCORYIUDTMSEcA]", rest: Vec<u8>, streamed: bool) {
        let mut decoder = PgoutputDecoder { in_stream: streamed, ..PgoutputDecoder::default() };
        let _ = decoder.decode(&[kind.as_bytes(), &rest].concat());
    }

    #[test]
    fn no_shorter_message_passes(cut in 0_usize..100) {
        let key = [SentCell::Text("key"), SentCell::Null];
        let message = bytes::update(None, 7, Some((b'K', &key)), &[SentCell::Unchanged, SentCell::Binary(b"value")]);
        let cut = cut % message.len();
        prop_assert!(PgoutputDecoder::new().decode(&message[..cut]).is_err());
    }
}
