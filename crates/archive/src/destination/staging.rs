//! The bytes of an artifact on the local disk, before they are sent to the destinations. They are
//! written once, regardless of the number of destinations and tries.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laredo_values::hex;
use ring::digest::{Context, SHA256};
use tempfile::{NamedTempFile, TempPath};

use super::Destination;
use super::direct::DirectFile;
use super::private_folder::PrivateFolder;
use crate::layout::ArtifactFormat;

/// The local storage for artifacts that are not finished. Clones share it.
#[derive(Clone, Debug)]
pub struct ArtifactStager {
    folder: Arc<PrivateFolder>,
    /// The permissions of files, from which the umask is subtracted.
    mode: u32,
}

/// The permissions of an archive's files, as for any file that a program writes for others.
const ARCHIVE_MODE: u32 = 0o666;
/// The permissions of files that are not part of an archive.
const PRIVATE_MODE: u32 = 0o600;

impl fmt::Display for ArtifactStager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.folder.parent().display().fmt(f)
    }
}

/// A staged artifact. Its file is deleted when this is dropped.
#[derive(Debug)]
pub struct StagedArtifact {
    path: TempPath,
    /// The folder of the file, which is removed after the file.
    _folder: Arc<PrivateFolder>,
    /// The artifact's format.
    pub format: ArtifactFormat,
    /// The artifact's size in bytes.
    pub size_bytes: u64,
    /// The size of the artifact's contents in bytes, before compression. Equal to the artifact's
    /// size unless an encoder sets it.
    pub unpacked_bytes: u64,
    /// The SHA-256 of the artifact's bytes, in hex.
    pub sha256: String,
}

/// The writer of a staged artifact.
pub struct StageWriter {
    path: TempPath,
    folder: Arc<PrivateFolder>,
    file: DirectFile,
    format: ArtifactFormat,
    size_bytes: u64,
    sum: Context,
}

impl ArtifactStager {
    /// Creates a stager in a private folder inside `parent`. Both are created when they are needed.
    #[must_use]
    pub fn new(parent: impl Into<PathBuf>) -> ArtifactStager {
        ArtifactStager { folder: Arc::new(PrivateFolder::new(parent.into())), mode: PRIVATE_MODE }
    }

    /// Creates a stager from which artifacts need not be copied to the first destination on this
    /// machine. If there is none, the stager is in a private folder inside `temporary`.
    #[must_use]
    pub fn for_destinations(destinations: &[Arc<dyn Destination>], temporary: &Path) -> ArtifactStager {
        let local = destinations.iter().find_map(|destination| destination.stager());
        local.unwrap_or_else(|| ArtifactStager::new(temporary))
    }

    /// Creates a stager whose files can become an archive's files without a copy.
    pub(super) fn for_archive(folder: Arc<PrivateFolder>) -> ArtifactStager {
        ArtifactStager { folder, mode: ARCHIVE_MODE }
    }

    /// Removes the files that earlier processes left behind. Files that cannot be removed are
    /// logged.
    pub(crate) fn remove_abandoned(&self) {
        self.folder.remove_abandoned();
    }

    /// Begins an artifact.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn begin(&self, format: ArtifactFormat) -> io::Result<StageWriter> {
        let (file, path) = temporary_in(&self.folder.path()?, self.mode)?.into_parts();
        let file = DirectFile::new(file);
        Ok(StageWriter { path, folder: self.folder.clone(), file, format, size_bytes: 0, sum: Context::new(&SHA256) })
    }
}

/// Creates a file for an archive that does not have its final name yet. Other users may read it
/// later, as the umask allows.
pub(super) fn archive_file_in(folder: &Path) -> io::Result<NamedTempFile> {
    temporary_in(folder, ARCHIVE_MODE)
}

fn temporary_in(folder: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    let permissions = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(mode);
    #[cfg(unix)]
    builder.permissions(permissions);
    #[cfg(not(unix))]
    let _ = mode;
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
        let StageWriter { path, folder, format, size_bytes, .. } = self;
        Ok(StagedArtifact { path, _folder: folder, format, size_bytes, unpacked_bytes: size_bytes, sha256 })
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
