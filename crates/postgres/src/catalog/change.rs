//! The comparison of two definitions of one table, and its consequences for the table's rows.

use laredo_core::Oid;

use super::facts::{
    ColumnFacts, EnumLabel, Partition, TableDefinition, TableFacts, TableFile, TypeFacts, TypeKindFacts,
};

/// The consequence of a newer definition for rows that were copied and followed under an older one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DefinitionImpact {
    /// The definitions are the same.
    Nothing,
    /// The rows match what the stream has sent, on these conditions.
    Harmless(HarmlessConditions),
    /// Rows may have changed without a message in the stream. The reason is for the log.
    Rows(String),
}

/// Conditions that make a change harmless, and that the catalog cannot show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HarmlessConditions {
    /// The tables that were attached. They have to be empty.
    pub(crate) empty: Vec<Oid>,
    /// Columns, by name, with the only labels that their rows may hold. A row with another label
    /// was written before a rename.
    pub(crate) labels: Vec<(String, Vec<String>)>,
}

/// The result of comparing one part of a definition.
enum PartComparison<T> {
    /// The rows are unaffected if each of these conditions holds, or if there are none.
    Kept(Vec<T>),
    Changed,
}

impl TableDefinition {
    /// Compares this definition with a newer one of the same table.
    pub(crate) fn change(&self, newer: &TableDefinition) -> DefinitionImpact {
        if self == newer {
            return DefinitionImpact::Nothing;
        }
        let TableDefinition {
            oid,
            file,
            kind,
            persistence,
            identity,
            key,
            ancestors,
            column_versions: _,
            columns,
            partitions: _,
            types: _,
            published,
        } = self;
        let (partitions, types) = (self.partitions_since(newer), self.types_since(newer));
        let differences = [
            ("the table was dropped and made again", *oid != newer.oid),
            ("its rows were rewritten or truncated", file.number != newer.file.number),
            ("its kind changed", (*kind, *persistence) != (newer.kind, newer.persistence)),
            ("its replica identity changed", *identity != newer.identity || *key != newer.key),
            ("its columns changed", *columns != newer.columns),
            ("a type that it uses changed", matches!(types, PartComparison::Changed)),
            ("its partitions changed", matches!(partitions, PartComparison::Changed) || *ancestors != newer.ancestors),
            ("it may have been a partition of another table for a while", self.may_have_been_attached(newer)),
            ("its publication changed", *published != newer.published),
        ];
        let seen: Vec<&str> = differences.into_iter().filter_map(|(what, is)| is.then_some(what)).collect();
        match (partitions, types) {
            (PartComparison::Kept(empty), PartComparison::Kept(labels)) if seen.is_empty() => {
                DefinitionImpact::Harmless(HarmlessConditions { empty, labels })
            }
            _ => DefinitionImpact::Rows(seen.join(", ")),
        }
    }

    /// Returns the reason why rows may have changed. `None` if only transactions in the stream can
    /// have changed them.
    pub(crate) fn difference(&self, newer: &TableDefinition) -> Option<String> {
        match self.change(newer) {
            DefinitionImpact::Nothing | DefinitionImpact::Harmless(_) => None,
            DefinitionImpact::Rows(reason) => Some(reason),
        }
    }

    /// Returns the transaction that truncated the table, if nothing else can have changed its rows.
    ///
    /// That transaction was the last to change the table's entry. Rows that were rewritten before
    /// the truncate are gone. If the transaction rewrote the table after the truncate, or wrote it
    /// while it was unlogged, this shows. The toast table differs, or the entry counts rows.
    pub(crate) fn truncated_by(&self, newer: &TableFacts) -> Option<u32> {
        let newer_definition = &newer.definition;
        let (before, after) = (self.file, newer_definition.file);
        let is_other = before.number != after.number;
        let is_all = is_other && self.with_file(after).difference(newer_definition).is_none();
        let is_rewritten = before.toast != after.toast || newer.counts_rows;
        (is_all && self.has_columns_of(newer_definition) && !is_rewritten).then_some(newer.changed_by)
    }

    /// Returns true if the table, or one above it, may have been attached to another table and
    /// detached again. PostgreSQL sent its changes under the other table's name in the meantime.
    /// Attaching and detaching change the entry of every column, which hardly anything else does.
    fn may_have_been_attached(&self, newer: &TableDefinition) -> bool {
        let are_all_others = |old: &Option<Vec<u32>>, new: &Option<Vec<u32>>| match (old, new) {
            (Some(old), Some(new)) => old.iter().zip(new).all(|(old, new)| old != new),
            (None, _) | (_, None) => false,
        };
        let mut both = self.column_versions.iter().zip(&newer.column_versions);
        both.any(|(old, new)| are_all_others(old, new))
    }

    /// Returns true if rows were at most moved to other files or truncated. A change that gives
    /// rows other values also changes a column's entry.
    pub(crate) fn differs_in_files_only(&self, newer: &TableDefinition) -> bool {
        let moved = |partition: &Partition| {
            let found = newer.partitions.iter().find(|other| other.oid == partition.oid);
            Partition { file: found.map_or(partition.file, |found| found.file), ..partition.clone() }
        };
        let partitions = self.partitions.iter().map(moved).collect();
        let with_its_files = TableDefinition { partitions, ..self.with_file(newer.file) };
        self.has_columns_of(newer) && with_its_files.difference(newer).is_none()
    }

