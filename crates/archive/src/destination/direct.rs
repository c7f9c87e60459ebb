//! Files that are written once and not read soon, bypassing the page cache. Copying into the cache
//! takes a fifth of the CPU time of a snapshot, and evicts the pages of other processes.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// The size of one write: fast on every disk, and a multiple of every block size.
const PIECE_BYTES: usize = 1 << 20;
/// The alignment of pieces in memory. Direct I/O needs a multiple of the disk's block size, and
/// this is the largest common one.
const ALIGNMENT: usize = 4096;
/// The number of pieces that are being written, or wait for it, while another one is filled.
const PIECES_AWAY: usize = 2;

/// A writer of a file from its beginning. Full pieces are written by a separate thread; the last
/// piece is written through the page cache.
pub(super) struct DirectFile {
    file: File,
    /// The piece that is being filled; `None` after a failure.
    filling: Option<AlignedPiece>,
    writer: Option<AlignedPieceWriter>,
}

/// Bytes at an aligned address.
struct AlignedPiece {
    bytes: Vec<u8>,
    begin: usize,
}

struct AlignedPieceWriter {
    filled: SyncSender<AlignedPiece>,
    emptied: Receiver<AlignedPiece>,
    thread: JoinHandle<io::Result<()>>,
}

impl AlignedPiece {
    fn new() -> AlignedPiece {
        let mut bytes: Vec<u8> = Vec::with_capacity(ALIGNMENT + PIECE_BYTES);
        // `align_offset` may fail. The disk then refuses the piece, which is written through the
        // cache.
        let begin = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        bytes.resize(begin, 0);
        AlignedPiece { bytes, begin }
    }

    /// Appends as many bytes as there is room for, and returns their number.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.bytes.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        taken
    }

    fn room(&self) -> usize {
        (self.begin + PIECE_BYTES).saturating_sub(self.bytes.len())
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(self.begin..).unwrap_or_default()
    }

    fn empty(&mut self) {
        self.bytes.truncate(self.begin);
    }
}

impl AlignedPieceWriter {
    fn spawn(file: File) -> io::Result<AlignedPieceWriter> {
        let (filled, pieces) = sync_channel::<AlignedPiece>(PIECES_AWAY);
        let (empty, emptied) = sync_channel(PIECES_AWAY);
        for _ in 0..PIECES_AWAY {
            // The channel has room for all pieces.
            let _ = empty.try_send(AlignedPiece::new());
        }
        let write = move || {
            bypass_cache(&file, true)?;
            for mut piece in pieces {
                write_piece(&file, piece.filled())?;
                piece.empty();
                let _ = empty.send(piece);
            }
            bypass_cache(&file, false)
        };
        let thread = thread::Builder::new().name("laredo-disk".to_owned()).spawn(write)?;
        Ok(AlignedPieceWriter { filled, emptied, thread })
    }

    /// Queues a full piece for writing, and returns an empty one. Returns `None` if the thread has
    /// ended.
    fn swap(&self, piece: AlignedPiece) -> Option<AlignedPiece> {
        self.filled.send(piece).ok()?;
        self.emptied.recv().ok()
    }

    /// Waits until all pieces are written.
    fn end(self) -> io::Result<()> {
        drop(self.filled);
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl DirectFile {
    /// Creates a writer for an empty file.
    pub(super) fn new(file: File) -> DirectFile {
        DirectFile { file, filling: Some(AlignedPiece::new()), writer: None }
    }

    /// Waits until all bytes are written. Only fsync guarantees that they are on the disk.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let rest = self.filling.take().ok_or_else(failed_before)?;
        self.writer.take().map_or(Ok(()), AlignedPieceWriter::end)?;
        self.file.write_all(rest.filled())
    }

    fn swap(&mut self, full: AlignedPiece) -> io::Result<AlignedPiece> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => AlignedPieceWriter::spawn(self.file.try_clone()?)?,
        };
        match writer.swap(full) {
            Some(empty) => {
                self.writer = Some(writer);
                Ok(empty)
            }
            // The result of the thread has the cause.
            None => writer.end().and_then(|()| Err(failed_before())),
        }
    }
}

fn failed_before() -> io::Error {
    io::Error::other("an earlier write failed")
}

impl Write for DirectFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut piece = self.filling.take().ok_or_else(failed_before)?;
        if piece.room() == 0 {
            piece = self.swap(piece)?;
        }
        let taken = piece.fill(bytes);
        self.filling = Some(piece);
        Ok(taken)
    }

    /// Does nothing. Pieces are written when they are full, and the last one by
    /// [`DirectFile::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes at the file's position. If direct I/O is refused, the piece is written through the cache.
fn write_piece(mut file: &File, piece: &[u8]) -> io::Result<()> {
    let at = file.stream_position()?;
    match file.write_all(piece) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            bypass_cache(file, false)?;
            file.seek(SeekFrom::Start(at))?;
            file.write_all(piece)
        }
        written => written,
    }
}

/// Sets whether later writes bypass the page cache. File systems without support for that are left
/// unchanged.
#[cfg(target_os = "linux")]
fn bypass_cache(file: &File, bypass: bool) -> io::Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, bypass);
    match fcntl_setfl(file, flags) {
        Err(rustix::io::Errno::INVAL) if bypass => Ok(()),
        set => Ok(set?),
    }
}

#[cfg(not(target_os = "linux"))]
fn bypass_cache(_: &File, _: bool) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: File, bytes: &[u8], each: usize) -> io::Result<()> {
        let mut direct = DirectFile::new(file);
        bytes.chunks(each).try_for_each(|some| direct.write_all(some))?;
        direct.finish()
    }

    #[test]
    fn what_is_written_is_there_whatever_its_length() {
        let bytes: Vec<u8> = (0..5 * PIECE_BYTES + 4097).map(|number| (number % 251) as u8).collect();
        for length in [0, 1, 4096, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, bytes.len()] {
            for each in [1000, 65_536, 3 * PIECE_BYTES] {
                let file = tempfile::NamedTempFile::new().unwrap();
                write(file.reopen().unwrap(), &bytes[..length], each).unwrap();
                assert!(std::fs::read(file.path()).unwrap() == bytes[..length], "{length} bytes, {each} at a time");
            }
        }
    }

    #[test]
    fn what_the_disk_refuses_to_take_past_the_cache_goes_through_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        bypass_cache(file.as_file(), true).unwrap();
        // These lengths are not multiples of any disk's block size.
        for piece in [&b"odd"[..], b"lengths"] {
            write_piece(file.as_file(), piece).unwrap();
        }
        assert_eq!(std::fs::read(file.path()).unwrap(), b"oddlengths");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_whenever_it_is_met() {
        for length in [1, PIECE_BYTES, PIECE_BYTES + 1, 10 * PIECE_BYTES] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let error = write(full, &vec![7; length], 65_536).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{length} bytes: {error}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn nothing_more_is_taken_after_a_failure() {
        let mut direct = DirectFile::new(File::options().write(true).open("/dev/full").unwrap());
        let bytes = vec![7; PIECE_BYTES];
        assert!((0..10).any(|_| direct.write_all(&bytes).is_err()));
        assert!(direct.write(b"more").is_err());
        assert!(direct.finish().is_err());
    }
}
