//! The decoder of the messages of pgoutput, PostgreSQL's own logical decoding plugin, protocol
//! version 2. Cells are binary, or text if their type has no binary form.
//!
//! The decoder does not wait. Its only state is a flag: a block of a streamed transaction is open.
//! Inside a block, messages carry the ID of their (sub)transaction. Any bytes give a message or an
//! error.

mod cursor;

use laredo_core::{Cell, CommitTime, Lsn, Oid, TupleBuf, TupleRef};

use crate::relation_identity::RelationIdentity;
pub use crate::relation_identity::ReplicaIdentity;
use cursor::PgoutputCursor;
pub use cursor::{PgoutputDecodeError, PgoutputProblem};

/// A message of pgoutput.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgoutputMessage<'a> {
    /// The begin of a transaction. Its changes follow, and then its [`PgoutputMessage::Commit`].
    Begin {
        /// The transaction ID.
        xid: u32,
        /// The start of the commit record.
        commit: Lsn,
        /// The time of the commit.
        committed_at: CommitTime,
    },
    /// The end of a transaction.
    Commit(CommitRecord),
    /// The origin of a transaction that was replicated to this server.
    Origin {
        /// The position of its commit on the origin.
        commit: Lsn,
        /// The origin's name.
        name: &'a str,
    },
    /// The definition of a table's rows from here on.
    Relation {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// The relation.
        relation: Relation<'a>,
    },
    /// The name of a type that is not built in.
    Type {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// The OID of the type.
        oid: Oid,
        /// The schema of the type; empty for `pg_catalog`.
        schema: &'a str,
        /// The name of the type.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// The OID of the table.
        relation: Oid,
        /// The row.
        new: PgoutputRow<'a>,
    },
    /// A changed row.
    Update {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// The OID of the table.
        relation: Oid,
        /// The row before the change, if it was sent.
        old: Option<PgoutputRow<'a>>,
        /// The row after the change.
        new: PgoutputRow<'a>,
    },
    /// A deleted row.
    Delete {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// The OID of the table.
        relation: Oid,
        /// The row before it was deleted.
        old: PgoutputRow<'a>,
    },
    /// The removal of all rows of some tables.
    Truncate {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// The OIDs of the tables.
        relations: RelationOids<'a>,
    },
    /// A message that `pg_logical_emit_message` wrote.
    Message {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// True if the message belongs to its transaction.
        transactional: bool,
        /// The position of the message in the WAL.
        lsn: Lsn,
        /// The prefix of the message.
        prefix: &'a str,
        /// The content of the message.
        content: &'a [u8],
    },
    /// The start of a block of changes of a transaction that has not committed yet.
    StreamStart {
        /// The top-level transaction.
        xid: u32,
        /// True for the first block of the transaction.
        first: bool,
    },
    /// The end of the block.
    StreamStop,
    /// The commit of a streamed transaction.
    StreamCommit {
        /// The top-level transaction.
        xid: u32,
        /// The commit record.
        record: CommitRecord,
    },
    /// The rollback of a streamed transaction or of one of its subtransactions.
    StreamAbort {
        /// The top-level transaction.
        xid: u32,
        /// The ID that was rolled back. If it equals `xid`, the whole transaction was.
        subtransaction: u32,
    },
}

/// The record in the WAL that commits a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitRecord {
    /// The start of the record.
    pub begins: Lsn,
    /// The end of the record.
    pub end: Lsn,
    /// The time of the commit.
    pub committed_at: CommitTime,
}

/// A row. If it only carries the replica identity, all other cells are NULL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PgoutputRow<'a> {
    /// The cells of the row.
    pub cells: TupleRef<'a>,
    /// The number of cells.
    pub columns: usize,
}

/// The definition of a table's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// The OID of the table.
    pub oid: Oid,
    /// The schema of the table; an empty name for `pg_catalog`.
    pub schema: &'a str,
    /// The name of the table.
    pub name: &'a str,
    /// The replica identity of the table.
    pub replica_identity: ReplicaIdentity,
    /// The columns, in the order of a row's cells.
    pub columns: Vec<RelationColumn<'a>>,
}

