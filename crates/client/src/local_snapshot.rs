//! The local snapshot: the table on disk, so that a restarted process need not load it again.
//!
//! The file contains the messages of a stream as a server would send them, so the
//! [`StreamAssembler`] reads it too. It begins with eight bytes of magic and a version. The request
//! that the file answers follows, then the handshake, the snapshot and a heartbeat. Each message
//! has the five-byte prefix of gRPC. The file ends with a CRC-32 of everything before it.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use laredo_core::{Checksum, DefinitionVersion, IndexSpec, Sequence, TableState, Tuple};
use laredo_proto::batch::{BatchBuilder, BatchHeader, EntryAction};
use laredo_proto::replication::sync_response::Message as WireMessage;
use laredo_proto::replication::{
    Encoding, Heartbeat, RowEncoding, SnapshotBegin, SnapshotEnd, SyncHandshake, SyncMode, SyncRequest, SyncResponse,
};
use laredo_proto::{frame, schema};
use prost::Message;

use crate::assembler::{AssemblerEvent, StreamAssembler};
use crate::sync_receiver::ResumeState;

const MAGIC: &[u8; 8] = b"LAREDOLS";
/// The version of the format. A file of another version is not read.
const VERSION: u32 = 1;
const CRC_BYTES: u64 = 4;

/// The file of a local snapshot, and the request that it must answer.
#[derive(Clone, Debug)]
pub(crate) struct LocalSnapshotFile {
    path: PathBuf,
    /// The table and the filters. A file with another request is not used.
    request: SyncRequest,
}

/// A table with the state that a stream may resume from.
#[derive(Clone, Debug)]
pub(crate) struct ResumableTable<T> {
    pub(crate) table: T,
    pub(crate) resume: ResumeState,
    /// The time at which the table was last known to be all that the database had.
    pub(crate) at_head: Option<SystemTime>,
}

/// A copy of the rows, taken while the replica continues to change.
pub(crate) struct LocalSnapshotRows {
    pub(crate) schema: std::sync::Arc<laredo_core::Schema>,
    pub(crate) rows: Vec<Tuple>,
    /// The checksum of these rows.
    pub(crate) checksum: Checksum,
}

