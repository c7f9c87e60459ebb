//! Messages as a server sends them, for a table with two text columns. They are for the tests of
//! the code that receives them.

use std::sync::Arc;

use laredo_core::{Cell, Column, KeyColumns, Lsn, Schema, TupleBuf};
use laredo_proto::batch::{BatchBuilder, BatchHeader, EntryAction};
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    Encoding, RowBatch, RowEncoding, SnapshotBegin, SnapshotEnd, SyncHandshake, SyncMode, SyncResponse,
};
use laredo_proto::schema;
use prost::Message as _;

/// Returns a schema whose first column is the key.
pub(crate) fn two_columns() -> Arc<Schema> {
    let column = |name: &str| Column {
        name: name.to_owned(),
        type_oid: 25,
        type_modifier: -1,
        type_name: "text".to_owned(),
        not_null: false,
        is_text: false,
    };
    let columns = vec![column("a"), column("b")];
    Arc::new(Schema::new(columns, KeyColumns::new([0]), Default::default()))
}

/// Returns the handshake of a server whose newest commit is `head`.
pub(crate) fn greeting(mode: SyncMode, head: u64) -> SyncHandshake {
    SyncHandshake {
        mode: mode.into(),
        encoding: Some(Encoding {
            format: RowEncoding::PostgresBinary.into(),
            schema: Some(schema::to_wire(&two_columns())),
        }),
        server_current_position: head,
        reason: "so says the test".to_owned(),
        ..SyncHandshake::default()
    }
}

pub(crate) fn entries(rows: &[(EntryAction, Vec<Vec<u8>>)]) -> bytes::Bytes {
    let mut builder = BatchBuilder::default();
    for (action, cells) in rows {
        let row: TupleBuf = cells.iter().map(|c| Cell::Value(c)).collect();
        builder.push(*action, row.as_ref());
    }
    let mut out = Vec::new();
    builder.finish(&BatchHeader::default(), &mut out);
    let response = SyncResponse::decode(&out[laredo_proto::frame::PREFIX_LENGTH..]).unwrap();
    let Some(Message::Batch(batch)) = response.message else { panic!("not a batch") };
    batch.entries
}

/// Returns a batch of rows with these keys. Each row has `b` in its other column.
pub(crate) fn batch(position: u64, keys: &[&str]) -> RowBatch {
    let rows: Vec<_> =
        keys.iter().map(|key| (EntryAction::Insert, vec![key.as_bytes().to_vec(), b"b".to_vec()])).collect();
    let count = keys.len().try_into().unwrap();
    RowBatch { position, count, entries: entries(&rows), ends: true, ..RowBatch::default() }
}

/// Returns a whole snapshot of these keys, beginning with its `SnapshotBegin`.
pub(crate) fn snapshot(position: u64, keys: &[&str]) -> [Message; 3] {
    let source_position = Lsn(position).to_string();
    let rows_sent = keys.len().try_into().unwrap();
    [
        Message::SnapshotBegin(SnapshotBegin::default()),
        Message::Batch(batch(0, keys)),
        Message::SnapshotEnd(SnapshotEnd { source_position, rows_sent, ..SnapshotEnd::default() }),
    ]
}
