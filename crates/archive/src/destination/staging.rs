//! The bytes of an artifact on the local disk, before they are sent to the destinations. They are
//! written once, regardless of the number of destinations and tries.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use tempfile::{NamedTempFile, TempPath};

use super::direct::DirectFile;
use super::hex;
use crate::layout::ArtifactFormat;

/// The folder where artifacts are staged.
#[derive(Clone, Debug)]
pub struct ArtifactStager {
    folder: PathBuf,
}

impl fmt::Display for ArtifactStager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.folder.display().fmt(f)
    }
}

/// A staged artifact. Its file is deleted when this is dropped.
#[derive(Debug)]
pub struct StagedArtifact {
    path: TempPath,
    /// The artifact's format.
    pub format: ArtifactFormat,
    /// The artifact's size in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of the artifact's bytes, in hex.
    pub sha256: String,
}

/// The writer of a staged artifact.
pub struct StageWriter {
    path: TempPath,
    file: DirectFile,
    format: ArtifactFormat,
    size_bytes: u64,
    sum: Context,
}

impl ArtifactStager {
    /// Creates a stager in this folder, which is created when it is needed. From the folder
    /// `Destination::staging_folder`, artifacts need not be copied to that destination.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> ArtifactStager {
        ArtifactStager { folder: folder.into() }
    }

    /// Begins an artifact.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn begin(&self, format: ArtifactFormat) -> io::Result<StageWriter> {
        std::fs::create_dir_all(&self.folder)?;
        let (file, path) = temporary_in(&self.folder)?.into_parts();
        let file = DirectFile::new(file);
        Ok(StageWriter { path, file, format, size_bytes: 0, sum: Context::new(&SHA256) })
    }
}

/// Creates a file without its final name. Other users may read it, as the umask allows. Temporary
/// files are normally readable by their owner only, but an archive is not.
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
    /// Finishes the artifact.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn finish(self) -> io::Result<StagedArtifact> {
        self.file.finish()?;
        let sha256 = hex(self.sum.finish().as_ref());
        Ok(StagedArtifact { path: self.path, format: self.format, size_bytes: self.size_bytes, sha256 })
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

impl StagedArtifact {
    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }
}
