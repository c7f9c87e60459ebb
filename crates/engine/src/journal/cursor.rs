//! Cursors, which read a journal.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use laredo_core::{Lsn, Schema, Sequence};

use super::Journal;
use crate::segment::{Segment, SegmentData, SegmentMark, frames};

/// A position of a reader in a journal.
#[derive(Clone, Debug)]
pub struct JournalCursor {
    journal: Journal,
    after: Sequence,
}

/// The result of one step of a cursor: whole frames, and the old rows that belong to them.
#[derive(Clone, Debug)]
pub struct JournalPiece {
    /// The frames as they are sent to clients.
    pub frames: Bytes,
    /// The old rows. Each frame has a big-endian `u32` length, followed by the old rows of its
    /// updates and deletes. Each old row has such a length, too.
    pub olds: Bytes,
    /// The position of a reader that has everything before the piece.
    pub before: Lsn,
    /// The schema before the first frame.
    pub schema: Arc<Schema>,
    /// The last entry that the reader has already. `frames` may begin with entries up to this one,
    /// if the reader stopped inside a frame.
    pub after: Sequence,
    /// The last entry.
    pub last: Sequence,
    /// The last entry before the transaction in which the piece begins.
    pub began_after: Sequence,
    /// The commit end of the last transaction.
    pub position: Lsn,
    /// True if that transaction ends here.
    pub ends: bool,
}

/// The state of a reader before it reads.
#[derive(Clone, Debug)]
pub struct CursorOrigin {
    /// The schema of the reader's rows.
    pub schema: Arc<Schema>,
    /// The position up to which the reader has every commit completely.
    pub position: Lsn,
}

/// A piece whose bytes have not been read.
pub(super) struct PieceLocation {
    pub(super) piece: JournalPiece,
    pub(super) data: SegmentData,
    pub(super) mark: SegmentMark,
    /// The index of its segment.
    pub(super) index: usize,
}

/// An error that prevents a cursor from continuing.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// The entries that follow are no longer kept.
    #[error("the journal no longer has the entries after sequence {0}")]
    Pruned(Sequence),
    /// A file of the journal could not be read.
    #[error("reading the journal: {0}")]
    Io(#[from] io::Error),
}

impl JournalCursor {
    pub(super) fn new(journal: Journal, after: Sequence) -> JournalCursor {
        JournalCursor { journal, after }
    }

    /// Returns true if another journal has replaced the one that is read.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.journal.is_closed()
    }

    /// Returns the last entry taken.
    #[must_use]
    pub fn after(&self) -> Sequence {
        self.after
    }

    /// Returns the next piece, or `None` at the head. Blocks if the piece is in a file.
    ///
    /// # Errors
    /// When the piece is no longer kept, or cannot be read.
    pub fn next_piece(&mut self) -> Result<Option<JournalPiece>, CursorError> {
        let head = self.journal.head();
        if self.after >= head.sequence {
            return Ok(None);
        }
        let Some((located, rest)) = self.journal.locate(self.after, head.sequence)? else {
            return Ok(None);
        };
        let PieceLocation { mut piece, data, mark, .. } = located;
        (piece.frames, piece.olds) = data.read(mark.frames_at, mark.olds_at)?;
        skip_known(&mut piece);
        join(&mut piece, &rest)?;
        self.after = piece.last;
        Ok(Some(piece))
    }

    /// Returns the state of a reader that has everything up to the cursor. Blocks if the next
    /// segment is in a file.
    ///
    /// # Errors
    /// When the next piece is no longer kept, or cannot be read.
    pub fn origin(&self) -> Result<CursorOrigin, CursorError> {
        let (located, at_head) = self.journal.locate_start(self.after)?;
        let Some(PieceLocation { mut piece, data, mark, .. }) = located else { return Ok(at_head) };
        (piece.frames, piece.olds) = data.read(mark.frames_at, mark.olds_at)?;
        skip_known(&mut piece);
        // The reader may have stopped inside a frame that begins with a change of the schema. It
        // has received that change already.
        let changed = frames(piece.frames).next().filter(|frame| frame.first() <= self.after);
        let changed = changed.and_then(|frame| frame.batch.schema);
        let changed = changed.and_then(|schema| laredo_proto::schema::from_wire(schema).ok());
        Ok(CursorOrigin { schema: changed.map_or(piece.schema, Arc::new), position: piece.before })
    }

    /// Returns the result of [`JournalCursor::next_piece`] without blocking the caller's thread
    /// while a file is read.
    ///
    /// # Errors
    /// The errors of [`JournalCursor::next_piece`].
    pub async fn next_piece_async(&mut self) -> Result<Option<JournalPiece>, CursorError> {
        if self.journal.is_in_memory(self.after) {
            return self.next_piece();
        }
        let mut cursor = self.clone();
        let read = tokio::task::spawn_blocking(move || (cursor.next_piece(), cursor));
        let (piece, cursor) = read.await.map_err(io::Error::other)?;
        *self = cursor;
        piece
    }
}

/// Removes whole frames that the reader has already.
fn skip_known(piece: &mut JournalPiece) {
    let (after, mut frames_at, mut olds_at, mut schema) = (piece.after, 0, 0, None);
    for frame in frames(piece.frames.clone()) {
        if frame.header.last_sequence > after {
            break;
        }
        frames_at += frame.length;
        olds_at += olds_length(piece.olds.get(olds_at..).unwrap_or_default());
        if frame.header.ends {
            piece.before = frame.header.position;
            piece.began_after = frame.header.last_sequence;
        }
        if let Some(changed) = frame.batch.schema {
            schema = laredo_proto::schema::from_wire(changed).ok();
        }
    }
    piece.frames.advance(frames_at);
    piece.olds.advance(olds_at.min(piece.olds.len()));
    if let Some(schema) = schema {
        piece.schema = Arc::new(schema);
    }
}

fn olds_length(olds: &[u8]) -> usize {
    olds.first_chunk::<4>().map_or(0, |head| 4 + u32::from_be_bytes(*head) as usize)
}

fn join(piece: &mut JournalPiece, rest: &[Segment]) -> Result<(), CursorError> {
    let Some(last) = rest.last() else { return Ok(()) };
    let (mut frames, mut olds) = (piece.frames.to_vec(), piece.olds.to_vec());
    for segment in rest {
        let (more_frames, more_olds) = segment.data.read(0, 0)?;
        frames.extend_from_slice(&more_frames);
        olds.extend_from_slice(&more_olds);
    }
    (piece.frames, piece.olds) = (frames.into(), olds.into());
    (piece.last, piece.position, piece.ends) = (last.last, last.position, last.ends);
    Ok(())
}
