//! The bytes of a journal's files. `docs/journal-format.md` describes them.

use bytes::Bytes;
use laredo_core::{Checksum, ChecksumError, CommitMark, CommitTime, DefinitionVersion, Lsn, Sequence, Xid};
use laredo_proto::replication::TypedSchema;
use prost::Message;
use ring::digest::{Context, SHA256};

use crate::head::Head;

/// The format that this version writes. It is the only one so far.
pub(crate) const VERSION: u32 = 1;

/// The number of sequences that are skipped after a restart, so that none is assigned twice.
///
/// Entries that were served but not synced are lost with the process. Their bytes are bounded by
/// [`super::queue::UNSYNCED_BYTES_MAX`] and one transaction beyond. Each entry takes at least five
/// bytes, so this many entries would be 20 GiB of one transaction. A journal can be opened at least
/// two billion times before sequences run out.
pub(crate) const SKIPPED: u64 = 1 << 32;

const FILE_MAGIC: &[u8; 8] = b"laredo-j";
const RECORD_MAGIC: &[u8; 4] = b"lrec";
/// The length of the prefix: magic, format, length and checksum of the message that follows.
pub(crate) const PREFIX_BYTES: usize = 20;
/// The length of a record's head, which precedes its contents.
pub(crate) const HEAD_BYTES: usize = 80;
/// The maximum length of a header, which is mostly a schema. A larger stated length is invalid.
pub(crate) const HEADER_BYTES_MAX: usize = 64 << 20;

/// The header of a file. It states where the file continues, so that the file can be read without
/// those before it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JournalFileHeader {
    /// The name of the journal.
    #[prost(string, tag = "1")]
    pub(crate) instance: String,
    /// The last entry before the file.
    #[prost(uint64, tag = "2")]
    pub(crate) before_sequence: u64,
    /// The first entry of the file. There may be a large gap before it.
    #[prost(uint64, tag = "3")]
    pub(crate) first_sequence: u64,
    /// The commit end before the file.
    #[prost(uint64, tag = "4")]
    pub(crate) before_position: u64,
    /// The time of that commit, in microseconds since 2000-01-01.
    #[prost(int64, tag = "5")]
    pub(crate) committed_at: i64,
    /// The schema of the first rows.
    #[prost(message, optional, tag = "6")]
    pub(crate) schema: Option<TypedSchema>,
    /// The definition of the first rows.
    #[prost(message, optional, tag = "7")]
    pub(crate) definition: Option<RowDefinition>,
    /// The newest commit of any of the source's tables before the file.
    #[prost(message, optional, tag = "8")]
    pub(crate) mark: Option<StoredCommitMark>,
}

/// A commit that is known to be at or before a position.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct StoredCommitMark {
    #[prost(uint64, tag = "1")]
    pub(crate) end: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) xid: u64,
    /// The time of the commit, in microseconds since 2000-01-01.
    #[prost(int64, tag = "3")]
    pub(crate) committed_at: i64,
}

impl StoredCommitMark {
    pub(crate) fn of(mark: CommitMark) -> Option<StoredCommitMark> {
        mark.known().map(|mark| StoredCommitMark {
            end: mark.end.0,
            xid: mark.xid.0,
            committed_at: mark.committed_at.0,
        })
    }

    pub(crate) fn known(kept: Option<StoredCommitMark>) -> CommitMark {
        let mark = |StoredCommitMark { end, xid, committed_at }| CommitMark {
            end: Lsn(end),
            xid: Xid(xid),
            committed_at: CommitTime(committed_at),
        };
        kept.map(mark).and_then(CommitMark::known).unwrap_or_default()
    }
}

/// The table definition that the rows were copied under.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(crate) struct RowDefinition {
    /// True if the rows are the source's own: all rows with all columns. Only from such rows can
    /// the state be rebuilt.
    #[prost(bool, tag = "1")]
    pub(crate) is_whole: bool,
    /// The source's description of the table's definition. Only the source interprets it.
    #[prost(string, tag = "2")]
    pub(crate) source: String,
    /// The filters and transforms that were applied to the rows; empty if there are none.
    #[prost(string, tag = "3")]
    pub(crate) pipeline: String,
}

impl RowDefinition {
    /// Returns the version that identifies the definition to clients.
    ///
    /// It is the first eight bytes of a SHA-256 hash. The hash is of the first line of the source's
    /// description, followed by the pipeline if there is one. All servers that follow the table
    /// with the same pipeline compute the same version.
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
        // Zero means unknown.
        DefinitionVersion(first.max(1))
    }
}

