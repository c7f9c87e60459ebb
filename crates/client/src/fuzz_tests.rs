//! Fuzz targets of what a server sends.

use std::sync::Arc;

use laredo_core::{Cell, Column, KeyColumns, Schema, TupleBuf, TypeDef, TypeKind};
use laredo_fuzz::{FuzzTarget, outcome};

use crate::fixtures::{batch, greeting, snapshot, two_columns};
use crate::layout::RowLayout;
use crate::row::Row;

mod stream {
    use laredo_core::{Checksum, IndexSpec, Lsn, TableState};
    use laredo_proto::frame;
    use laredo_proto::replication::sync_response::Message as WireMessage;
    use laredo_proto::replication::{GoAway, Heartbeat, RowBatch, SyncMode, SyncResponse};
    use prost::Message as _;

    use super::*;
    use crate::assembler::{AssemblerEvent, PresentRows, StreamAssembler};

    /// Returns a stream after a byte: 1 if the client has rows.
    fn stream(has_rows: bool, messages: Vec<WireMessage>) -> Vec<u8> {
        let mut bytes = vec![u8::from(has_rows)];
        messages.into_iter().for_each(|message| frame::encode(&SyncResponse { message: Some(message) }, &mut bytes));
        bytes
    }

    fn seeds() -> Vec<Vec<u8>> {
        let changed = RowBatch {
            schema: Some(laredo_proto::schema::to_wire(&two_columns())),
            definition: 7,
            xid: 9,
            ..batch(0x300, &["c", "d"])
        };
        let heartbeat = Heartbeat {
            source_position: "0/300".to_owned(),
            checksum: Checksum::default().to_bytes().to_vec(),
            check: b"check".to_vec(),
            ..Heartbeat::default()
        };
        let mut whole = vec![WireMessage::Handshake(greeting(SyncMode::FullSnapshot, 0x200))];
        whole.extend(snapshot(0x200, &["a", "b"]));
        whole.extend([
            WireMessage::Batch(RowBatch { ends: false, ..batch(0x300, &["x"]) }),
            WireMessage::Batch(changed.clone()),
            WireMessage::Heartbeat(heartbeat),
            WireMessage::GoAway(GoAway::default()),
        ]);
        let mut delta = vec![WireMessage::Handshake(greeting(SyncMode::Delta, 0x200)), WireMessage::Batch(changed)];
        delta.extend(snapshot(0x400, &["z"]));
        vec![stream(false, whole), stream(true, delta)]
    }

    /// Shows each row, which decodes its cells as texts.
    fn show(table: &TableState) {
        let layout = Arc::new(RowLayout::new(table.schema().clone()));
        table.rows().for_each(|row| drop(format!("{:?}", Row::new(row.clone(), layout.clone()))));
    }

    fn checksum_of(table: &TableState) -> Checksum {
        table.rows().fold(Checksum::default(), |sum, row| sum.plus(Checksum::of_row(row.as_ref())))
    }

    /// Follows a stream as a replica does. Positions grow, and the checksum is that of the rows.
    #[test]
    fn any_stream_is_refused_or_leads_to_a_table_with_its_checksum() {
        let index = IndexSpec { name: "i".to_owned(), columns: vec!["b".to_owned()], unique: false };
        FuzzTarget::new("stream", seeds()).run(|input| {
            let (has_rows, mut rest) = input.split_first().ok_or("it is empty")?;
            let mut assembler = StreamAssembler::new(vec![index.clone()]);
            let mut table =
                (has_rows % 2 == 1).then(|| TableState::new(two_columns(), &[], 0).expect("there are no indexes"));
            let (mut position, mut kinds) = (Lsn(1), 0);
            while let Some(length) = frame::length(rest) {
                let message = &rest[frame::PREFIX_LENGTH..];
                let (message, after) = message.split_at_checked(length).ok_or("the message is cut")?;
                rest = after;
                let response = SyncResponse::decode(message).map_err(outcome)?;
                let schema = table.as_ref().map(|table| table.schema().clone());
                let event = assembler.feed(
                    response,
                    schema.as_ref().map(|schema| PresentRows { schema, position, unchanged_since: position }),
                );
                match event.map_err(|error| format!("{error:?}"))? {
                    AssemblerEvent::Snapshot { table: whole, position: at, .. } => {
                        show(&whole);
                        (table, position) = (Some(*whole), at);
                        kinds |= 1;
                    }
                    AssemblerEvent::Transaction { transaction, .. } => {
                        assert!(transaction.position >= position && transaction.position > Lsn::ZERO);
                        position = transaction.position;
                        let table = table.as_mut().expect("changes follow rows");
                        for change in &transaction.changes {
                            table.apply_change(change).map_err(outcome)?;
                        }
                        kinds |= 2;
                    }
                    AssemblerEvent::Heartbeat { .. } => kinds |= 4,
                    AssemblerEvent::Repeated { .. } => kinds |= 8,
                    AssemblerEvent::Opened(_) | AssemblerEvent::Nothing => {}
                }
            }
            if let Some(table) = &table {
                assert_eq!(table.checksum(), checksum_of(table));
            }
            Ok(kinds)
        });
    }
}

