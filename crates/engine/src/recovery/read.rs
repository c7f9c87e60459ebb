//! Reading of a journal's files: checks every record, cuts off a torn end, and reports damage.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use laredo_core::{Lsn, Sequence};
use prost::Message;

use super::replay::JournalReplay;
use crate::durable::sync;
use crate::head::Head;
use crate::store::{
    DataFile, HEAD_BYTES, JOURNAL, JournalFile, JournalFileHeader, JournalFolder, PREFIX_BYTES, RecordHead, RecordKind,
    RowDefinition, StoreError, StoredCommitMark, StoredPart, StoredSegment, VERSION, io_error, prefix, unsealed,
};

/// The number of bytes read at once.
const READ_BYTES: usize = 1024 * 1024;

/// Reads all files of a journal in order.
///
/// # Errors
/// When a file cannot be read, or is damaged.
pub(super) fn read_journal(
    store: &JournalFolder,
    instance: &str,
    kept: &mut Option<JournalReplay>,
) -> Result<VecDeque<JournalFile>, StoreError> {
    let mut paths = VecDeque::from(store.folder().files(JOURNAL)?);
    drop_unborn(&mut paths)?;
    let mut files = VecDeque::new();
    while let Some(path) = paths.pop_front() {
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error("opening", &path))?;
        let bytes = file.metadata().map_err(io_error("reading", &path))?.len();
        let data = Arc::new(DataFile::of_store(file, path.clone(), bytes));
        let (header, begins_at) = header(data.file(), &path)?;
        let before = Sequence(header.before_sequence);
        if header.instance != instance {
            let what = format!("it belongs to journal {}, and its folder to {instance}", header.instance);
            return Err(StoreError::damaged(&path, 0, what));
        }
        let kept = match kept {
            Some(kept) => kept,
            None => kept.insert(JournalReplay::begin(&header).map_err(|what| StoreError::damaged(&path, 0, what))?),
        };
        kept.begin_file(&header).map_err(|what| StoreError::damaged(&path, 0, what))?;
        let reading = JournalFileReader { path: &path, data: &data, bytes, is_last: paths.is_empty() };
        let (bytes, is_needed) = reading.read(begins_at, kept)?;
        files.push_back(JournalFile { file: data.clone(), before, bytes, is_needed });
    }
    Ok(files)
}

/// Removes files at the end whose header is not on disk. No entry in them was ever acknowledged.
fn drop_unborn(paths: &mut VecDeque<PathBuf>) -> Result<(), StoreError> {
    while let Some(path) = paths.back() {
        let file = File::open(path).map_err(io_error("opening", path))?;
        let is_unborn = match header(&file, path) {
            Err(StoreError::Damaged { .. }) => !is_known_to_be_synced(&file, 0).map_err(io_error("reading", path))?,
            Err(error) => return Err(error),
            Ok(_) => false,
        };
        if !is_unborn {
            return Ok(());
        }
        std::fs::remove_file(path).map_err(io_error("removing", path))?;
        paths.pop_back();
    }
    Ok(())
}

/// Returns a file's header, and the offset of its first record.
fn header(file: &File, path: &Path) -> Result<(JournalFileHeader, u64), StoreError> {
    let damaged = || StoreError::damaged(path, 0, "it does not begin as a journal does");
    let mut bytes = vec![0; PREFIX_BYTES];
    read_at(file, &mut bytes, 0, path)?.then_some(()).ok_or_else(damaged)?;
    let (version, length) = prefix(&bytes).ok_or_else(damaged)?;
    bytes.resize(PREFIX_BYTES + length, 0);
    let is_whole = read_at(file, &mut bytes, 0, path)?;
    let header = is_whole.then(|| unsealed(&bytes)).flatten();
    match header {
        // The checksum is right, so this is not damage.
        Some(_) if version != VERSION => Err(StoreError::Version { path: path.to_owned(), found: version }),
        Some(header) => Ok((header, bytes.len() as u64)),
        None => Err(damaged()),
    }
}

/// Reads bytes at an offset. Returns false if the file ends before them.
fn read_at(file: &File, bytes: &mut [u8], at: u64, path: &Path) -> Result<bool, StoreError> {
    match file.read_exact_at(bytes, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(io_error("reading", path)(error)),
    }
}

/// A file that is being read.
struct JournalFileReader<'a> {
    path: &'a Path,
    data: &'a Arc<DataFile>,
    bytes: u64,
    is_last: bool,
}

