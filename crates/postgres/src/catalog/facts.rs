use std::collections::HashMap;

use laredo_core::{Oid, TableName};
use serde::{Deserialize, Serialize};

/// A table as the catalogue has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Facts {
    /// What it is. A copy is good as long as this stays.
    pub(crate) definition: Definition,
    /// What matters only for whether it may be followed.
    pub(crate) access: Access,
}

/// What a table is: the fingerprint of its definition. A copy taken under another one may not fit the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub(crate) oid: Oid,
    pub(crate) file: File,
    /// `relkind`: `r` table, `p` partitioned table, and what cannot be followed.
    pub(crate) kind: char,
    /// `relpersistence`: `p` permanent, `u` unlogged, `t` temporary.
    pub(crate) persistence: char,
    pub(crate) identity: Identity,
    /// The columns of the identity's index in its order; those of the primary key where the identity has no index.
    pub(crate) key: Option<Vec<String>>,
    /// The partitioned tables above it, as schema and name.
    pub(crate) ancestors: Vec<(String, String)>,
    /// In `attnum` order, dropped ones left out.
    pub(crate) columns: Vec<ColumnFacts>,
    /// The partitions that hold rows.
    pub(crate) leaves: Vec<Leaf>,
    /// Every type that a column needs, by oid.
    pub(crate) types: Vec<TypeFacts>,
    /// How the publication has it; `None` where it does not.
    pub(crate) published: Option<Published>,
}

/// Where a table's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    /// `relfilenode`: another one when the table is rewritten or truncated.
    pub(crate) number: Oid,
    /// The transaction that made the table's entry in `pg_class` what it is.
    pub(crate) changed_by: u32,
    /// Another number when a column's entry in `pg_attribute` was changed, as that of one whose values are computed anew.
    pub(crate) columns: i64,
}

/// `relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Identity {
    #[serde(rename = "d")]
    Default,
    #[serde(rename = "i")]
    Index,
    #[serde(rename = "f")]
    Full,
    #[serde(rename = "n")]
    Nothing,
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

/// A partition that holds rows. Its own replica identity decides what its old rows say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaf {
    pub(crate) oid: Oid,
    pub(crate) file: Oid,
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) kind: char,
    pub(crate) persistence: char,
    pub(crate) identity: Identity,
    pub(crate) key: Option<Vec<String>>,
}

impl Leaf {
    pub(crate) fn name(&self) -> TableName {
        TableName::new(&self.schema, &self.table)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TypeFacts {
    pub(crate) oid: Oid,
    pub(crate) name: String,
    /// Whether it has a binary form.
    pub(crate) sends: bool,
    pub(crate) kind: KindFacts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KindFacts {
    Base,
    Money(u8),
    Ascii,
    Enum(Vec<String>),
    Domain(Oid),
    Composite(Vec<(String, Oid)>),
    Array(Oid),
    Range(Oid),
    Multirange(Oid),
}

/// How a publication has a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Published {
    /// The published columns; `None` before PostgreSQL 15, where all are.
    pub(crate) columns: Option<Vec<String>>,
    /// The row filter, an SQL condition.
    pub(crate) filter: Option<String>,
    pub(crate) insert: bool,
    pub(crate) update: bool,
    pub(crate) delete: bool,
    pub(crate) truncate: bool,
    pub(crate) via_root: bool,
    /// Changes with every change of the above, also with one that was undone since.
    pub(crate) version: String,
}

/// Whether our role may follow the table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Access {
    pub(crate) owner: String,
    /// Whether our role has the owner's rights.
    pub(crate) owned: bool,
    /// On the schema.
    pub(crate) usage: bool,
    pub(crate) select: bool,
    /// Whether the publication sends partitions' changes as their root's; `None` where there is no such publication.
    pub(crate) publication_via_root: Option<bool>,
    /// Row-level security applies to our role.
    pub(crate) hides_rows: bool,
    /// The primary key is deferrable, so PostgreSQL does not take it for a replica identity.
    pub(crate) deferrable_key: bool,
    /// Column sets of unique indexes.
    pub(crate) unique: Vec<Option<Vec<String>>>,
}

impl Definition {
    /// What differs, for people; `None` when nothing does.
    pub(crate) fn difference(&self, newer: &Definition) -> Option<String> {
        let Definition { oid, file, kind, persistence, identity, key, ancestors, columns, leaves, types, published } =
            self;
        let differences = [
            ("the table was dropped and made again", *oid != newer.oid),
            ("its rows were rewritten or truncated", file.number != newer.file.number),
            ("its kind changed", (*kind, *persistence) != (newer.kind, newer.persistence)),
            ("its replica identity changed", *identity != newer.identity || *key != newer.key),
            ("its columns changed", *columns != newer.columns),
            ("a type that it uses changed", *types != newer.types),
            ("its partitions changed", *leaves != newer.leaves || *ancestors != newer.ancestors),
            ("its publication changed", *published != newer.published),
        ];
        let seen: Vec<&str> = differences.into_iter().filter_map(|(what, is)| is.then_some(what)).collect();
        (!seen.is_empty()).then(|| seen.join(", "))
    }

    /// The transaction that truncated the table, if that is all that may have happened to its rows.
    ///
    /// It has changed the table's entry last; whatever was rewritten before it is gone with it.
    pub(crate) fn truncated_by(&self, newer: &Definition) -> Option<u32> {
        let with_its_file = Definition { file: newer.file, ..self.clone() };
        let is_all = self.file.number != newer.file.number && with_its_file.difference(newer).is_none();
        (is_all && self.file.columns == newer.file.columns).then_some(newer.file.changed_by)
    }

    /// Whether rows were moved to other files at most, or truncated: what gives them other values changes a column, too.
    pub(crate) fn differs_in_files_only(&self, newer: &Definition) -> bool {
        let files: HashMap<Oid, Oid> = newer.leaves.iter().map(|leaf| (leaf.oid, leaf.file)).collect();
        let moved = |leaf: &Leaf| Leaf { file: files.get(&leaf.oid).copied().unwrap_or(leaf.file), ..leaf.clone() };
        let leaves = self.leaves.iter().map(moved).collect();
        let with_its_files = Definition { file: newer.file, leaves, ..self.clone() };
        self.file.columns == newer.file.columns && with_its_files.difference(newer).is_none()
    }

    /// The columns that are sent, in the order of a row's cells.
    pub(crate) fn sent_columns(&self) -> impl Iterator<Item = &ColumnFacts> {
        let named = self.published.as_ref().and_then(|published| published.columns.as_ref());
        self.columns.iter().filter(move |column| match named {
            Some(names) => names.contains(&column.name),
            None => !column.generated,
        })
    }
}
