//! Decodes the messages of PostgreSQL's own logical decoding plugin, protocol 2, cells in binary, or as text where a type has
//! no binary form.
//!
//! Nothing here waits or remembers more than whether a block of a streamed transaction is open: inside one, messages
//! carry the id of their (sub)transaction. Any bytes give a message or an error.

mod cursor;

use laredo_core::{Cell, CommitTime, Lsn, Oid, TupleBuf, TupleRef};

use cursor::Cursor;
pub use cursor::{DecodeError, Problem};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins; its changes follow, then its [`Message::Commit`].
    Begin {
        /// Its id.
        xid: u32,
        /// Where its commit record begins.
        commit: Lsn,
        /// When it committed.
        committed_at: CommitTime,
    },
    /// The transaction is complete.
    Commit {
        /// Where its commit record begins.
        commit: Lsn,
        /// Where its commit record ends.
        end: Lsn,
        /// When it committed.
        committed_at: CommitTime,
    },
    /// The transaction was replicated to this server from elsewhere.
    Origin {
        /// Its commit there.
        commit: Lsn,
        /// The origin's name.
        name: &'a str,
    },
    /// What the rows of a table look like from here on.
    Relation {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// The table.
        relation: Relation<'a>,
    },
    /// The name of a type that is not built in.
    Type {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// Its number.
        oid: Oid,
        /// Its schema; empty for `pg_catalog`.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// Its table.
        relation: Oid,
        /// The row.
        new: Row<'a>,
    },
    /// A changed row.
    Update {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// Its table.
        relation: Oid,
        /// The row before, where it was sent.
        old: Option<Row<'a>>,
        /// The row after.
        new: Row<'a>,
    },
    /// A row that went.
    Delete {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// Its table.
        relation: Oid,
        /// The row before.
        old: Row<'a>,
    },
    /// All rows of some tables went.
    Truncate {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// The tables.
        relations: Oids<'a>,
    },
    /// What `pg_logical_emit_message` wrote.
    Message {
        /// The (sub)transaction, inside a streamed block.
        xid: Option<u32>,
        /// Whether it belongs to its transaction.
        transactional: bool,
        /// Where it is in the WAL.
        lsn: Lsn,
        /// Its prefix.
        prefix: &'a str,
        /// Its content.
        content: &'a [u8],
    },
    /// A block of changes of a transaction that has not committed yet begins.
    StreamStart {
        /// The top-level transaction.
        xid: u32,
        /// Whether it is the transaction's first block.
        first: bool,
    },
    /// The block ends.
    StreamStop,
    /// A streamed transaction has committed.
    StreamCommit {
        /// The top-level transaction.
        xid: u32,
        /// Where its commit record begins.
        commit: Lsn,
        /// Where its commit record ends.
        end: Lsn,
        /// When it committed.
        committed_at: CommitTime,
    },
    /// A streamed transaction or one of its subtransactions was rolled back.
    StreamAbort {
        /// The top-level transaction.
        xid: u32,
        /// What was rolled back; the same number for all of it.
        subtransaction: u32,
    },
}

/// A row. Of one that stands for its replica identity only, all other cells are NULL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Its cells.
    pub cells: TupleRef<'a>,
    /// Their number.
    pub columns: usize,
}

/// What the rows of a table look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// The table's number.
    pub oid: Oid,
    /// Its schema; `pg_catalog` comes as an empty name.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// `pg_class.relreplident`: `d`efault, `i`ndex, `f`ull or `n`othing.
    pub replica_identity: u8,
    /// Its columns, in the order of a row's cells.
    pub columns: Vec<RelationColumn<'a>>,
}

/// A column of a [`Relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Whether it belongs to the replica identity.
    pub is_key: bool,
    /// Its name.
    pub name: &'a str,
    /// Its type.
    pub type_oid: Oid,
    /// Its type modifier, -1 for none.
    pub type_modifier: i32,
}

/// Table numbers as the message has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oids<'a>(&'a [u8]);

impl Oids<'_> {
    /// The numbers.
    pub fn iter(&self) -> impl Iterator<Item = Oid> {
        let (oids, _) = self.0.as_chunks::<4>();
        oids.iter().map(|oid| Oid::from_be_bytes(*oid))
    }
}

/// Decodes the messages of one connection, in order. Rows are converted into buffers that it keeps from message to
/// message: one copy, no allocation.
#[derive(Debug, Default)]
pub struct Decoder {
    in_stream: bool,
    old: TupleBuf,
    new: TupleBuf,
}