/// The footer of a base.
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
    /// The number of bytes of the frames before the footer.
    #[prost(uint64, tag = "6")]
    pub(crate) bytes: u64,
    #[prost(message, optional, tag = "7")]
    pub(crate) schema: Option<TypedSchema>,
    #[prost(message, optional, tag = "8")]
    pub(crate) definition: Option<RowDefinition>,
    /// The CRC-32 of each megabyte of the frames.
    #[prost(fixed32, repeated, tag = "9")]
    pub(crate) checksums: Vec<u32>,
    /// The description of a snapshot as JSON. It is empty in a journal's base, which has the
    /// manifest in the same folder.
    #[prost(string, tag = "10")]
    pub(crate) about: String,
    /// The newest commit of any of the source's tables at or before the position.
    #[prost(message, optional, tag = "11")]
    pub(crate) mark: Option<StoredCommitMark>,
    /// The checksum of the rows, 16 bytes; empty if unknown.
    #[prost(bytes = "vec", tag = "20")]
    pub(crate) contents: Vec<u8>,
}

impl BaseFooter {
    /// Returns a footer that has only the head whose rows the base contains.
    pub(crate) fn at(head: Head) -> BaseFooter {
        BaseFooter {
            sequence: head.sequence.0,
            position: head.position.0,
            committed_at: head.committed_at.0,
            mark: StoredCommitMark::of(head.mark),
            contents: head.checksum.map_or_else(Vec::new, |checksum| checksum.to_bytes().to_vec()),
            ..BaseFooter::default()
        }
    }

    /// Returns the head whose rows the base contains.
    ///
    /// # Errors
    /// When the checksum is invalid.
    pub(crate) fn head(&self) -> Result<Head, ChecksumError> {
        Ok(Head {
            sequence: Sequence(self.sequence),
            position: Lsn(self.position),
            committed_at: CommitTime(self.committed_at),
            mark: StoredCommitMark::known(self.mark),
            checksum: Checksum::from_wire(&self.contents)?,
        })
    }

    /// Returns the bytes of the footer, followed by their number.
    pub(crate) fn ending(&self) -> Vec<u8> {
        let mut bytes = sealed(self);
        let length = bytes.len() as u64;
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes
    }
}

/// Encodes a message with the prefix that identifies it: magic, format, length, checksum.
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

/// Returns the format, and the length of the message that follows, from a prefix. Returns `None` if
/// the prefix is invalid.
pub(crate) fn prefix(bytes: &[u8]) -> Option<(u32, usize)> {
    let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let length = number(12)? as usize;
    (bytes.get(..8)? == FILE_MAGIC && length <= HEADER_BYTES_MAX).then_some((number(8)?, length))
}

/// Decodes a message with its prefix. Returns `None` if the checksum or anything else is wrong.
pub(crate) fn unsealed<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    let (_, length) = prefix(bytes)?;
    let stated = u32::from_be_bytes(bytes.get(16..20)?.try_into().ok()?);
    let message = bytes.get(PREFIX_BYTES..PREFIX_BYTES + length)?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[..16]);
    checksum.update(message);
    (checksum.finalize() == stated).then(|| M::decode(message).ok())?
}

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    /// Frames: whole transactions, or a piece of one.
    Frames = 1,
    /// A mark: the table did not change up to the record's position.
    Mark = 2,
    /// A new definition of the rows before it.
    Definition = 3,
    /// An abort: the pieces before it were discarded.
    Abort = 4,
}

/// The head of a record, which precedes the contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) kind: RecordKind,
    pub(crate) begins: bool,
    pub(crate) ends: bool,
    /// True if one of its frames changes the schema.
    pub(crate) has_schema: bool,
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
    /// The commit end before the record.
    pub(crate) before: Lsn,
    /// The commit end of its last transaction.
    pub(crate) position: Lsn,
    pub(crate) span_from: Option<Lsn>,
    pub(crate) committed_at: CommitTime,
    /// The number of bytes of the file that were on disk when this was written. An error before
    /// that offset is damage, and not a torn write.
    pub(crate) synced: u64,
    pub(crate) frames: usize,
    pub(crate) olds: usize,
    /// The CRC-32 of the contents.
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

    /// Decodes a head. Returns `None` if the bytes are not a valid head.
    pub(crate) fn decode(bytes: &[u8]) -> Option<RecordHead> {
        let bytes = bytes.first_chunk::<HEAD_BYTES>()?;
        let short = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        if &bytes[..4] != RECORD_MAGIC || crc32fast::hash(&bytes[..HEAD_BYTES - 4]) != short(76)? {
            return None;
        }
        let kind = match bytes[4] {
            1 => RecordKind::Frames,
            2 => RecordKind::Mark,
            3 => RecordKind::Definition,
            4 => RecordKind::Abort,
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
