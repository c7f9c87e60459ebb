use laredo_core::{CommitMark, Oid, TableName};
use serde::{Deserialize, Serialize};

use crate::relation_identity::{RelationIdentity, ReplicaIdentity};

/// A table as the catalog describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct TableFacts {
    /// The definition of its rows. A copy stays valid as long as the definition is unchanged.
    pub(crate) definition: TableDefinition,
    /// The last transaction that changed the table's entry in `pg_class`.
    pub(crate) changed_by: u32,
    /// The last transaction that changed any entry that decides what the rows are.
    pub(crate) newest_change: u32,
    /// True if the table's entry counts rows. There were then rows when an index was built or
    /// statistics were collected. Also true if the table has no index that would show rows.
    pub(crate) counts_rows: bool,
    /// The facts that only decide whether the table may be followed.
    pub(crate) access: TableAccess,
}

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
    pub(super) fn stayed(&self, newer: &Partition) -> bool {
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

/// The facts that decide whether our role may follow the table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct TableAccess {
    pub(crate) owner: String,
    /// True if our role has the owner's rights.
    pub(crate) owned: bool,
    /// True if our role has `USAGE` on the schema.
    pub(crate) usage: bool,
    pub(crate) select: bool,
    /// True if the publication sends partitions' changes as their root's. `None` if the publication
    /// does not exist.
    pub(crate) publication_via_root: Option<bool>,
    /// True if row-level security applies to our role.
    pub(crate) hides_rows: bool,
    /// True if the primary key is deferrable, so that PostgreSQL does not use it as a replica
    /// identity.
    pub(crate) deferrable_key: bool,
    /// The column sets of the unique indexes.
    pub(crate) unique: Vec<Option<Vec<String>>>,
}

impl TableFacts {
    /// Returns true if the definition was changed after `proven`, a commit in the database's
    /// history, or if no such commit is known. The database may then have been restored, and the
    /// change made again in another way.
    pub(crate) fn changed_after(&self, proven: CommitMark) -> bool {
        // Transaction IDs in the catalog are the lower 32 bits, and wrap around.
        const FIRST_NORMAL_XID: u32 = 3;
        let Some(CommitMark { xid, .. }) = proven.known() else { return true };
        let is_later = self.newest_change.wrapping_sub(xid.0 as u32).cast_signed() > 0;
        self.newest_change >= FIRST_NORMAL_XID && is_later
    }
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
}
