//! An archive in a folder.

mod regular_file;
#[cfg(feature = "writer")]
mod write;

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use ring::digest::SHA256;

use laredo_values::hex;

#[cfg(feature = "writer")]
use super::private_folder::PrivateFolder;
use super::{
    DestinationError, DestinationReader, InvalidKeyPrefix, ManifestTag, VersionedManifest, check_key_prefix,
    large_manifest,
};
use crate::layout::{MANIFEST_BYTES_MAX, MANIFEST_NAME};
use regular_file::open_regular;

/// An archive in a folder of a local or mounted file system. Inside of the folder, links are not
/// followed, and only regular files are read.
#[derive(Clone, Debug)]
pub struct FolderDestination {
    inner: DestinationFolder,
    name: Arc<str>,
}

impl FolderDestination {
    /// Creates a destination in this folder. The folder is created by the first write.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> FolderDestination {
        FolderDestination::of(folder.into(), "")
    }

    /// Creates a destination in this folder, with names that begin with `prefix`. The part of
    /// `prefix` up to its last `/` is a subfolder.
    ///
    /// # Errors
    /// [`InvalidKeyPrefix`] if the names could lead out of the folder.
    pub fn with_prefix(folder: impl Into<PathBuf>, prefix: &str) -> Result<FolderDestination, InvalidKeyPrefix> {
        check_key_prefix(prefix)?;
        Ok(FolderDestination::of(folder.into(), prefix))
    }

    fn of(folder: PathBuf, prefix: &str) -> FolderDestination {
        let (folders, prefix) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let folder = folder.join(folders);
        // The addresses in a manifest must be valid from every working directory.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        let name = folder.join(prefix).display().to_string();
        let inner = DestinationFolder {
            #[cfg(feature = "writer")]
            unfinished: Arc::new(PrivateFolder::of_archive(folder.join(write::WORK))),
            folder: folder.into(),
            prefix: prefix.into(),
        };
        FolderDestination { inner, name: name.into() }
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DestinationFolder) -> Result<T, DestinationError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, DestinationError>> {
        let (folder, name) = (self.inner.clone(), self.name.clone());
        async move {
            let ended = tokio::task::spawn_blocking(move || work(&folder)).await;
            let gone = |error: tokio::task::JoinError| DestinationError::Unavailable {
                doing: "use",
                at: name.to_string(),
                reason: error.to_string(),
            };
            ended.map_err(gone)?
        }
        .boxed()
    }
}

impl DestinationReader for FolderDestination {
    fn name(&self) -> &str {
        &self.name
    }

    fn uri(&self, object: &str) -> String {
        format!("file://{}", self.inner.path(object).display())
    }

    fn manifest(&self) -> BoxFuture<'_, Result<Option<VersionedManifest>, DestinationError>> {
        self.run(DestinationFolder::manifest)
    }

    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>> {
        let object = object.to_owned();
        self.run(move |folder| {
            let file = folder.open(&object)?;
            Ok(Box::new(file) as Box<dyn Read + Send>)
        })
    }
}

/// A folder and the beginning of names in it, for threads that may block.
#[derive(Clone, Debug)]
struct DestinationFolder {
    folder: Arc<Path>,
    /// The beginning of all names in the folder.
    prefix: Arc<str>,
    #[cfg(feature = "writer")]
    unfinished: Arc<PrivateFolder>,
}

impl DestinationFolder {
    fn path(&self, object: &str) -> PathBuf {
        self.folder.join(format!("{}{object}", self.prefix))
    }

    fn open(&self, object: &str) -> Result<File, DestinationError> {
        let path = self.path(object);
        open_regular(&self.folder, &format!("{}{object}", self.prefix)).map_err(failed("read", &path))
    }

    fn manifest(&self) -> Result<Option<VersionedManifest>, DestinationError> {
        let file = match self.open(MANIFEST_NAME) {
            Err(DestinationError::Missing { .. }) => return Ok(None),
            file => file?,
        };
        let (path, mut bytes) = (self.path(MANIFEST_NAME), Vec::new());
        file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed("read", &path))?;
        match bytes.len() as u64 > MANIFEST_BYTES_MAX {
            true => Err(large_manifest(path.display().to_string())),
            false => Ok(Some(VersionedManifest { tag: tag(&bytes), bytes })),
        }
    }
}

fn tag(manifest: &[u8]) -> ManifestTag {
    ManifestTag(hex(ring::digest::digest(&SHA256, manifest).as_ref()))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DestinationError {
    let at = path.display().to_string();
    move |error| match error.kind() {
        ErrorKind::NotFound if doing == "read" => DestinationError::Missing { at },
        // A name that leads to something else than a regular file of the archive.
        ErrorKind::InvalidInput => DestinationError::Refused { doing, at, reason: error.to_string() },
        ErrorKind::PermissionDenied | ErrorKind::NotADirectory | ErrorKind::ReadOnlyFilesystem => {
            let reason = format!("{error}; it must be a folder that this user may write to");
            DestinationError::Refused { doing, at, reason }
        }
        _ => DestinationError::Unavailable { doing, at, reason: error.to_string() },
    }
}
