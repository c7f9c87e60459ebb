//! The bytes of a journal's files. `docs/journal-format.md` draws them.

use bytes::Bytes;
use laredo_core::{CommitMark, CommitTime, DefinitionVersion, Lsn, Sequence, Xid};
use laredo_proto::replication::TypedSchema;
use prost::Message;
use ring::digest::{Context, SHA256};

/// The format that this version writes, and the only one so far.
pub(crate) const VERSION: u32 = 1;

/// After a restart sequences go on so much further than what is on disk. What was served and not yet synced is bounded in bytes
/// ([`super::queue::UNSYNCED_BYTES_MAX`], and one transaction beyond), and each entry takes at least five of them: so many entries
/// would be 20 GiB of one transaction. A journal can be opened two thousand million times before it runs out.
pub(crate) const SKIPPED: u64 = 1 << 32;

const FILE_MAGIC: &[u8; 8] = b"laredo-j";
const RECORD_MAGIC: &[u8; 4] = b"lrec";
/// Magic, format, length and checksum of the header that follows.
pub(crate) const PREFIX_BYTES: usize = 20;
/// Bytes before a record's contents.
pub(crate) const HEAD_BYTES: usize = 80;
/// A header is a schema; one that claims more is not a header.
pub(crate) const HEADER_BYTES_MAX: usize = 64 << 20;

/// What a file begins with: where it goes on, so that it can be read without those before it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FileHeader {
    /// The journal.
    #[prost(string, tag = "1")]
    pub(crate) instance: String,
    /// The last entry before it.
    #[prost(uint64, tag = "2")]
    pub(crate) before_sequence: u64,
    /// Its own first entry, which may be much further on.
    #[prost(uint64, tag = "3")]
    pub(crate) first_sequence: u64,
    /// The commit end before it.
    #[prost(uint64, tag = "4")]
    pub(crate) before_position: u64,
    /// When that committed, in PostgreSQL's count.
    #[prost(int64, tag = "5")]
    pub(crate) committed_at: i64,
    /// The schema of its first rows.
    #[prost(message, optional, tag = "6")]
    pub(crate) schema: Option<TypedSchema>,
    /// What the rows were defined by.
    #[prost(message, optional, tag = "7")]
    pub(crate) definition: Option<Definition>,
    /// The newest commit of any of the source's tables before it.
    #[prost(message, optional, tag = "8")]
    pub(crate) mark: Option<KeptMark>,
}

/// A commit that is known to lie at or before a position.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct KeptMark {
    #[prost(uint64, tag = "1")]
    pub(crate) end: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) xid: u64,
    /// In PostgreSQL's count.
    #[prost(int64, tag = "3")]
    pub(crate) committed_at: i64,
}

impl KeptMark {
    pub(crate) fn of(mark: CommitMark) -> Option<KeptMark> {
        mark.known().map(|mark| KeptMark { end: mark.end.0, xid: mark.xid.0, committed_at: mark.committed_at.0 })
    }

    pub(crate) fn known(kept: Option<KeptMark>) -> CommitMark {
        let mark = |KeptMark { end, xid, committed_at }| CommitMark {
            end: Lsn(end),
            xid: Xid(xid),
            committed_at: CommitTime(committed_at),
        };
        kept.map(mark).and_then(CommitMark::known).unwrap_or_default()
    }
}

/// What the rows of a table are rows of.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(crate) struct Definition {
    /// Whether they are the source's own: all of them, all their columns. The state can be rebuilt from such rows alone.
    #[prost(bool, tag = "1")]
    pub(crate) is_whole: bool,
    /// The source's word for the table's definition, which only the source understands.
    #[prost(string, tag = "2")]
    pub(crate) source: String,
    /// The filters and transforms that the rows have passed; empty where there are none.
    #[prost(string, tag = "3")]
    pub(crate) pipeline: String,
}

impl Definition {
    /// Returns the version that names it to clients: the first eight bytes of the SHA-256 of the first line of the source's word, with
    /// the pipeline behind it if there is one. Every server that follows the table in this way computes the same.
    pub(crate) fn version(&self) -> DefinitionVersion {
        if self.source.is_empty() {
            return DefinitionVersion::UNKNOWN;
        }
        let mut digest = Context::new(&SHA256);
        digest.update(self.source.lines().next().unwrap_or_default().as_bytes());
        if !self.pipeline.is_empty() {
            digest.update(b"\n");
            digest.update(self.pipeline.as_bytes());
        }
        let first = digest.finish().as_ref().first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        // Zero stands for an unknown one.
        DefinitionVersion(first.max(1))
    }
}

/// What a base ends with.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct BaseFooter {
    #[prost(string, tag = "1")]
    pub(crate) instance: String,
    #[prost(uint64, tag = "2")]
    pub(crate) sequence: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) position: u64,
    #[prost(int64, tag = "4")]
    pub(crate) committed_at: i64,
    #[prost(uint64, tag = "5")]
    pub(crate) rows: u64,
    /// Bytes of the frames before it.
    #[prost(uint64, tag = "6")]
    pub(crate) bytes: u64,
    #[prost(message, optional, tag = "7")]
    pub(crate) schema: Option<TypedSchema>,
    #[prost(message, optional, tag = "8")]
    pub(crate) definition: Option<Definition>,
    /// Of each megabyte of the frames.
    #[prost(fixed32, repeated, tag = "9")]
    pub(crate) checksums: Vec<u32>,
    /// Of a snapshot: whose it is, as JSON. A base in a journal's folder has its manifest beside it.
    #[prost(string, tag = "10")]
    pub(crate) about: String,
    /// The newest commit of any of the source's tables at or before the position.
    #[prost(message, optional, tag = "11")]
    pub(crate) mark: Option<KeptMark>,
    /// The checksum of the rows, 16 bytes; empty where it is unknown.
    #[prost(bytes = "vec", tag = "20")]
    pub(crate) contents: Vec<u8>,
}

