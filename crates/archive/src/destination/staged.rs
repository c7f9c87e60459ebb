//! An artifact's bytes on this machine's disk, before they go to the destinations: written once, however often and to however many
//! places they are sent.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use ring::digest::{Context, SHA256};
use tempfile::{NamedTempFile, TempPath};

use crate::format::Format;

/// Of what comes in smaller pieces.
const BUFFER_BYTES: usize = 128 << 10;
/// Between two times that the disk is told to begin.
const AHEAD_BYTES: u64 = 32 << 20;

/// Where artifacts wait.
#[derive(Clone, Debug)]
pub struct Stager {
    folder: PathBuf,
}

impl fmt::Display for Stager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.folder.display().fmt(f)
    }
}

/// An artifact that waits; its file goes when this is dropped.
#[derive(Debug)]
pub struct Staged {
    path: TempPath,
    /// Its format.
    pub format: Format,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of its bytes, in hex.
    pub sha256: String,
}

/// Writes an artifact that is to wait.
pub struct StageWriter {
    out: BufWriter<Summed>,
    format: Format,
}

struct Summed {
    file: NamedTempFile,
    sum: Context,
    size_bytes: u64,
    ahead: Ahead,
}

/// Has the disk begin with what there is while more is written, so that the end need not wait for all of it.
#[derive(Default)]
struct Ahead {
    /// What was written when it was begun last.
    begun_at: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl Ahead {
    fn wrote(&mut self, file: &File, size_bytes: u64) -> io::Result<()> {
        let is_busy = self.syncing.as_ref().is_some_and(|syncing| !syncing.is_finished());
        if is_busy || size_bytes - self.begun_at < AHEAD_BYTES {
            return Ok(());
        }
        self.end()?;
        let file = file.try_clone()?;
        self.begun_at = size_bytes;
        let sync = move || file.sync_data();
        self.syncing = Some(thread::Builder::new().name("laredo-sync".to_owned()).spawn(sync)?);
        Ok(())
    }

    /// What could not be written is said here, and to nobody else later.
    fn end(&mut self) -> io::Result<()> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        syncing.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Stager {
    /// In this folder, which is made when it is needed. On the same file system as a local destination nothing is copied.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Stager {
        Stager { folder: folder.into() }
    }

    /// Begins an artifact.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn begin(&self, format: Format) -> io::Result<StageWriter> {
        std::fs::create_dir_all(&self.folder)?;
        let file = temporary_in(&self.folder)?;
        let summed = Summed { file, sum: Context::new(&SHA256), size_bytes: 0, ahead: Ahead::default() };
        Ok(StageWriter { out: BufWriter::with_capacity(BUFFER_BYTES, summed), format })
    }
}

/// A file without a name of its own yet. Others may read it, as the umask allows: temporary files are for their owner's eyes only
/// otherwise, and an archive is not.
pub(super) fn temporary_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let permissions = std::fs::Permissions::from_mode(0o666);
        builder.prefix("writing-").permissions(permissions).tempfile_in(folder)
    }
    #[cfg(not(unix))]
    builder.prefix("writing-").tempfile_in(folder)
}

impl StageWriter {
    /// Ends it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> io::Result<Staged> {
        let Summed { file, sum, size_bytes, mut ahead } =
            self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        ahead.end()?;
        Ok(Staged { path: file.into_temp_path(), format: self.format, size_bytes, sha256: hex(sum.finish().as_ref()) })
    }
}

impl Write for StageWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.as_file_mut().write(bytes)?;
        let bytes = bytes.get(..written).unwrap_or_default();
        self.sum.update(bytes);
        self.size_bytes += bytes.len() as u64;
        self.ahead.wrote(self.file.as_file(), self.size_bytes)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

impl Staged {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it to be read.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }
}

/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