impl Relation<'_> {
    /// Returns the identity that the table is followed by.
    pub(crate) fn identity(&self) -> RelationIdentity {
        let key = self.columns.iter().filter(|column| column.is_key).map(|column| column.name.to_owned());
        RelationIdentity::new(self.oid, self.replica_identity, key)
    }
}

/// A column of a [`Relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// True if the column belongs to the replica identity.
    pub is_key: bool,
    /// The name of the column.
    pub name: &'a str,
    /// The OID of the column's type.
    pub type_oid: Oid,
    /// The type modifier, or -1.
    pub type_modifier: i32,
}

/// The OIDs of tables, as encoded in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationOids<'a>(&'a [u8]);

impl RelationOids<'_> {
    /// Returns the OIDs.
    pub fn iter(&self) -> impl Iterator<Item = Oid> {
        let (oids, _) = self.0.as_chunks::<4>();
        oids.iter().map(|oid| Oid::from_be_bytes(*oid))
    }
}

/// A decoder of the messages of one connection, in order. It converts rows into buffers that it
/// reuses for every message: one copy, no allocation.
#[derive(Debug, Default)]
pub struct PgoutputDecoder {
    in_stream: bool,
    old: TupleBuf,
    new: TupleBuf,
}

impl PgoutputDecoder {
    /// Creates a decoder for a connection that has just begun to stream.
    #[must_use]
    pub fn new() -> PgoutputDecoder {
        PgoutputDecoder::default()
    }

    /// Decodes one message.
    ///
    /// # Errors
    /// Reports the message, the offset and the problem. The connection is unusable afterwards.
    pub fn decode<'a>(&'a mut self, bytes: &'a [u8]) -> Result<PgoutputMessage<'a>, PgoutputDecodeError> {
        let mut cursor = PgoutputCursor::new(bytes);
        let message = match cursor.u8()? {
            b'B' => PgoutputMessage::Begin { commit: cursor.lsn()?, committed_at: cursor.time()?, xid: cursor.u32()? },
            b'C' => PgoutputMessage::Commit(commit_record(&mut cursor)?),
            b'O' => PgoutputMessage::Origin { commit: cursor.lsn()?, name: cursor.text()? },
            b'R' => {
                PgoutputMessage::Relation { xid: self.subtransaction(&mut cursor)?, relation: relation(&mut cursor)? }
            }
            b'Y' => PgoutputMessage::Type {
                xid: self.subtransaction(&mut cursor)?,
                oid: cursor.u32()?,
                schema: cursor.text()?,
                name: cursor.text()?,
            },
            b'I' => self.insert(&mut cursor)?,
            b'U' => self.update(&mut cursor)?,
            b'D' => self.delete(&mut cursor)?,
            b'T' => {
                PgoutputMessage::Truncate { xid: self.subtransaction(&mut cursor)?, relations: truncated(&mut cursor)? }
            }
            b'M' => PgoutputMessage::Message {
                xid: self.subtransaction(&mut cursor)?,
                transactional: cursor.u8()? & 1 != 0,
                lsn: cursor.lsn()?,
                prefix: cursor.text()?,
                content: cursor.sized()?,
            },
            b'S' => {
                self.in_stream = true;
                PgoutputMessage::StreamStart { xid: cursor.u32()?, first: cursor.u8()? & 1 != 0 }
            }
            b'E' => {
                self.in_stream = false;
                PgoutputMessage::StreamStop
            }
            b'c' => PgoutputMessage::StreamCommit { xid: cursor.u32()?, record: commit_record(&mut cursor)? },
            b'A' => PgoutputMessage::StreamAbort { xid: cursor.u32()?, subtransaction: cursor.u32()? },
            kind @ (b'b' | b'P' | b'K' | b'r' | b'p') => {
                return Err(cursor.error_at_start(PgoutputProblem::TwoPhase(kind)));
            }
            kind => return Err(cursor.error_at_start(PgoutputProblem::Unknown(kind))),
        };
        cursor.finish()?;
        Ok(message)
    }

