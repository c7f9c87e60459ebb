//! The part of a table that its readers receive: filters on rows, then transforms of columns.

use std::io;
use std::sync::Arc;

use laredo_core::{
    Cell, ChecksumBuckets, Column, CommitTime, KeyColumns, Schema, TableState, Tuple, TupleBuf, TupleRef,
};
use laredo_values::{Filter, FilterError, NestedForm, Predicate, UnprintableType, VisibleEffect};

use crate::spool::{RawChange, Spool, SpoolEntry};

mod masking;
#[cfg(test)]
mod tests;

pub use masking::{CellReplacement, HashKey, ReplacedColumn, ShortHashKey, ValueMask, with_replaced_columns};

/// A step that changes columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transform {
    /// The removal of columns.
    DropFields(Vec<String>),
    /// The renaming of columns: (old, new).
    RenameFields(Vec<(String, String)>),
    /// The addition of a column with the time of the commit that last wrote the row.
    AddTimestamp(String),
    /// The replacement of the columns' values by a keyed hash of their text. The columns become
    /// text, and NULL stays NULL.
    Hash(Vec<String>, HashKey),
    /// The replacement of the columns' values by a mask. The columns become text, and NULL stays
    /// NULL.
    Mask(Vec<String>, ValueMask),
}

/// The filters and transforms of a configured table.
#[derive(Clone, Debug, Default)]
pub struct PipelineOptions {
    /// The filters. A row that does not match all of them is left out.
    pub filters: Vec<Predicate>,
    /// The transforms, applied in this order.
    pub transforms: Vec<Transform>,
}

impl PipelineOptions {
    /// Returns true if readers receive the table as it is.
    pub(crate) fn is_plain(&self) -> bool {
        self.filters.is_empty() && self.transforms.is_empty()
    }

    /// Checks that every filter and transform fits a table.
    ///
    /// # Errors
    /// The first filter or transform that does not fit.
    pub fn check(&self, table: &Arc<Schema>) -> Result<(), PipelineError> {
        Pipeline::bind(self, table).map(drop)
    }

    /// Returns a text that distinguishes the pipeline from others; empty if readers receive the
    /// table as it is. It names keys of hashes by their fingerprints.
    pub(crate) fn description(&self) -> String {
        if self.is_plain() { String::new() } else { format!("{:?} {:?}", self.filters, self.transforms) }
    }

    /// Returns true if every server makes the same rows of a table, so that their checksums can be
    /// compared. An added timestamp depends on each server's own copy.
    pub(crate) fn is_repeatable(&self) -> bool {
        !self.transforms.iter().any(|transform| matches!(transform, Transform::AddTimestamp(_)))
    }
}

/// An error of a pipeline that does not fit its table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// A name that is not the name of any column.
    #[error("{step} names column `{column}`, which the table does not have")]
    UnknownColumn {
        /// The filter or transform.
        step: &'static str,
        /// The name.
        column: String,
    },
    /// A filter that is invalid for its column.
    #[error("filters[{index}]: {0}", index = .0.index)]
    Filter(#[from] FilterError),
    /// A dropped column that is part of the key. Readers identify rows by the key.
    #[error("drop-fields names column `{0}`, which is part of the key; readers could not tell rows apart without it")]
    KeyColumn(String),
    /// A masked column that is part of the key. Readers identify rows by the key.
    #[error(
        "mask names column `{0}`, which is part of the key; readers could not tell rows apart without it; hash keeps keys distinct"
    )]
    MaskedKey(String),
    /// A column whose values would be replaced twice.
    #[error("{step} names column `{column}`, whose values {earlier} replaces already; name it in one of them")]
    ReplacedTwice {
        /// The transform.
        step: &'static str,
        /// The name.
        column: String,
        /// The earlier transform.
        earlier: &'static str,
    },
    /// A column whose values have no text that other programs could compute.
    #[error(
        "{step} names column `{column}` of type {type_name}, and {problem}; use drop-fields, or mask with a fixed value"
    )]
    Unprintable {
        /// The transform.
        step: &'static str,
        /// The name.
        column: String,
        /// The name of the column's type.
        type_name: String,
        /// The cause.
        problem: UnprintableType,
    },
    /// A second column with the same name.
    #[error("{step} would make a second column named `{column}`; choose another name")]
    Duplicate {
        /// The transform.
        step: &'static str,
        /// The name.
        column: String,
    },
}