    /// Returns true if the columns' entries are unchanged. Recomputing a column's values changes
    /// its entry.
    fn has_columns_of(&self, newer: &TableDefinition) -> bool {
        self.column_versions.first() == newer.column_versions.first()
    }

    pub(crate) fn with_file(&self, file: TableFile) -> TableDefinition {
        TableDefinition { file, ..self.clone() }
    }

    /// Compares the partitions. Rows may have been added or removed together with a partition.
    /// Returns the partitions that have to be empty.
    fn partitions_since(&self, newer: &TableDefinition) -> PartComparison<Oid> {
        let found = |list: &[Partition], oid: Oid| list.binary_search_by_key(&oid, |partition| partition.oid).ok();
        let stayed = |old: &Partition| {
            found(&newer.partitions, old.oid).and_then(|at| newer.partitions.get(at)).is_some_and(|new| old.stayed(new))
        };
        if !self.partitions.iter().all(stayed) {
            return PartComparison::Changed;
        }
        let is_new = |oid: Oid| oid != self.oid && found(&self.partitions, oid).is_none();
        let mut attached = Vec::new();
        for leaf in newer.leaves().filter(|leaf| is_new(leaf.oid)) {
            // Another file than the first one means that the partition was rewritten or truncated
            // since.
            if leaf.file != leaf.oid {
                return PartComparison::Changed;
            }
            if !newer.grew(leaf, is_new) {
                attached.push(leaf.oid);
            }
        }
        PartComparison::Kept(attached)
    }

    /// Returns true if a new partition, and each new table above it, was created as a partition.
    fn grew(&self, partition: &Partition, is_new: impl Fn(Oid) -> bool) -> bool {
        let mut partition = partition;
        // A tree is at most as deep as its number of tables.
        for _ in 0..self.partitions.len() {
            if !partition.born {
                return false;
            }
            if !is_new(partition.parent) {
                return true;
            }
            match self.partitions.iter().find(|above| above.oid == partition.parent) {
                Some(above) => partition = above,
                None => return false,
            }
        }
        false
    }

    /// Compares the types. Returns the columns of each enum that has gained labels, with the labels
    /// that their rows may hold.
    fn types_since(&self, newer: &TableDefinition) -> PartComparison<(String, Vec<String>)> {
        let mut grown = Vec::new();
        for (old, new) in self.types.iter().zip(&newer.types) {
            match (&old.kind, &new.kind) {
                _ if old == new => {}
                (TypeKindFacts::Enum(before), TypeKindFacts::Enum(after)) if old.is_named_as(new) => {
                    let Some(labels) = permitted(before, after) else { return PartComparison::Changed };
                    grown.push((old.oid, labels));
                }
                _ => return PartComparison::Changed,
            }
        }
        if self.types.len() != newer.types.len() {
            return PartComparison::Changed;
        }
        let mut columns = Vec::new();
        for (oid, labels) in grown {
            match self.columns_of(oid) {
                Some(found) => columns.extend(found.map(|column| (column.name.clone(), labels.clone()))),
                None => return PartComparison::Changed,
            }
        }
        PartComparison::Kept(columns)
    }

    /// Returns the columns whose cells are labels of an enum. `None` if labels also occur inside
    /// other types.
    fn columns_of(&self, enumeration: Oid) -> Option<impl Iterator<Item = &ColumnFacts>> {
        let is_label = move |oid: Oid| self.base_of(oid) == enumeration;
        let is_inside = self.types.iter().any(|facts| match &facts.kind {
            TypeKindFacts::Base
            | TypeKindFacts::Money(_)
            | TypeKindFacts::Ascii
            | TypeKindFacts::Enum(_)
            | TypeKindFacts::Domain(_) => false,
            TypeKindFacts::Array(inner) | TypeKindFacts::Range(inner) | TypeKindFacts::Multirange(inner) => {
                is_label(*inner)
            }
            TypeKindFacts::Composite(fields) => fields.iter().any(|(_, inner, _)| is_label(*inner)),
        });
        (!is_inside).then(|| self.sent_columns().filter(move |column| is_label(column.type_oid)))
    }

    /// Returns the base type of a domain, or the type itself.
    fn base_of(&self, oid: Oid) -> Oid {
        let mut oid = oid;
        for _ in 0..self.types.len() {
            match self.types.iter().find(|facts| facts.oid == oid).map(|facts| &facts.kind) {
                Some(TypeKindFacts::Domain(base)) => oid = *base,
                _ => break,
            }
        }
        oid
    }
}

impl TypeFacts {
    fn is_named_as(&self, newer: &TypeFacts) -> bool {
        (self.oid, &self.name, self.sends) == (newer.oid, &newer.name, newer.sends)
    }
}

/// Returns the labels that rows may hold if labels were only added. `None` if an older label was
/// removed or renamed.
///
/// A row with any other label was written before that label was renamed. If there are several new
/// labels, one of them may have had another's name before. None of them is therefore in the result.
fn permitted(before: &[EnumLabel], after: &[EnumLabel]) -> Option<Vec<String>> {
    if !before.iter().all(|label| after.contains(label)) {
        return None;
    }
    let labels = if after.len() == before.len() + 1 { after } else { before };
    Some(labels.iter().map(|label| label.label.clone()).collect())
}
