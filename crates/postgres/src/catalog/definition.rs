//! The definition of a table, and the consequences of a newer one for the table's rows.

use laredo_core::{Oid, TableName};
use serde::{Deserialize, Serialize};

use crate::relation_identity::{RelationIdentity, ReplicaIdentity};

/// Everything in the catalog that decides what a table's rows are, by OID and by version.
///
/// Anything that is removed and created again differs. PostgreSQL gives a new OID or number to a
/// table, a column, an attribute, a label or a member of a publication. Otherwise the entry has
/// another version (`xmin`). Two laredo servers that read one database at the same time find the
/// same definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableDefinition {
    pub(crate) oid: Oid,
    pub(crate) file: TableFile,
    /// `relkind`: `r` for a table, `p` for a partitioned table; other kinds cannot be followed.
    pub(crate) kind: char,
    /// `relpersistence`: `p` permanent, `u` unlogged, `t` temporary.
    pub(crate) persistence: char,
    pub(crate) identity: ReplicaIdentity,
    /// The columns of the replica identity's index, in its order. Without such an index, the
    /// columns of the primary key.
    pub(crate) key: Option<Vec<String>>,
    /// The partitioned tables above it, nearest first.
    pub(crate) ancestors: Vec<AncestorTable>,
    /// For the table and each table above it, the last transaction that changed each column's
    /// entry. `None` for a table without columns.
    pub(crate) column_versions: Vec<Option<Vec<u32>>>,
    /// The columns in `attnum` order, without dropped ones.
    pub(crate) columns: Vec<ColumnFacts>,
    /// The tables below it, by OID: those that hold rows, and the partitioned tables in between.
    pub(crate) partitions: Vec<Partition>,
    /// Every type that a column needs, by OID.
    pub(crate) types: Vec<TypeFacts>,
    /// The publication's settings for the table. `None` if the table is not published.
    pub(crate) published: Option<TablePublication>,
}

/// A partitioned table above another table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AncestorTable {
    pub(crate) schema: String,
    pub(crate) table: String,
    /// The transaction that attached the table below it.
    pub(crate) link: u32,
}

/// The file that holds a table's rows, and the toast table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableFile {
    /// `relfilenode`: changes when the table is rewritten or truncated.
    pub(crate) number: Oid,
    /// `reltoastrelid`: changes when `ALTER TABLE` rewrites the table, but not after `TRUNCATE`.
    /// Zero if no column needs a toast table.
    pub(crate) toast: Oid,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ColumnFacts {
    pub(crate) number: i16,
    pub(crate) name: String,
    pub(crate) type_oid: Oid,
    pub(crate) type_modifier: i32,
    pub(crate) type_name: String,
    pub(crate) not_null: bool,
    pub(crate) generated: bool,
}

/// A table below a partitioned table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Partition {
    pub(crate) oid: Oid,
    /// The partitioned table directly above it.
    pub(crate) parent: Oid,
    /// The transaction that attached it.
    pub(crate) link: u32,
    /// True if it was created as a partition of its parent, so that it was empty when it was
    /// attached.
    pub(crate) born: bool,
    /// The number of its file. The first file has the table's OID as its number.
    pub(crate) file: Oid,
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) kind: char,
    pub(crate) persistence: char,
    /// The partition's own replica identity, which decides what its old rows contain.
    pub(crate) identity: ReplicaIdentity,
    pub(crate) key: Option<Vec<String>>,
    /// The OID and the version of its replica identity index. `None` for another identity.
    pub(crate) index: Option<String>,
}

impl Partition {
    pub(crate) fn name(&self) -> TableName {
        TableName::new(&self.schema, &self.table)
    }

    /// Returns true if it holds rows.
    pub(crate) fn is_leaf(&self) -> bool {
        self.kind != 'p'
    }

    /// Returns true if it has held the same rows, as part of the same table, all the time.
    fn stayed(&self, newer: &Partition) -> bool {
        let facts = |of: &Partition| {
            let identity = (of.identity, of.key.clone(), of.index.clone());
            (of.oid, of.parent, of.link, of.file, of.kind, of.persistence, identity)
        };
        facts(self) == facts(newer)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TypeFacts {
    pub(crate) oid: Oid,
    pub(crate) name: String,
    /// True if the type has a binary form.
    pub(crate) sends: bool,
    pub(crate) kind: TypeKindFacts,
}

impl TypeFacts {
    /// Returns true if `newer` is the same type under the same name, in the same form.
    fn is_named_as(&self, newer: &TypeFacts) -> bool {
        (self.oid, &self.name, self.sends) == (newer.oid, &newer.name, newer.sends)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TypeKindFacts {
    Base,
    Money(u8),
    Ascii,
    Enum(Vec<EnumLabel>),
    Domain(Oid),
    /// The name, the type and the number of each attribute. PostgreSQL never reuses a number.
    Composite(Vec<(String, Oid, i16)>),
    Array(Oid),
    Range(Oid),
    Multirange(Oid),
}

/// A label of an enum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EnumLabel {
    pub(crate) label: String,
    pub(crate) oid: Oid,
    /// The transaction that added or renamed it.
    pub(crate) changed_by: u32,
}

/// The settings of a publication for one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TablePublication {
    /// The published columns. `None` before PostgreSQL 15, which publishes every column that is not
    /// generated.
    pub(crate) columns: Option<Vec<String>>,
    /// A hash of the row filter.
    pub(crate) filter: Option<String>,
    pub(crate) insert: bool,
    pub(crate) update: bool,
    pub(crate) delete: bool,
    pub(crate) truncate: bool,
    pub(crate) via_root: bool,
    /// A version that changes with any of the above, even if the change was undone since.
    pub(crate) version: String,
}

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
    /// Returns the partitions that hold rows.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(|partition| partition.is_leaf())
    }

    /// Returns the table's identity as the stream announces it.
    pub(crate) fn relation_identity(&self) -> RelationIdentity {
        let is_key = |column: &&ColumnFacts| self.key.as_ref().is_some_and(|key| key.contains(&column.name));
        let key = self.columns.iter().filter(is_key).map(|column| column.name.clone());
        RelationIdentity::new(self.oid, self.identity, key)
    }

    /// Returns the columns that are sent, in the order of a row's cells.
    pub(crate) fn sent_columns(&self) -> impl Iterator<Item = &ColumnFacts> {
        let named = self.published.as_ref().and_then(|published| published.columns.as_ref());
        self.columns.iter().filter(move |column| match named {
            Some(names) => names.contains(&column.name),
            None => !column.generated,
        })
    }

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
            ("the table was dropped and created again", *oid != newer.oid),
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
    pub(super) fn has_columns_of(&self, newer: &TableDefinition) -> bool {
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
                Some(
                    TypeKindFacts::Base
                    | TypeKindFacts::Money(_)
                    | TypeKindFacts::Ascii
                    | TypeKindFacts::Enum(_)
                    | TypeKindFacts::Composite(_)
                    | TypeKindFacts::Array(_)
                    | TypeKindFacts::Range(_)
                    | TypeKindFacts::Multirange(_),
                )
                | None => break,
            }
        }
        oid
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