/// A pipeline bound to a table's schema.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    source: Arc<Schema>,
    /// The form of the composites in the source's rows. Their types can change without an
    /// announcement.
    form: NestedForm,
    state: Arc<Schema>,
    out: Arc<Schema>,
    filter: Filter,
    /// The columns that readers receive; `None` if they receive all columns unchanged.
    columns: Option<Vec<OutColumn>>,
}

/// A column that readers receive.
#[derive(Clone, Debug)]
struct OutColumn {
    /// The number of the state's column.
    from: usize,
    /// The replacement of its values.
    replaced: Option<ReplacedColumn>,
}

/// A column that readers receive, while the transforms are bound.
struct UnboundColumn {
    from: usize,
    column: Column,
    replacement: Option<CellReplacement>,
}

/// The OID of the type `timestamptz`.
const TIMESTAMPTZ_OID: u32 = 1184;

impl Pipeline {
    pub(crate) fn bind(options: &PipelineOptions, source: &Arc<Schema>) -> Result<Pipeline, PipelineError> {
        for predicate in &options.filters {
            let known = source.position_of(&predicate.field).is_some();
            let column = predicate.field.clone();
            known.then_some(()).ok_or(PipelineError::UnknownColumn { step: "a filter", column })?;
        }
        let columns = source.columns().iter().cloned().enumerate();
        let unchanged = |(from, column)| UnboundColumn { from, column, replacement: None };
        let mut out: Vec<UnboundColumn> = columns.map(unchanged).collect();
        let mut extra = None;
        for transform in &options.transforms {
            match transform {
                Transform::DropFields(fields) => {
                    for field in fields {
                        let at = column_position(&out, "drop-fields", field)?;
                        if source.key().contains(out[at].from) {
                            return Err(PipelineError::KeyColumn(field.clone()));
                        }
                        out.remove(at);
                    }
                }
                Transform::RenameFields(fields) => {
                    for (old, new) in fields {
                        let at = column_position(&out, "rename-fields", old)?;
                        check_name_is_free(&out, "rename-fields", new)?;
                        out[at].column.name.clone_from(new);
                    }
                }
                Transform::AddTimestamp(field) => {
                    check_name_is_free(&out, "add-timestamp", field)?;
                    let column = extra.get_or_insert_with(|| timestamp_column(field)).clone();
                    let (from, column) = (source.columns().len(), Column { name: field.clone(), ..column });
                    out.push(UnboundColumn { from, column, replacement: None });
                }
                Transform::Hash(fields, key) => {
                    replace_columns(&mut out, source, fields, &CellReplacement::Hash(key.clone()))?;
                }
                Transform::Mask(fields, mask) => {
                    replace_columns(&mut out, source, fields, &CellReplacement::Mask(mask.clone()))?;
                }
            }
        }
        Pipeline::bound(options, source, extra, out)
    }

    fn bound(
        options: &PipelineOptions,
        source: &Arc<Schema>,
        extra: Option<Column>,
        out: Vec<UnboundColumn>,
    ) -> Result<Pipeline, PipelineError> {
        let state = match extra {
            None => source.clone(),
            Some(column) => {
                let columns = source.columns().iter().cloned().chain([column]).collect();
                Arc::new(Schema::new(columns, source.key().clone(), source.types().clone()))
            }
        };
        let filter = Filter::bind(&options.filters, &state)?;
        let form = NestedForm::new(source.clone());
        if options.transforms.is_empty() {
            return Ok(Pipeline { source: source.clone(), form, out: state.clone(), state, filter, columns: None });
        }
        let (mut from, mut columns, mut replaced) = (Vec::new(), Vec::new(), Vec::new());
        for (number, unbound) in out.into_iter().enumerate() {
            let (bound, column) = unbound.bind(&state)?;
            replaced.extend(bound.replaced.is_some().then_some(number));
            from.push(bound);
            columns.push(column);
        }
        let key = source.key().columns().iter().filter_map(|k| from.iter().position(|f| f.from == *k));
        let key = KeyColumns::new(key.collect::<Vec<_>>());
        let mut out = Schema::new(columns, key, source.types().clone());
        if !replaced.is_empty() {
            out = with_replaced_columns(&out, &replaced);
        }
        let out = Arc::new(out);
        Ok(Pipeline { source: source.clone(), form, state, out, filter, columns: Some(from) })
    }