impl Decoder {
    /// For a connection that has just begun to stream.
    #[must_use]
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Decodes one message.
    ///
    /// # Errors
    /// Which message, where in it, and what is wrong; nothing can be made of the connection then.
    pub fn decode<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut cursor = Cursor::new(bytes);
        let kind = cursor.kind()?;
        let message = match kind {
            b'I' | b'U' | b'D' => self.change(kind, &mut cursor)?,
            b'B' | b'C' | b'O' | b'M' => self.frame(kind, &mut cursor)?,
            b'S' | b'E' | b'c' | b'A' => self.stream(kind, &mut cursor)?,
            b'R' => {
                let xid = self.subtransaction(&mut cursor)?;
                let relation = relation(&mut cursor)?;
                Message::Relation { xid, relation }
            }
            b'T' => {
                let xid = self.subtransaction(&mut cursor)?;
                let relations = truncated(&mut cursor)?;
                Message::Truncate { xid, relations }
            }
            b'Y' => Message::Type {
                xid: self.subtransaction(&mut cursor)?,
                oid: cursor.u32()?,
                schema: cursor.text()?,
                name: cursor.text()?,
            },
            b'b' | b'P' | b'K' | b'r' | b'p' => return Err(cursor.error_at_start(Problem::TwoPhase(kind))),
            other => return Err(cursor.error_at_start(Problem::Unknown(other))),
        };
        cursor.finish()?;
        Ok(message)
    }

    fn change<'a>(&'a mut self, kind: u8, cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
        let xid = self.subtransaction(cursor)?;
        let relation = cursor.u32()?;
        let mut part = cursor.u8()?;
        let mut old = None;
        if kind != b'I' && matches!(part, b'K' | b'O') {
            let row = row(cursor, &mut self.old)?;
            if kind == b'D' {
                return Ok(Message::Delete { xid, relation, old: row });
            }
            old = Some(row);
            part = cursor.u8()?;
        }
        if kind == b'D' || part != b'N' {
            return Err(cursor.error_before(Problem::Part(part)));
        }
        let new = row(cursor, &mut self.new)?;
        Ok(match kind {
            b'I' => Message::Insert { xid, relation, new },
            _ => Message::Update { xid, relation, old, new },
        })
    }

    fn frame<'a>(&self, kind: u8, cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
        Ok(match kind {
            b'B' => Message::Begin { commit: cursor.lsn()?, committed_at: cursor.time()?, xid: cursor.u32()? },
            b'C' => {
                let (commit, end, committed_at) = commit(cursor)?;
                Message::Commit { commit, end, committed_at }
            }
            b'O' => Message::Origin { commit: cursor.lsn()?, name: cursor.text()? },
            _ => Message::Message {
                xid: self.subtransaction(cursor)?,
                transactional: cursor.u8()? & 1 != 0,
                lsn: cursor.lsn()?,
                prefix: cursor.text()?,
                content: cursor.sized()?,
            },
        })
    }

    fn stream<'a>(&mut self, kind: u8, cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
        match kind {
            b'S' => {
                let xid = cursor.u32()?;
                let first = cursor.u8()? & 1 != 0;
                self.in_stream = true;
                Ok(Message::StreamStart { xid, first })
            }
            b'E' => {
                self.in_stream = false;
                Ok(Message::StreamStop)
            }
            b'c' => {
                let xid = cursor.u32()?;
                let (commit, end, committed_at) = commit(cursor)?;
                Ok(Message::StreamCommit { xid, commit, end, committed_at })
            }
            _ => Ok(Message::StreamAbort { xid: cursor.u32()?, subtransaction: cursor.u32()? }),
        }
    }

    fn subtransaction(&self, cursor: &mut Cursor<'_>) -> Result<Option<u32>, DecodeError> {
        self.in_stream.then(|| cursor.u32()).transpose()
    }
}

fn commit(cursor: &mut Cursor<'_>) -> Result<(Lsn, Lsn, CommitTime), DecodeError> {
    // Flags, none of which exists so far.
    cursor.u8()?;
    Ok((cursor.lsn()?, cursor.lsn()?, cursor.time()?))
}

fn relation<'a>(cursor: &mut Cursor<'a>) -> Result<Relation<'a>, DecodeError> {
    let (oid, schema, name, replica_identity) = (cursor.u32()?, cursor.text()?, cursor.text()?, cursor.u8()?);
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

fn truncated<'a>(cursor: &mut Cursor<'a>) -> Result<Oids<'a>, DecodeError> {
    let count = cursor.i32()?;
    // CASCADE and RESTART IDENTITY; the tables that a cascade reaches are all listed.
    cursor.u8()?;
    match usize::try_from(count).ok().and_then(|count| count.checked_mul(4)) {
        Some(length) => Ok(Oids(cursor.bytes(length)?)),
        None => Err(cursor.error_before(Problem::Length(count))),
    }
}

fn row<'a>(cursor: &mut Cursor<'_>, row: &'a mut TupleBuf) -> Result<Row<'a>, DecodeError> {
    row.clear();
    let columns = cursor.count()?;
    for _ in 0..columns {
        row.push(match cursor.u8()? {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            b'b' | b't' => Cell::Value(cursor.sized()?),
            other => return Err(cursor.error_before(Problem::Cell(other))),
        });
    }
    let cells = row.as_ref();
    Ok(Row { cells, columns })
}

#[cfg(test)]
mod tests;
