//! Rows and changes as the messages of `Subscribe`, one each.

use laredo_core::{Schema, TupleBuf, TupleRef};
use laredo_engine::journal::BatchFrame;
use laredo_proto::frame;
use laredo_proto::oam::SubscribeResponse;
use laredo_values::HexCells;

use super::changes::{FrameChanges, VisibleChange};
use super::structs::{self, row_struct, timestamp};
use super::{ProjectedFrame, RowSelection, ViewError};

/// Returns the rows of a base, as inserts without a position: the subscriber may not have all of
/// them yet.
pub(super) fn rows(
    from: &BatchFrame,
    schema: &Schema,
    selection: &RowSelection,
    hex: &HexCells,
) -> Result<ProjectedFrame, ViewError> {
    structs::rows_as(from, schema, selection, hex, |row, out| {
        let (action, new_values) = ("INSERT".to_owned(), Some(row));
        frame::encode(&SubscribeResponse { action, new_values, ..SubscribeResponse::default() }, out);
    })
}

/// Returns the changes of a transaction's frame. Each has the end of the commit as its position.
pub(super) fn changes(changes: &FrameChanges<'_>, hex: &HexCells) -> Result<ProjectedFrame, ViewError> {
    let (mut out, mut count, mut scratch) = (Vec::new(), 0, TupleBuf::new());
    let (header, selection) = (&changes.frame.header, changes.selection);
    changes.each(|_, change| {
        let mut row =
            |row: TupleRef<'_>| row_struct(selection.schema(), selection.show(row, &mut scratch), hex).map(Some);
        let (action, old_values, new_values) = match change {
            VisibleChange::Insert(new) => ("INSERT", None, row(new)?),
            VisibleChange::Update { old, new } => ("UPDATE", row(old)?, row(new)?),
            VisibleChange::Delete(old) => ("DELETE", row(old)?, None),
            VisibleChange::Truncate => ("TRUNCATE", None, None),
        };
        let event = SubscribeResponse {
            action: action.to_owned(),
            position: header.position.to_string(),
            xid: i64::try_from(header.xid.0).unwrap_or(i64::MAX),
            timestamp: Some(timestamp(header.committed_at)),
            old_values,
            new_values,
        };
        frame::encode(&event, &mut out);
        count += 1;
        Ok(())
    })?;
    Ok(ProjectedFrame { bytes: out.into(), count, carries_end: header.ends && count > 0 })
}