impl BaseFooter {
    /// Its bytes, and how many they are.
    pub(crate) fn ending(&self) -> Vec<u8> {
        let mut bytes = sealed(self);
        let length = bytes.len() as u64;
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes
    }
}

/// A message with what it takes to know it again: magic, format, length, checksum.
pub(crate) fn sealed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("schemas are far below 4 GiB");
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + message.len());
    bytes.extend_from_slice(FILE_MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes);
    checksum.update(&message);
    bytes.extend_from_slice(&checksum.finalize().to_be_bytes());
    bytes.extend_from_slice(&message);
    bytes
}

/// The format and the length of the message that a prefix announces.
pub(crate) fn prefix(bytes: &[u8]) -> Option<(u32, usize)> {
    let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let length = number(12)? as usize;
    (bytes.get(..8)? == FILE_MAGIC && length <= HEADER_BYTES_MAX).then_some((number(8)?, length))
}

/// The message behind a prefix, if both are what was written.
pub(crate) fn unsealed<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    let (_, length) = prefix(bytes)?;
    let stated = u32::from_be_bytes(bytes.get(16..20)?.try_into().ok()?);
    let message = bytes.get(PREFIX_BYTES..PREFIX_BYTES + length)?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[..16]);
    checksum.update(message);
    (checksum.finalize() == stated).then(|| M::decode(message).ok())?
}

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Frames: whole transactions, or a piece of one.
    Frames = 1,
    /// Nothing happened up to its position.
    Mark = 2,
    /// Another definition of the rows before it.
    Definition = 3,
    /// The pieces before it came to nothing.
    Abort = 4,
}

/// What stands before a record's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) kind: Kind,
    pub(crate) begins: bool,
    pub(crate) ends: bool,
    /// Whether a frame of it changes the schema.
    pub(crate) has_schema: bool,
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
    /// The commit end before it.
    pub(crate) before: Lsn,
    /// The commit end of its last transaction.
    pub(crate) position: Lsn,
    pub(crate) span_from: Option<Lsn>,
    pub(crate) committed_at: CommitTime,
    /// So many bytes of the file were on disk for sure when this was written: damage before here is damage, and not a write that
    /// was torn.
    pub(crate) synced: u64,
    pub(crate) frames: usize,
    pub(crate) olds: usize,
    /// Of its contents.
    pub(crate) checksum: u32,
}

impl RecordHead {
    pub(crate) fn contents_bytes(&self) -> usize {
        self.frames + self.olds
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        let flags = u8::from(self.begins) | u8::from(self.ends) << 1 | u8::from(self.has_schema) << 2;
        bytes.extend_from_slice(RECORD_MAGIC);
        bytes.extend_from_slice(&[self.kind as u8, flags, 0, 0]);
        let span_from = self.span_from.map_or(0, |lsn| lsn.0);
        for number in [self.first.0, self.last.0, self.before.0, self.position.0, span_from] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.committed_at.0.to_be_bytes());
        bytes.extend_from_slice(&self.synced.to_be_bytes());
        for length in [self.frames, self.olds] {
            let length = u32::try_from(length).expect("a piece is a megabyte, or one row below 2 GiB");
            bytes.extend_from_slice(&length.to_be_bytes());
        }
        bytes.extend_from_slice(&self.checksum.to_be_bytes());
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        bytes.into()
    }

    /// `None` where the bytes are not a record's head as it was written.
    pub(crate) fn decode(bytes: &[u8]) -> Option<RecordHead> {
        let bytes = bytes.first_chunk::<HEAD_BYTES>()?;
        let short = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        if &bytes[..4] != RECORD_MAGIC || crc32fast::hash(&bytes[..HEAD_BYTES - 4]) != short(76)? {
            return None;
        }
        let kind = match bytes[4] {
            1 => Kind::Frames,
            2 => Kind::Mark,
            3 => Kind::Definition,
            4 => Kind::Abort,
            _ => return None,
        };
        let flag = |bit: u8| bytes[5] >> bit & 1 == 1;
        Some(RecordHead {
            kind,
            begins: flag(0),
            ends: flag(1),
            has_schema: flag(2),
            first: Sequence(long(8)?),
            last: Sequence(long(16)?),
            before: Lsn(long(24)?),
            position: Lsn(long(32)?),
            span_from: Some(Lsn(long(40)?)).filter(|lsn| *lsn > Lsn::ZERO),
            committed_at: CommitTime(long(48)?.cast_signed()),
            synced: long(56)?,
            frames: short(64)? as usize,
            olds: short(68)? as usize,
            checksum: short(72)?,
        })
    }
}