/// The reason why a file is unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalSnapshotError {
    /// The file is of another replica or of another format version.
    #[error("the file is not a snapshot of this replica: {0}")]
    Foreign(&'static str),
    /// The file is damaged.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// The file cannot be read.
    #[error("cannot read the file: {0}")]
    Io(#[from] io::Error),
}

impl LocalSnapshotFile {
    pub(crate) fn new(path: PathBuf, request: SyncRequest) -> LocalSnapshotFile {
        LocalSnapshotFile { path, request }
    }

    /// Loads the saved table. Returns `None` if there is no file, or if the file is unusable. An
    /// unusable file is set aside and logged.
    pub(crate) fn load(&self, indexes: &[IndexSpec]) -> Option<ResumableTable<TableState>> {
        let path = self.path.display();
        let error = match self.read(indexes) {
            Ok(saved) => return Some(saved),
            Err(LocalSnapshotError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error,
        };
        let aside = suffixed_path(&self.path, "unusable");
        match std::fs::rename(&self.path, &aside) {
            Ok(()) => {
                tracing::warn!(
                    event = "local_snapshot_unusable", %path, %error, aside = %aside.display(),
                    "cannot use the local snapshot; the file was renamed, and the client loads all rows"
                )
            }
            Err(rename) => {
                tracing::warn!(
                    event = "local_snapshot_not_renamed", %path, %error, %rename,
                    "cannot use the local snapshot, and cannot rename the file; the client loads all rows"
                )
            }
        }
        None
    }

    fn read(&self, indexes: &[IndexSpec]) -> Result<ResumableTable<TableState>, LocalSnapshotError> {
        let file = File::open(&self.path)?;
        let left =
            file.metadata()?.len().checked_sub(CRC_BYTES).ok_or(LocalSnapshotError::Foreign("it is too short"))?;
        let mut reader =
            CrcFrameReader { file: BufReader::with_capacity(1 << 20, file), left, crc: crc32fast::Hasher::new() };
        let mut magic = [0; 12];
        reader.exactly(&mut magic)?;
        if !magic.starts_with(MAGIC) {
            return Err(LocalSnapshotError::Foreign("it does not begin with the magic of one"));
        }
        if !magic.ends_with(&VERSION.to_be_bytes()) {
            return Err(LocalSnapshotError::Foreign("its format has another version"));
        }
        if reader.next::<SyncRequest>()?.as_ref() != Some(&self.request) {
            return Err(LocalSnapshotError::Foreign("it was written for another table or other filters"));
        }
        let damaged = |problem: &str| LocalSnapshotError::Damaged(problem.to_owned());
        let mut assembler = StreamAssembler::new(indexes.to_vec());
        let (mut opened, mut loaded, mut newest, mut at_head) = (None, None, None, None);
        while let Some(response) = reader.next::<SyncResponse>()? {
            match assembler.feed(response, None) {
                Ok(AssemblerEvent::Opened(handshake)) => opened = Some(handshake),
                Ok(AssemblerEvent::Snapshot { table, checksum, .. })
                    if checksum.is_some_and(|sum| sum != table.checksum()) =>
                {
                    return Err(damaged("its rows do not have the checksum that was saved with them"));
                }
                Ok(AssemblerEvent::Snapshot { table, position, sequence, mark, .. }) => {
                    loaded = Some((*table, position, sequence));
                    newest = mark;
                }
                Ok(AssemblerEvent::Heartbeat { server_time, .. }) => {
                    at_head = server_time.and_then(|time| time.try_into().ok())
                }
                Ok(AssemblerEvent::Nothing) => {}
                Ok(AssemblerEvent::Transaction { .. } | AssemblerEvent::Repeated { .. }) => {
                    return Err(damaged("it has messages after the snapshot"));
                }
                Err(error) => return Err(LocalSnapshotError::Damaged(format!("{error:?}"))),
            }
        }
        reader.check()?;
        let (Some(handshake), Some((table, position, sequence))) = (opened, loaded) else {
            return Err(damaged("it ends before the snapshot does"));
        };
        let sequence = (sequence != Sequence::default()).then_some(sequence);
        let SyncHandshake { instance_id, source, definition, .. } = *handshake;
        let (source, definition) = (source.map(Into::into), DefinitionVersion(definition));
        let (mark, contents_differed) = (newest, false);
        let resume = ResumeState { instance_id, sequence, position, source, mark, definition, contents_differed };
        Ok(ResumableTable { table, resume, at_head })
    }

    /// Writes a new file next to the old one and then replaces it, so that there is always a
    /// complete file.
    ///
    /// # Errors
    /// When the file cannot be written; the old one then stays. Also when the folder cannot be
    /// synced after the replacement.
    pub(crate) fn save(&self, saved: &ResumableTable<LocalSnapshotRows>) -> io::Result<()> {
        // The name has the process ID, so that a process that shares the path by mistake does not
        // write to the same file.
        let new = suffixed_path(&self.path, &format!("{}.new", std::process::id()));
        let written = self.write(&new, saved).and_then(|()| std::fs::rename(&new, &self.path));
        if written.is_err() {
            // The partial file is unusable. A failure to remove it is not reported in addition to
            // the first error.
            let _ = std::fs::remove_file(&new);
            return written;
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }

    fn write(&self, path: &Path, saved: &ResumableTable<LocalSnapshotRows>) -> io::Result<()> {
        let ResumableTable { table: LocalSnapshotRows { schema: of, rows, checksum }, resume, at_head } = saved;
        // Rows that differed from the server's are not saved.
        let ResumeState { instance_id, sequence, position, source, mark, definition, contents_differed: _ } = resume;
        let mut out = CrcFileWriter { file: create_private(path)?, crc: crc32fast::Hasher::new() };
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        frame::encode(&self.request, &mut bytes);
        let sequence = sequence.unwrap_or_default().to_wire();
        push_message(
            &mut bytes,
            WireMessage::Handshake(SyncHandshake {
                mode: SyncMode::FullSnapshot.into(),
                encoding: Some(Encoding {
                    format: RowEncoding::PostgresBinary.into(),
                    schema: Some(schema::to_wire(of)),
                }),
                instance_id: instance_id.clone(),
                source: source.clone().map(Into::into),
                definition: definition.0,
                ..SyncHandshake::default()
            }),
        );
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let (source_position, snapshot_id) = (position.to_string(), String::new());
        push_message(
            &mut bytes,
            WireMessage::SnapshotBegin(SnapshotBegin { snapshot_id, sequence, row_count: count, source_position }),
        );
        let mut batch = BatchBuilder::default();
        for row in rows {
            batch.push(EntryAction::Insert, row.as_ref());
            if batch.is_full() {
                batch.finish(&BatchHeader::default(), &mut bytes);
                out.write(&mut bytes)?;
            }
        }
        if !batch.is_empty() {
            batch.finish(&BatchHeader::default(), &mut bytes);
        }
        let source_position = position.to_string();
        let (rows_sent, mark, checksum) = (count, mark.map(Into::into), checksum.to_bytes().to_vec());
        let end = SnapshotEnd { sequence, rows_sent, source_position, checksum, mark, ..SnapshotEnd::default() };
        push_message(&mut bytes, WireMessage::SnapshotEnd(end));
        let server_time = at_head.map(Into::into);
        push_message(&mut bytes, WireMessage::Heartbeat(Heartbeat { server_time, ..Heartbeat::default() }));
        out.write(&mut bytes)?;
        out.end()
    }
}

/// Creates a file that only its owner may read. A file or a link with this name, from a process
/// with the same ID, is removed first.
fn create_private(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn push_message(bytes: &mut Vec<u8>, message: WireMessage) {
    frame::encode(&SyncResponse { message: Some(message) }, bytes);
}

/// Returns `path.suffix`.
fn suffixed_path(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

struct CrcFileWriter {
    file: File,
    crc: crc32fast::Hasher,
}

impl CrcFileWriter {
    fn write(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.crc.update(bytes);
        self.file.write_all(bytes)?;
        bytes.clear();
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        self.file.write_all(&self.crc.finalize().to_be_bytes())?;
        self.file.sync_all()
    }
}

struct CrcFrameReader {
    file: BufReader<File>,
    /// The bytes that are left before the CRC.
    left: u64,
    crc: crc32fast::Hasher,
}

impl CrcFrameReader {
    fn exactly(&mut self, bytes: &mut [u8]) -> Result<(), LocalSnapshotError> {
        let cut = || LocalSnapshotError::Damaged("it is truncated".to_owned());
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(cut)?;
        self.file.read_exact(bytes)?;
        self.crc.update(bytes);
        Ok(())
    }

    fn next<M: Message + Default>(&mut self) -> Result<Option<M>, LocalSnapshotError> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut prefix = [0; frame::PREFIX_LENGTH];
        self.exactly(&mut prefix)?;
        let length = frame::length(&prefix).unwrap_or_default();
        if length as u64 > self.left {
            return Err(LocalSnapshotError::Damaged("it is truncated".to_owned()));
        }
        let mut message = vec![0; length];
        self.exactly(&mut message)?;
        // The entries of a batch share this memory.
        M::decode(bytes::Bytes::from(message)).map(Some).map_err(|error| LocalSnapshotError::Damaged(error.to_string()))
    }

    fn check(mut self) -> Result<(), LocalSnapshotError> {
        let mut crc = [0; CRC_BYTES as usize];
        self.file.read_exact(&mut crc)?;
        match u32::from_be_bytes(crc) == self.crc.finalize() {
            true => Ok(()),
            false => Err(LocalSnapshotError::Damaged("its checksum is wrong".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