mod client_cells {
    use super::*;

    const MOOD: u32 = 90_001;
    const DOMAIN: u32 = 90_002;
    const LTREE: u32 = 90_003;
    const PAIR: u32 = 90_004;
    const MOODS: u32 = 90_005;
    const HSTORE: u32 = 90_006;

    fn layout(oid: u32) -> Arc<RowLayout> {
        let pair = vec![("x".to_owned(), 23), ("y".to_owned(), PAIR)];
        let kinds = [
            (MOOD, "mood", TypeKind::Enum(vec!["sad".to_owned()])),
            (DOMAIN, "number", TypeKind::Domain(23)),
            (LTREE, "ltree", TypeKind::Base),
            (HSTORE, "hstore", TypeKind::Base),
            (PAIR, "pair", TypeKind::Composite(pair)),
            (MOODS, "_mood", TypeKind::Array(MOOD)),
        ];
        let types = kinds.map(|(oid, name, kind)| (oid, TypeDef { name: name.to_owned(), kind }));
        let column = Column {
            name: "c".to_owned(),
            type_oid: oid,
            type_modifier: -1,
            type_name: "some type".to_owned(),
            not_null: false,
            is_text: false,
        };
        Arc::new(RowLayout::new(Arc::new(Schema::new(vec![column], KeyColumns::new([0]), types.into()))))
    }

    /// Returns true if a cell is read as the Rust type.
    fn reads<'a, T: crate::cell::FromCell<'a>>(row: &'a Row) -> bool {
        row.get::<T>(0).is_ok()
    }

    #[test]
    fn any_cell_is_read_or_refused_as_every_type() {
        let array = [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1][..], &[0, 0, 0, 4, 0, 0, 0, 7]];
        let seeds: [(u32, &[u8]); 13] = [
            (16, &[1]),
            (17, b"\xff\x00"),
            (20, &7_i64.to_be_bytes()),
            (23, &7_i32.to_be_bytes()),
            (25, b"text"),
            (701, &1.5_f64.to_be_bytes()),
            (869, &[2, 24, 0, 4, 10, 0, 0, 1]),
            (1184, &7_i64.to_be_bytes()),
            (1007, &array.concat()),
            (DOMAIN, &7_i32.to_be_bytes()),
            (LTREE, b"\x01a.b"),
            (MOOD, b"sad"),
            (HSTORE, &[0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0, 0, 1, b'b']),
        ];
        let seeds = seeds.map(|(oid, bytes)| [&oid.to_be_bytes(), bytes].concat());
        FuzzTarget::new("client_cells", seeds.to_vec()).run(|input| {
            let (oid, bytes) = input.split_first_chunk::<4>().ok_or("it has no type")?;
            let layout = layout(u32::from_be_bytes(*oid));
            let cells: TupleBuf = [Cell::Value(bytes)].into_iter().collect();
            let row = Row::new(cells.as_ref().to_tuple(), layout);
            assert!(!format!("{row:?}").is_empty());
            let numbers = [reads::<i16>(&row), reads::<i32>(&row), reads::<i64>(&row), reads::<u32>(&row)];
            let others = [reads::<f32>(&row), reads::<f64>(&row), reads::<bool>(&row), reads::<String>(&row)];
            let nested = [reads_nested(&row), reads::<&str>(&row), reads::<&[u8]>(&row), reads::<Vec<u8>>(&row)];
            let kinds = [numbers, others, nested].concat();
            Ok(kinds.into_iter().fold(0, |sum, is_read| sum * 2 + u64::from(is_read)))
        });
    }

    #[cfg(feature = "postgres-types")]
    fn reads_nested(row: &Row) -> bool {
        let lists = reads::<Vec<Option<i32>>>(row) || reads::<Vec<Option<String>>>(row);
        let lists = lists || reads::<std::collections::HashMap<String, Option<String>>>(row);
        lists || reads::<std::time::SystemTime>(row) || reads::<std::net::IpAddr>(row)
    }

    #[cfg(not(feature = "postgres-types"))]
    fn reads_nested(_: &Row) -> bool {
        false
    }
}