    /// Returns the schema of the source's rows.
    pub(crate) fn source(&self) -> &Arc<Schema> {
        &self.source
    }

    /// Returns true if all rows of a transaction are rows of the source's schema. They then have
    /// its columns, and their composites have the fields of its types. Reads the rows only if a
    /// column contains composites.
    ///
    /// # Errors
    /// When the spool's file cannot be read.
    pub(crate) fn fits(&self, spool: &mut Spool) -> io::Result<bool> {
        let mut fits = spool.fits(&self.source);
        if !fits || self.form.is_trivial() {
            return Ok(fits);
        }
        spool.for_each_entry::<io::Error>(|entry| {
            let new = match entry {
                SpoolEntry::Change(RawChange::Insert { new } | RawChange::Update { new, .. }) => Some(new),
                // Only the key of an old row is used. A key of another form is not found, and the
                // table is then copied again.
                SpoolEntry::Change(RawChange::Delete { .. } | RawChange::Truncate) | SpoolEntry::Shape(_) => None,
            };
            fits = fits && new.is_none_or(|row| self.form.fits(row));
            Ok(())
        })?;
        Ok(fits)
    }

    /// Returns true if the composites of a row of the source have the fields of its types.
    pub(crate) fn has_form(&self, row: TupleRef<'_>) -> bool {
        self.form.fits(row)
    }

    /// Returns the schema of the state's rows: the source's columns, and a commit time if a
    /// transform needs one.
    pub(crate) fn state(&self) -> &Arc<Schema> {
        &self.state
    }

    /// Returns the schema of the rows that readers receive.
    pub(crate) fn out(&self) -> &Arc<Schema> {
        &self.out
    }

    pub(crate) fn has_filter(&self) -> bool {
        !self.filter.is_empty()
    }

    /// Returns true if readers receive the rows of the state as they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.filter.is_empty() && self.columns.is_none()
    }

    /// Returns true if readers receive hashes instead of values of the key.
    pub(crate) fn replaces_key(&self) -> bool {
        let is_replaced = |column: &OutColumn| column.replaced.is_some() && self.source.key().contains(column.from);
        self.columns.iter().flatten().any(is_replaced)
    }

    /// Returns true if each value that readers receive a replacement of is still in a column of
    /// the same type under another definition. If it is not, what readers have cannot be computed
    /// from the rows of the state any more.
    pub(crate) fn keeps_replaced_values(&self, new: &Pipeline) -> bool {
        let columns = self.columns.iter().flatten().filter(|column| column.replaced.is_some());
        let facts = |c: &Column| (c.name.clone(), c.type_oid, c.type_modifier, c.is_text);
        columns.filter_map(|column| self.state.columns().get(column.from)).all(|was| {
            let is_kept = new.state.columns().iter().any(|is| facts(is) == facts(was));
            is_kept && self.state.reads_alike(&new.state, was.type_oid)
        })
    }

    /// Returns the name by which readers know a column of the source; its own name if they do not
    /// receive it.
    pub(crate) fn reader_name(&self, column: usize) -> &str {
        let place = self.columns.iter().flatten().position(|out| out.from == column);
        let known = place.and_then(|place| self.out.columns().get(place));
        known.or_else(|| self.source.columns().get(column)).map_or("", |column| column.name.as_str())
    }

    /// Returns the checksums of the rows that readers receive of a state; `None` if they are the
    /// state's own checksums.
    pub(crate) fn checksums_of(&self, state: &TableState) -> Option<ChecksumBuckets> {
        if self.is_plain() {
            return None;
        }
        let (mut sums, mut out) = (ChecksumBuckets::default(), TupleBuf::new());
        for row in state.rows().map(Tuple::as_ref) {
            if self.classify(None, Some(row)) == VisibleEffect::Insert {
                sums.replace(self.out.key(), None, Some(self.out_row(row, &mut out)));
            }
        }
        Some(sums)
    }

    /// Returns the change that readers see when a row of the state changes.
    pub(crate) fn classify(&self, old: Option<TupleRef<'_>>, new: Option<TupleRef<'_>>) -> VisibleEffect {
        self.filter.classify(old, new)
    }

    /// Converts a row of the source to a row of the state.
    pub(crate) fn state_row<'a>(&self, row: TupleRef<'a>, at: CommitTime, scratch: &'a mut TupleBuf) -> TupleRef<'a> {
        if self.state.columns().len() == self.source.columns().len() {
            return row;
        }
        scratch.clear();
        row.cells().for_each(|cell| scratch.push(cell));
        scratch.push(Cell::Value(&at.0.to_be_bytes()));
        scratch.as_ref()
    }

    /// Returns true if two rows of the state are the same row of the source.
    pub(crate) fn same_source_row(&self, one: TupleRef<'_>, other: TupleRef<'_>) -> bool {
        let count = self.source.columns().len();
        one.bytes() == other.bytes()
            || (self.state.columns().len() > count && one.cells().take(count).eq(other.cells().take(count)))
    }

    /// Converts a row of the state to the row that readers receive.
    pub(crate) fn out_row<'a>(&self, row: TupleRef<'a>, scratch: &'a mut TupleBuf) -> TupleRef<'a> {
        let Some(columns) = &self.columns else { return row };
        let cells: Vec<Cell<'_>> = row.cells().collect();
        scratch.clear();
        for OutColumn { from, replaced } in columns {
            match (cells.get(*from).copied().unwrap_or(Cell::Null), replaced) {
                (Cell::Value(bytes), Some(replaced)) => scratch.push(Cell::Value(replaced.replace(bytes).as_bytes())),
                (cell @ (Cell::Null | Cell::Unchanged), Some(_)) | (cell, None) => scratch.push(cell),
            }
        }
        scratch.as_ref()
    }
}