impl JournalFileReader<'_> {
    /// Reads all records, and cuts off a torn end of the last file.
    ///
    /// Returns the end of the file, and true if it has contents that a later file's header does not
    /// repeat.
    fn read(&self, begins_at: u64, kept: &mut JournalReplay) -> Result<(u64, bool), StoreError> {
        let failed = || io_error("reading", self.path);
        let mut reader = BufReader::with_capacity(READ_BYTES, self.data.file());
        reader.seek(SeekFrom::Start(begins_at)).map_err(failed())?;
        let (mut at, mut whole, mut is_needed) = (begins_at, begins_at, false);
        let problem = loop {
            if at == self.bytes {
                break None;
            }
            let Some((head, contents)) = self.read_record(&mut reader, at).map_err(failed())? else {
                break Some("a record is not what was written");
            };
            let contents_at = at + HEAD_BYTES as u64;
            at = contents_at + contents.len() as u64;
            self.replay_record(&head, contents_at, &contents, kept)
                .map_err(|what| StoreError::damaged(self.path, contents_at - HEAD_BYTES as u64, what))?;
            if !kept.is_inside() {
                whole = at;
                is_needed |= head.kind == RecordKind::Frames || head.span_from.is_some();
            }
        };
        if let Some(what) = problem {
            let is_torn = self.is_last && !is_known_to_be_synced(self.data.file(), at).map_err(failed())?;
            if !is_torn {
                return Err(StoreError::damaged(self.path, at, what));
            }
        }
        if kept.is_inside() && !self.is_last {
            return Err(StoreError::damaged(self.path, whole, "a transaction does not end"));
        }
        if whole < self.bytes {
            self.cut_torn_end(whole, kept)?;
        }
        Ok((whole, is_needed))
    }

    /// Returns the next record, or `None` if there is no complete and valid one.
    fn read_record(&self, reader: &mut impl Read, at: u64) -> io::Result<Option<(RecordHead, Bytes)>> {
        let mut head = [0; HEAD_BYTES];
        if self.bytes - at < HEAD_BYTES as u64 {
            return Ok(None);
        }
        reader.read_exact(&mut head)?;
        let Some(head) = RecordHead::decode(&head) else { return Ok(None) };
        let length = head.contents_bytes();
        if self.bytes - at - (HEAD_BYTES as u64) < length as u64 {
            return Ok(None);
        }
        let mut contents = vec![0; length];
        reader.read_exact(&mut contents)?;
        Ok((crc32fast::hash(&contents) == head.checksum).then(|| (head, contents.into())))
    }

    fn replay_record(
        &self,
        head: &RecordHead,
        at: u64,
        contents: &Bytes,
        kept: &mut JournalReplay,
    ) -> Result<(), String> {
        match head.kind {
            RecordKind::Frames => {
                let part = StoredPart { at, frames: head.frames, olds: head.olds, checksum: Some(head.checksum) };
                kept.frames(head, contents.slice(..head.frames), StoredSegment::new(self.data.clone(), part))
            }
            RecordKind::Mark => {
                // A mark of an earlier version names no commit.
                let mark = StoredCommitMark::decode(contents.as_ref()).map_err(|error| error.to_string())?;
                kept.mark(head, mark)
            }
            RecordKind::Abort => {
                kept.abort();
                Ok(())
            }
            RecordKind::Definition => {
                let definition = RowDefinition::decode(contents.as_ref()).map_err(|error| error.to_string())?;
                kept.define(definition)
            }
        }
    }

    /// Truncates the file to its first `whole` bytes. This is necessary because the file will not
    /// be the last one any more.
    fn cut_torn_end(&self, whole: u64, kept: &mut JournalReplay) -> Result<(), StoreError> {
        kept.abort();
        tracing::warn!(
            event = "journal_end_cut",
            file = %self.path.display(), at = whole, bytes = self.bytes - whole,
            "the journal's end was being written when the server ended; it is cut at the last whole transaction"
        );
        let cut = self.data.file().set_len(whole).and_then(|()| sync(self.data.file()));
        cut.map(drop).map_err(io_error("cutting", self.path))
    }
}

/// Returns true if a later record states that byte `at` was on disk. An error at `at` is then
/// damage, and not a torn write. Disks may write unsynced bytes in any order.
fn is_known_to_be_synced(file: &File, at: u64) -> io::Result<bool> {
    let (mut window, mut begins) = (vec![0; READ_BYTES + HEAD_BYTES], at);
    loop {
        let mut filled = 0;
        while filled < window.len() {
            match file.read_at(&mut window[filled..], begins + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        let heads = window[..filled].windows(HEAD_BYTES).filter_map(RecordHead::decode);
        if { heads }.any(|head| head.synced > at) {
            return Ok(true);
        }
        if filled < window.len() {
            return Ok(false);
        }
        begins += READ_BYTES as u64;
    }
}

/// Checks that a file's header continues from the entry and position of the file before it.
///
/// # Errors
/// The reason if it does not.
pub(super) fn follows(known: &Head, header: &JournalFileHeader) -> Result<(), String> {
    let Head { sequence, position, .. } = *known;
    if header.before_sequence != sequence.0
        || header.before_position < position.0
        || header.first_sequence <= sequence.0
    {
        return Err(format!(
            "it continues after entry {} at {}, and the file before it ends with entry {sequence} at {position}: a file is missing",
            header.before_sequence,
            Lsn(header.before_position)
        ));
    }
    Ok(())
}