    fn insert<'a>(&'a mut self, cursor: &mut PgoutputCursor<'a>) -> Result<PgoutputMessage<'a>, PgoutputDecodeError> {
        let (xid, relation) = (self.subtransaction(cursor)?, cursor.u32()?);
        match cursor.u8()? {
            b'N' => Ok(PgoutputMessage::Insert { xid, relation, new: row(cursor, &mut self.new)? }),
            other => Err(cursor.error_before(PgoutputProblem::Part(other))),
        }
    }

    fn update<'a>(&'a mut self, cursor: &mut PgoutputCursor<'a>) -> Result<PgoutputMessage<'a>, PgoutputDecodeError> {
        let (xid, relation) = (self.subtransaction(cursor)?, cursor.u32()?);
        let (old, part) = match cursor.u8()? {
            b'K' | b'O' => (Some(row(cursor, &mut self.old)?), cursor.u8()?),
            part => (None, part),
        };
        match part {
            b'N' => Ok(PgoutputMessage::Update { xid, relation, old, new: row(cursor, &mut self.new)? }),
            other => Err(cursor.error_before(PgoutputProblem::Part(other))),
        }
    }

    fn delete<'a>(&'a mut self, cursor: &mut PgoutputCursor<'a>) -> Result<PgoutputMessage<'a>, PgoutputDecodeError> {
        let (xid, relation) = (self.subtransaction(cursor)?, cursor.u32()?);
        match cursor.u8()? {
            b'K' | b'O' => Ok(PgoutputMessage::Delete { xid, relation, old: row(cursor, &mut self.old)? }),
            other => Err(cursor.error_before(PgoutputProblem::Part(other))),
        }
    }

    fn subtransaction(&self, cursor: &mut PgoutputCursor<'_>) -> Result<Option<u32>, PgoutputDecodeError> {
        self.in_stream.then(|| cursor.u32()).transpose()
    }
}

fn commit_record(cursor: &mut PgoutputCursor<'_>) -> Result<CommitRecord, PgoutputDecodeError> {
    // Flags, of which PostgreSQL defines none so far.
    cursor.u8()?;
    Ok(CommitRecord { begins: cursor.lsn()?, end: cursor.lsn()?, committed_at: cursor.time()? })
}

fn relation<'a>(cursor: &mut PgoutputCursor<'a>) -> Result<Relation<'a>, PgoutputDecodeError> {
    let (oid, schema, name) = (cursor.u32()?, cursor.text()?, cursor.text()?);
    let kind = cursor.u8()?;
    let replica_identity =
        ReplicaIdentity::from_byte(kind).ok_or_else(|| cursor.error_before(PgoutputProblem::ReplicaIdentity(kind)))?;
    let columns = (0..cursor.count()?)
        .map(|_| {
            Ok(RelationColumn {
                is_key: cursor.u8()? & 1 != 0,
                name: cursor.text()?,
                type_oid: cursor.u32()?,
                type_modifier: cursor.i32()?,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Relation { oid, schema, name, replica_identity, columns })
}

fn truncated<'a>(cursor: &mut PgoutputCursor<'a>) -> Result<RelationOids<'a>, PgoutputDecodeError> {
    let count = cursor.i32()?;
    // The flags CASCADE and RESTART IDENTITY. All tables that a cascade reaches are listed.
    cursor.u8()?;
    match usize::try_from(count).ok().and_then(|count| count.checked_mul(4)) {
        Some(length) => Ok(RelationOids(cursor.bytes(length)?)),
        None => Err(cursor.error_before(PgoutputProblem::Length(count))),
    }
}

fn row<'a>(cursor: &mut PgoutputCursor<'_>, row: &'a mut TupleBuf) -> Result<PgoutputRow<'a>, PgoutputDecodeError> {
    row.clear();
    let columns = cursor.count()?;
    for _ in 0..columns {
        row.push(match cursor.u8()? {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            b'b' | b't' => Cell::Value(cursor.sized()?),
            other => return Err(cursor.error_before(PgoutputProblem::Cell(other))),
        });
    }
    let cells = row.as_ref();
    Ok(PgoutputRow { cells, columns })
}

#[cfg(test)]
mod tests;