impl UnboundColumn {
    /// Binds the replacement of the column's values, if there is one.
    fn bind(self, state: &Arc<Schema>) -> Result<(OutColumn, Column), PipelineError> {
        let UnboundColumn { from, column, replacement } = self;
        let Some(replacement) = replacement else { return Ok((OutColumn { from, replaced: None }, column)) };
        let step = replacement.step();
        match replacement.bind(state, from) {
            Ok(replaced) => Ok((OutColumn { from, replaced: Some(replaced) }, column)),
            Err(problem) => {
                let (column, type_name) = (column.name, column.type_name);
                Err(PipelineError::Unprintable { step, column, type_name, problem })
            }
        }
    }
}

/// Notes the replacement of columns' values.
fn replace_columns(
    out: &mut [UnboundColumn],
    source: &Schema,
    fields: &[String],
    replacement: &CellReplacement,
) -> Result<(), PipelineError> {
    let step = replacement.step();
    for field in fields {
        let at = column_position(out, step, field)?;
        if source.key().contains(out[at].from) && !replacement.is_distinct() {
            return Err(PipelineError::MaskedKey(field.clone()));
        }
        if let Some(earlier) = out[at].replacement.replace(replacement.clone()) {
            return Err(PipelineError::ReplacedTwice { step, column: field.clone(), earlier: earlier.step() });
        }
    }
    Ok(())
}

fn column_position(columns: &[UnboundColumn], step: &'static str, name: &str) -> Result<usize, PipelineError> {
    let found = columns.iter().position(|known| known.column.name == name);
    found.ok_or_else(|| PipelineError::UnknownColumn { step, column: name.to_owned() })
}

fn check_name_is_free(columns: &[UnboundColumn], step: &'static str, name: &str) -> Result<(), PipelineError> {
    match columns.iter().any(|known| known.column.name == name) {
        true => Err(PipelineError::Duplicate { step, column: name.to_owned() }),
        false => Ok(()),
    }
}

fn timestamp_column(name: &str) -> Column {
    Column {
        name: name.to_owned(),
        type_oid: TIMESTAMPTZ_OID,
        type_modifier: -1,
        type_name: "timestamp with time zone".to_owned(),
        not_null: false,
        is_text: false,
    }
}
