//! An artifact's bytes on this machine's disk, before they go to the destinations: written once, however often and to however many
//! places they are sent.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use tempfile::{NamedTempFile, TempPath};

use super::direct::DirectFile;
use crate::format::Format;

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
    path: TempPath,
    file: DirectFile,
    format: Format,
    size_bytes: u64,
    sum: Context,
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
        let (file, path) = temporary_in(&self.folder)?.into_parts();
        let file = DirectFile::new(file);
        Ok(StageWriter { path, file, format, size_bytes: 0, sum: Context::new(&SHA256) })
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
        self.file.finish()?;
        let sha256 = hex(self.sum.finish().as_ref());
        Ok(Staged { path: self.path, format: self.format, size_bytes: self.size_bytes, sha256 })
    }
}

impl Write for StageWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        let bytes = bytes.get(..taken).unwrap_or_default();
        self.sum.update(bytes);
        self.size_bytes += bytes.len() as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
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
