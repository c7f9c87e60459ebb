//! An artifact's bytes on this machine's disk, before they go to the destinations: written once, however often and to however many
//! places they are sent.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use tempfile::{NamedTempFile, TempPath};

use crate::format::Format;

/// Large enough that a disk writes in one go, small enough to be nothing.
const BUFFER_BYTES: usize = 1 << 20;

/// Where artifacts wait.
#[derive(Clone, Debug)]
pub struct Stager {
    folder: PathBuf,
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
        let summed = Summed { file, sum: Context::new(&SHA256), size_bytes: 0 };
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
        let Summed { file, sum, size_bytes } = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
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
