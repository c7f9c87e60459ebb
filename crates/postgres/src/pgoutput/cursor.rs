//! A reader of a message's fields that reports where decoding failed.

use laredo_core::{CommitTime, Lsn};

/// An error in a message: pgoutput does not send such a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pgoutput message {}, byte {offset} of {length}: {problem}", name(*.kind))]
pub struct PgoutputDecodeError {
    /// The message's first byte; zero for an empty message.
    pub kind: u8,
    /// The offset of the error in the message, in bytes.
    pub offset: usize,
    /// The length of the message, in bytes.
    pub length: usize,
    /// The problem at that offset.
    pub problem: PgoutputProblem,
}

/// A problem with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PgoutputProblem {
    /// The message ends too early.
    #[error("{expected} more bytes are expected and {left} are left")]
    Short {
        /// The number of bytes that should follow.
        expected: usize,
        /// The number of bytes that follow.
        left: usize,
    },
    /// Bytes follow the end of the message.
    #[error("{0} bytes follow the end of the message")]
    Long(usize),
    /// A message kind that does not exist.
    #[error("there is no message of kind {0:#04x}")]
    Unknown(u8),
    /// A prepared transaction. PostgreSQL sends them only through a slot made with `two_phase`.
    #[error("message {:?} belongs to a prepared transaction, because the slot was created with two_phase; drop the slot, and laredo creates it", char::from(*.0))]
    TwoPhase(u8),
    /// A length or count below zero.
    #[error("length {0} is impossible")]
    Length(i32),
    /// A byte that introduces neither an old nor a new row.
    #[error("{0:#04x} introduces neither an old nor a new row")]
    Part(u8),
    /// A cell kind that does not exist.
    #[error("there is no cell of kind {0:#04x}")]
    Cell(u8),
    /// A kind of replica identity that does not exist.
    #[error("there is no replica identity of kind {0:#04x}")]
    ReplicaIdentity(u8),
    /// A text without its terminating zero.
    #[error("the text does not end")]
    Endless,
    /// A name that is not UTF-8.
    #[error("the name is not UTF-8")]
    NotUtf8,
}

fn name(kind: u8) -> &'static str {
    match kind {
        b'B' => "Begin",
        b'C' => "Commit",
        b'O' => "Origin",
        b'R' => "Relation",
        b'Y' => "Type",
        b'I' => "Insert",
        b'U' => "Update",
        b'D' => "Delete",
        b'T' => "Truncate",
        b'M' => "Message",
        b'S' => "Stream Start",
        b'E' => "Stream Stop",
        b'c' => "Stream Commit",
        b'A' => "Stream Abort",
        b'b' => "Begin Prepare",
        b'P' => "Prepare",
        b'K' => "Commit Prepared",
        b'r' => "Rollback Prepared",
        b'p' => "Stream Prepare",
        _ => "of an unknown kind",
    }
}

/// A position in a message.
#[derive(Debug)]
pub(super) struct PgoutputCursor<'a> {
    message: &'a [u8],
    rest: &'a [u8],
}

impl<'a> PgoutputCursor<'a> {
    pub(super) fn new(message: &'a [u8]) -> PgoutputCursor<'a> {
        PgoutputCursor { message, rest: message }
    }

    pub(super) fn u8(&mut self) -> Result<u8, PgoutputDecodeError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PgoutputDecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, PgoutputDecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, PgoutputDecodeError> {
        self.array().map(u64::from_be_bytes).map(Lsn)
    }

    pub(super) fn time(&mut self) -> Result<CommitTime, PgoutputDecodeError> {
        self.array().map(i64::from_be_bytes).map(CommitTime)
    }

    /// Reads a number of columns.
    pub(super) fn count(&mut self) -> Result<usize, PgoutputDecodeError> {
        let count = self.array().map(i16::from_be_bytes)?;
        usize::try_from(count).map_err(|_| self.error_back(2, PgoutputProblem::Length(count.into())))
    }

    /// Reads a zero-terminated text.
    pub(super) fn text(&mut self) -> Result<&'a str, PgoutputDecodeError> {
        let Some(length) = self.rest.iter().position(|byte| *byte == 0) else {
            return Err(self.error_back(0, PgoutputProblem::Endless));
        };
        let text =
            std::str::from_utf8(&self.rest[..length]).map_err(|_| self.error_back(0, PgoutputProblem::NotUtf8))?;
        self.rest = &self.rest[length + 1..];
        Ok(text)
    }

    /// Reads a length and as many bytes.
    pub(super) fn sized(&mut self) -> Result<&'a [u8], PgoutputDecodeError> {
        let length = self.i32()?;
        match usize::try_from(length) {
            Ok(length) => self.bytes(length),
            Err(_) => Err(self.error_back(4, PgoutputProblem::Length(length))),
        }
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], PgoutputDecodeError> {
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
            return Err(self.short(length));
        };
        self.rest = rest;
        Ok(bytes)
    }

    pub(super) fn finish(&self) -> Result<(), PgoutputDecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(self.error_back(0, PgoutputProblem::Long(left))),
        }
    }

    pub(super) fn error_at_start(&self, problem: PgoutputProblem) -> PgoutputDecodeError {
        self.error_back(self.message.len() - self.rest.len(), problem)
    }

    /// Returns an error about the byte just read.
    pub(super) fn error_before(&self, problem: PgoutputProblem) -> PgoutputDecodeError {
        self.error_back(1, problem)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PgoutputDecodeError> {
        let Some((array, rest)) = self.rest.split_first_chunk() else {
            return Err(self.short(N));
        };
        self.rest = rest;
        Ok(*array)
    }

    #[cold]
    fn short(&self, expected: usize) -> PgoutputDecodeError {
        let left = self.rest.len();
        self.error_back(0, PgoutputProblem::Short { expected, left })
    }

    #[cold]
    fn error_back(&self, bytes: usize, problem: PgoutputProblem) -> PgoutputDecodeError {
        PgoutputDecodeError {
            kind: self.message.first().copied().unwrap_or_default(),
            offset: (self.message.len() - self.rest.len()).saturating_sub(bytes),
            length: self.message.len(),
            problem,
        }
    }
}
