//! Fuzz targets of the messages that carry rows and schemas.

use laredo_core::{Cell, Column, KeyColumns, Lsn, Schema, Sequence, TupleBuf, TypeDef, TypeKind};
use laredo_fuzz::{FuzzTarget, outcome};
use prost::Message;

use crate::replication::{SyncResponse, TypedSchema, sync_response};

fn sample_schema() -> Schema {
    let column = |(name, type_oid, type_name): (&str, u32, &str)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        not_null: true,
        is_text: false,
    };
    let kinds = [
        TypeKind::Enum(vec!["sad".to_owned(), "ok".to_owned()]),
        TypeKind::Domain(23),
        TypeKind::Composite(vec![("x".to_owned(), 23)]),
        TypeKind::Array(70_000),
        TypeKind::Range(701),
        TypeKind::Multirange(70_004),
        TypeKind::Money(2),
        TypeKind::Ascii,
        TypeKind::Base,
    ];
    let define = |(oid, kind): (u32, TypeKind)| (oid, TypeDef { name: format!("t{oid}"), kind });
    Schema::new(
        [("id", 20, "bigint"), ("mood", 70_000, "mood")].map(column).to_vec(),
        KeyColumns::new([1, 0]),
        (70_000..).zip(kinds).map(define).collect(),
    )
}

mod entries {
    use super::*;
    use crate::batch::{BatchBuilder, BatchEntries, BatchHeader, EntryAction};
    use crate::frame;

    fn seeds() -> Vec<Vec<u8>> {
        let row = |cells: &[Option<&[u8]>]| -> TupleBuf {
            cells.iter().map(|cell| cell.map_or(Cell::Null, Cell::Value)).collect()
        };
        let (whole, null, key) = (row(&[Some(b"12345678"), Some(b"ok")]), row(&[Some(b"1"), None]), row(&[Some(b"k")]));
        let mut builder = BatchBuilder::default();
        let mut out = Vec::new();
        builder.set_schema(&sample_schema());
        builder.push(EntryAction::Truncate, TupleBuf::new().as_ref());
        builder.push(EntryAction::Insert, whole.as_ref());
        builder.push(EntryAction::Update, null.as_ref());
        builder.push(EntryAction::Delete, row(&[Some(b"k"), Some(b"")]).as_ref());
        let header =
            BatchHeader { last_sequence: Sequence(7), position: Lsn(0x100), ends: true, ..BatchHeader::default() };
        builder.finish(&header, &mut out);
        let mut second = Vec::new();
        builder.push(EntryAction::Insert, whole.as_ref());
        builder.push(EntryAction::Insert, key.as_ref());
        builder.finish(&BatchHeader::default(), &mut second);
        [out, second].map(|bytes| bytes[frame::PREFIX_LENGTH..].to_vec()).to_vec()
    }

    #[test]
    fn any_batch_is_refused_or_is_written_as_it_was_read() {
        let schema = sample_schema();
        FuzzTarget::new("entries", seeds()).run(|input| {
            let response = SyncResponse::decode(input).map_err(outcome)?;
            let Some(sync_response::Message::Batch(batch)) = response.message else { return Ok(0) };
            let (mut builder, mut kinds) = (BatchBuilder::default(), 0);
            for entry in BatchEntries::new(&batch.entries, &schema) {
                let Ok(entry) = entry else { return Ok(100 + kinds) };
                kinds |= 1 << entry.action as u8;
                builder.push(entry.action, entry.row);
                drop(entry.to_change());
            }
            let mut out = Vec::new();
            builder.finish(&BatchHeader::of(&batch), &mut out);
            let again = SyncResponse::decode(&out[frame::PREFIX_LENGTH..]).expect("it was encoded just now");
            let Some(sync_response::Message::Batch(again)) = again.message else { panic!("it is not a batch") };
            assert_eq!(again.entries, batch.entries);
            assert_eq!(BatchHeader::of(&again), BatchHeader::of(&batch));
            Ok(kinds)
        });
    }
}

mod schemas {
    use super::*;
    use crate::schema::{column_definitions, from_wire, to_wire};

    #[test]
    fn any_schema_is_refused_or_returns_to_the_wire_unchanged() {
        let seeds = vec![to_wire(&sample_schema()).encode_to_vec()];
        FuzzTarget::new("schemas", seeds).run(|input| {
            let wire = TypedSchema::decode(input).map_err(outcome)?;
            let schema = from_wire(wire).map_err(outcome)?;
            assert_eq!(column_definitions(&schema).len(), schema.columns().len());
            let again = from_wire(to_wire(&schema)).expect("it was valid");
            assert_eq!(again, schema);
            Ok(schema.types().len().min(20) as u64)
        });
    }
}
