use super::*;
use crate::fixtures::{entries, greeting, two_columns};
use laredo_proto::replication::{GoAway, TypedSchema};
use proptest::prelude::*;

fn handshake(mode: SyncMode) -> Message {
    Message::Handshake(greeting(mode, 0))
}

fn bytes_of_entries() -> impl Strategy<Value = bytes::Bytes> {
    let action = prop_oneof![
        Just(EntryAction::Insert),
        Just(EntryAction::Update),
        Just(EntryAction::Delete),
        Just(EntryAction::Truncate)
    ];
    let cells = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3), 0..4);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(bytes::Bytes::from),
        prop::collection::vec((action, cells), 0..4).prop_map(|rows| entries(&rows)),
    ]
}

fn typed_schema() -> impl Strategy<Value = Option<TypedSchema>> {
    let keys = prop::collection::vec(0_u32..4, 0..3);
    prop_oneof![
        3 => Just(None),
        1 => keys.prop_map(|key| Some(TypedSchema { key, ..schema::to_wire(&two_columns()) })),
    ]
}

fn batch() -> impl Strategy<Value = Message> {
    let numbers = (0_u32..5, 0_u64..4, any::<i64>());
    (numbers, any::<bool>(), typed_schema(), bytes_of_entries()).prop_map(
        |((count, position, last_sequence), ends, schema, entries)| {
            Message::Batch(RowBatch {
                last_sequence,
                count,
                position,
                span_from: 0,
                committed_at_us: i64::MIN,
                ends,
                schema,
                entries,
                ..RowBatch::default()
            })
        },
    )
}

fn any_message() -> impl Strategy<Value = Message> {
    let position = prop_oneof![Just(String::new()), Just("0/1".to_owned()), Just("wrong".to_owned())];
    prop_oneof![
        2 => (0..5_i32).prop_map(|mode| handshake(SyncMode::try_from(mode).unwrap())),
        2 => any::<i64>().prop_map(|row_count| Message::SnapshotBegin(SnapshotBegin { row_count, ..Default::default() })),
        2 => (position.clone(), 0..3_i64).prop_map(|(source_position, rows_sent)| {
            Message::SnapshotEnd(SnapshotEnd { source_position, rows_sent, ..Default::default() })
        }),
        6 => batch(),
        1 => position.prop_map(|source_position| Message::Heartbeat(Heartbeat { source_position, ..Default::default() })),
        1 => Just(Message::GoAway(GoAway::default())),
    ]
}

proptest! {
    #[test]
    fn no_stream_panics_and_positions_only_grow(
        messages in prop::collection::vec(any_message(), 0..20),
        resumes: bool,
    ) {
        let mut assembler = StreamAssembler::new(vec![IndexSpec {
            name: "i".to_owned(),
            columns: vec!["b".to_owned()],
            unique: true,
        }]);
        let schema = two_columns();
        let opening = if resumes { SyncMode::Delta } else { SyncMode::FullSnapshot };
        let state = resumes.then_some(PresentRows { schema: &schema, position: Lsn(1), unchanged_since: Lsn(1) });
        let mut last = Lsn::ZERO;
        for message in [handshake(opening)].into_iter().chain(messages) {
            match assembler.feed(SyncResponse { message: Some(message) }, state) {
                Ok(AssemblerEvent::Transaction { transaction, .. }) => {
                    prop_assert!(transaction.position >= last && transaction.position > Lsn::ZERO);
                    last = transaction.position;
                }
                Ok(AssemblerEvent::Snapshot { position, .. }) => last = position,
                Ok(_) => {}
                Err(_) => assembler.reset(),
            }
            if !assembler.is_live() {
                last = Lsn::ZERO;
            }
        }
    }
}

#[test]
fn a_row_that_is_sent_twice_or_not_at_all_makes_a_snapshot_wrong() {
    let rows = [(EntryAction::Insert, vec![vec![1], vec![2]]), (EntryAction::Insert, vec![vec![1], vec![3]])];
    let mut assembler = StreamAssembler::new(Vec::new());
    let batch = RowBatch { count: 2, entries: entries(&rows), ..RowBatch::default() };
    for message in
        [handshake(SyncMode::FullSnapshot), Message::SnapshotBegin(SnapshotBegin::default()), Message::Batch(batch)]
    {
        assembler.feed(SyncResponse { message: Some(message) }, None).unwrap();
    }
    let end = Message::SnapshotEnd(SnapshotEnd { rows_sent: 2, ..SnapshotEnd::default() });
    let error = assembler.feed(SyncResponse { message: Some(end) }, None).unwrap_err();
    assert_eq!(error, StreamAssemblyError::Protocol(ProtocolError::SnapshotRows { expected: 2, found: 1 }));
}

/// This happens if a replica moved on by another stream after it had requested this one.
#[test]
fn a_new_copy_for_a_range_around_the_state_is_not_taken() {
    let ours = two_columns();
    let after_span = |from: u64, unchanged_since: u64, at: u64| {
        let mut assembler = StreamAssembler::new(Vec::new());
        let (position, unchanged_since) = (Lsn(at), Lsn(unchanged_since));
        let present = Some(PresentRows { schema: &ours, position, unchanged_since });
        let begin = SyncResponse { message: Some(handshake(SyncMode::Delta)) };
        assert!(matches!(assembler.feed(begin, present), Ok(AssemblerEvent::Opened(_))));
        let span = RowBatch { position: 0x300, span_from: from, ends: true, ..RowBatch::default() };
        assembler.feed(SyncResponse { message: Some(Message::Batch(span)) }, present)
    };
    let inside = after_span(0x100, 0x101, 0x200);
    let expected = ProtocolError::Span { from: Lsn(0x100), to: Lsn(0x300), ours: Lsn(0x200) };
    assert!(matches!(&inside, Err(StreamAssemblyError::Protocol(error)) if *error == expected), "{inside:?}");
    // The last case is a server that was killed before it stored the position of its heartbeat.
    for (from, since, at) in [(0x100, 0x100, 0x100), (0x200, 0x100, 0x100), (0x100, 0x100, 0x200)] {
        let taken = after_span(from, since, at);
        assert!(matches!(taken, Ok(AssemblerEvent::Transaction { .. })), "{from:x} {since:x} {at:x}");
    }
    // The client already has the whole span.
    assert!(matches!(after_span(0x100, 0x300, 0x300), Ok(AssemblerEvent::Repeated { .. })));
}

#[test]
fn a_heartbeat_has_its_position_in_either_field() {
    let position = |source_position: &str, earlier: &str| {
        let (source_position, earlier) = (source_position.to_owned(), earlier.to_owned());
        let heartbeat = Heartbeat { source_position, earlier_source_position: earlier, ..Heartbeat::default() };
        match heartbeat_event(&heartbeat) {
            Ok(AssemblerEvent::Heartbeat { position, .. }) => position,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(position("", ""), None);
    assert_eq!(position("0/10", ""), Some(Lsn(0x10)));
    assert_eq!(position("", "0/10"), Some(Lsn(0x10)));
    assert_eq!(position("0/20", "0/10"), Some(Lsn(0x20)));
    let malformed = Heartbeat { source_position: "here".to_owned(), ..Heartbeat::default() };
    assert!(heartbeat_event(&malformed).is_err());
}
