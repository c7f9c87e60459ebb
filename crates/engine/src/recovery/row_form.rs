//! Checks that the rows of a kept journal have the form of their schema.
//!
//! A composite type can change without an announcement. Earlier versions that did not notice this
//! wrote rows of two forms under one schema. Clients cannot decode such rows, so the table is
//! copied again.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use laredo_core::{Schema, TupleRef};
use laredo_proto::batch::{BatchEntries, EntryAction};
use laredo_values::NestedForm;

use crate::base::Base;
use crate::segment::{BatchFrame, Segment, frames};
use crate::store::{StoreError, read_error};

/// The reason for which rows of two forms under one schema are refused.
pub(super) const MIXED: &str = "it holds composite values that do not have the fields of their type";

/// Checks all rows that readers may still receive, including old rows. Reads nothing if no column
/// contains composites.
///
/// # Errors
/// When a row has another form, or a file cannot be read.
pub(super) fn check(
    base: &Base,
    segments: &VecDeque<Segment>,
    newest: &Arc<Schema>,
    path: &Path,
) -> Result<(), StoreError> {
    let mut schemas = segments.iter().map(|segment| &segment.schema).chain([base.schema(), newest]);
    if schemas.all(|schema| NestedForm::new(schema.clone()).is_trivial()) {
        return Ok(());
    }
    for segment in segments {
        let (run, olds) = segment.data.read(0, 0).map_err(read_error(path))?;
        if let Err(what) = check_segment(&segment.schema, run, olds) {
            let what = format!("entries {} to {}: {what}", segment.first, segment.last);
            return Err(StoreError::damaged(path, 0, what));
        }
    }
    Ok(())
}

fn check_segment(schema: &Arc<Schema>, run: Bytes, mut olds: Bytes) -> Result<(), String> {
    let mut form = NestedForm::new(schema.clone());
    for frame in frames(run) {
        if let Some(schema) = &frame.batch.schema {
            let schema = laredo_proto::schema::from_wire(schema.clone()).map_err(|error| error.to_string())?;
            form = NestedForm::new(Arc::new(schema));
        }
        let rows = sized(&mut olds).unwrap_or_default();
        if !form.is_trivial() {
            check_frame(&form, &frame, rows)?;
        }
    }
    Ok(())
}

fn check_frame(form: &NestedForm, frame: &BatchFrame, mut olds: Bytes) -> Result<(), String> {
    for entry in BatchEntries::new(&frame.batch.entries, form.schema()) {
        let entry = entry.map_err(|error| error.to_string())?;
        let is_row = match entry.action {
            EntryAction::Insert | EntryAction::Update => true,
            EntryAction::Delete | EntryAction::Truncate => false,
        };
        if is_row && !form.fits(entry.row) {
            return Err(MIXED.to_owned());
        }
    }
    while let Some(row) = sized(&mut olds) {
        let row = TupleRef::parse(&row, form.schema().columns().len()).map_err(|error| error.to_string())?;
        if !form.fits(row) {
            return Err(MIXED.to_owned());
        }
    }
    Ok(())
}

/// Returns the next bytes, which are preceded by their length.
fn sized(bytes: &mut Bytes) -> Option<Bytes> {
    let length = u32::from_be_bytes(*bytes.first_chunk::<4>()?) as usize;
    bytes.advance(4);
    Some(bytes.split_to(length.min(bytes.len())))
}
