//! The identity of a relation: its OID, and the columns by which its old rows are recognized.

use laredo_core::Oid;
use serde::{Deserialize, Serialize};

/// The values of `pg_class.relreplident`: the part of an old row that PostgreSQL sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaIdentity {
    /// The columns of the primary key.
    #[serde(rename = "d")]
    Default,
    /// The columns of a unique index.
    #[serde(rename = "i")]
    Index,
    /// The whole row.
    #[serde(rename = "f")]
    Full,
    /// No part of the row.
    #[serde(rename = "n")]
    Nothing,
}

impl ReplicaIdentity {
    /// Returns the identity that PostgreSQL writes as this byte.
    pub(crate) fn from_byte(byte: u8) -> Option<ReplicaIdentity> {
        match byte {
            b'd' => Some(ReplicaIdentity::Default),
            b'i' => Some(ReplicaIdentity::Index),
            b'f' => Some(ReplicaIdentity::Full),
            b'n' => Some(ReplicaIdentity::Nothing),
            _ => None,
        }
    }
}

/// The OID of a relation and its replica identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationIdentity {
    /// The OID in `pg_class`.
    pub oid: Oid,
    /// The value of `relreplident`.
    pub replica_identity: ReplicaIdentity,
    /// The names of the key columns, in the table's order. Empty for `REPLICA IDENTITY FULL`, where
    /// every column is part of the identity.
    pub key: Vec<String>,
}

impl RelationIdentity {
    /// Creates an identity. With `REPLICA IDENTITY FULL` the key is left out, so adding or dropping
    /// a column leaves the identity unchanged.
    pub(crate) fn new(
        oid: Oid,
        replica_identity: ReplicaIdentity,
        key: impl Iterator<Item = String>,
    ) -> RelationIdentity {
        let key = match replica_identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => key.collect(),
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => Vec::new(),
        };
        RelationIdentity { oid, replica_identity, key }
    }

    /// Returns true if updates and deletes show which row they concern.
    pub(crate) fn is_usable(&self) -> bool {
        match self.replica_identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => !self.key.is_empty(),
            ReplicaIdentity::Full => true,
            ReplicaIdentity::Nothing => false,
        }
    }
}

impl std::fmt::Display for RelationIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.replica_identity {
            ReplicaIdentity::Full => f.write_str("the whole old row (REPLICA IDENTITY FULL)"),
            ReplicaIdentity::Index if self.is_usable() => write!(f, "({}) of an index", self.key.join(", ")),
            ReplicaIdentity::Default if self.is_usable() => write!(f, "({}) of the primary key", self.key.join(", ")),
            ReplicaIdentity::Index | ReplicaIdentity::Default | ReplicaIdentity::Nothing => f.write_str("nothing"),
        }
    }
}
