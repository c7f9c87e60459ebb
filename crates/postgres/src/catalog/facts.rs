use laredo_core::{CommitMark, Oid, TableName};
use serde::{Deserialize, Serialize};

use crate::assemble::RelationIdentity;

/// A table as the catalogue has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Facts {
    /// The definition of its rows. A copy is good as long as this stays.
    pub(crate) definition: Definition,
    /// The transaction that made the table's entry in `pg_class` what it is.
    pub(crate) changed_by: u32,
    /// The transaction that was the last to change an entry which decides what the rows are.
    pub(crate) newest_change: u32,
    /// The table's entry counts rows, so they were there when an index was built or statistics were collected. True where
    /// there is no index that would show it.
    pub(crate) counts_rows: bool,
    /// What matters only for whether it may be followed.
    pub(crate) access: Access,
}

/// Everything in the catalogue that decides what a table's rows are, by number and by version.
///
/// Anything that goes away and comes back differs: PostgreSQL gives it another number (a table, a column, an attribute, a label, a member of a
/// publication), or its entry has another version (`xmin`). Two servers that look at one database at one time find the same.
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
    /// The partitioned tables above it, the nearest first.
    pub(crate) ancestors: Vec<Ancestor>,
    /// The transactions that changed each column's entry last, of the table and of each one above it; `None` without columns.
    pub(crate) column_versions: Vec<Option<Vec<u32>>>,
    /// In `attnum` order, dropped ones left out.
    pub(crate) columns: Vec<ColumnFacts>,
    /// The tables below it, by oid: those that hold rows, and the partitioned ones between.
    pub(crate) partitions: Vec<Partition>,
    /// Every type that a column needs, by oid.
    pub(crate) types: Vec<TypeFacts>,
    /// How the publication has it; `None` where it does not.
    pub(crate) published: Option<Published>,
}

/// A partitioned table above another table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ancestor {
    pub(crate) schema: String,
    pub(crate) table: String,
    /// The transaction that attached the table below it.
    pub(crate) link: u32,
}

/// Where a table's rows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    /// `relfilenode`: another one when the table is rewritten or truncated.
    pub(crate) number: Oid,
    /// `reltoastrelid`: another one when `ALTER TABLE` rewrites the table, and the same after `TRUNCATE`. Zero where no column needs it.
    pub(crate) toast: Oid,
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

/// A table below a partitioned one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Partition {
    pub(crate) oid: Oid,
    /// The partitioned table above it.
    pub(crate) parent: Oid,
    /// The transaction that attached it.
    pub(crate) link: u32,
    /// Made as a partition of its parent, so that it was empty when it was attached.
    pub(crate) born: bool,
    /// The number of its file; the first one has the table's own number.
    pub(crate) file: Oid,
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) kind: char,
    pub(crate) persistence: char,
    /// The replica identity of the partition decides what its old rows say.
    pub(crate) identity: Identity,
    pub(crate) key: Option<Vec<String>>,
    /// The number and the version of the index that is its identity; `None` for another identity.
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

    /// Returns true if it has held the same rows as part of the same table all the time.
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
    Enum(Vec<Label>),
    Domain(Oid),
    /// The name, the type and the number of each attribute. A number is never given again.
    Composite(Vec<(String, Oid, i16)>),
    Array(Oid),
    Range(Oid),
    Multirange(Oid),
}

/// A label of an enum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) label: String,
    pub(crate) oid: Oid,
    /// The transaction that added or renamed it.
    pub(crate) changed_by: u32,
}

/// How a publication has a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Published {
    /// The published columns; `None` before PostgreSQL 15, where all are.
    pub(crate) columns: Option<Vec<String>>,
    /// A hash of the row filter.
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

impl Facts {
    /// Returns true if the definition was changed after a commit that is known to be in the database's history, or if no such
    /// commit is known. The database may then have been put back, and the change made again in another way.
    pub(crate) fn changed_after(&self, proven: CommitMark) -> bool {
        // Transaction ids of the catalogue are 32 bits of the whole, and go round.
        const FIRST_NORMAL_XID: u32 = 3;
        let Some(CommitMark { xid, .. }) = proven.known() else { return true };
        let is_later = self.newest_change.wrapping_sub(xid.0 as u32).cast_signed() > 0;
        self.newest_change >= FIRST_NORMAL_XID && is_later
    }
}

impl Definition {
    /// The partitions that hold rows.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(|partition| partition.is_leaf())
    }

    /// The table's identity as the stream announces it.
    pub(crate) fn relation_identity(&self) -> RelationIdentity {
        let is_key = |column: &&ColumnFacts| self.key.as_ref().is_some_and(|key| key.contains(&column.name));
        let key = self.columns.iter().filter(is_key).map(|column| column.name.clone());
        let (replica_identity, key) = match self.identity {
            Identity::Default => (b'd', key.collect()),
            Identity::Index => (b'i', key.collect()),
            Identity::Full => (b'f', Vec::new()),
            Identity::Nothing => (b'n', Vec::new()),
        };
        RelationIdentity { oid: self.oid, replica_identity, key }
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
