//! An archive in a folder.

#[cfg(feature = "writer")]
mod write;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use ring::digest::SHA256;

use super::{DestinationError, DestinationReader, ManifestTag, VersionedManifest, hex};
use crate::layout::MANIFEST_NAME;

/// An archive in a folder of a local or mounted file system.
#[derive(Clone, Debug)]
pub struct FolderDestination {
    folder: Arc<Path>,
    /// The beginning of all names in the folder.
    prefix: Arc<str>,
    name: Arc<str>,
}

impl FolderDestination {
    /// Creates a destination in this folder. The folder is created by the first write.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> FolderDestination {
        FolderDestination::with_prefix(folder, "")
    }

    /// Creates a destination in this folder, with names that begin with `prefix`. The part of
    /// `prefix` up to its last `/` is a subfolder.
    #[must_use]
    pub fn with_prefix(folder: impl Into<PathBuf>, prefix: &str) -> FolderDestination {
        let (folders, prefix) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let folder: PathBuf = folder.into().join(folders);
        // The addresses in a manifest must be valid from every working directory.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        let name = folder.join(prefix).display().to_string();
        FolderDestination { folder: folder.into(), prefix: prefix.into(), name: name.into() }
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DestinationFolder) -> Result<T, DestinationError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, DestinationError>> {
        let folder = DestinationFolder { folder: self.folder.clone(), prefix: self.prefix.clone() };
        let name = self.name.clone();
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
        format!("file://{}", self.folder.join(format!("{}{object}", self.prefix)).display())
    }

    fn manifest(&self) -> BoxFuture<'_, Result<Option<VersionedManifest>, DestinationError>> {
        self.run(DestinationFolder::manifest)
    }

    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>> {
        let object = object.to_owned();
        self.run(move |folder| {
            let path = folder.path(&object);
            let file = File::open(&path).map_err(failed("read", &path))?;
            Ok(Box::new(file) as Box<dyn Read + Send>)
        })
    }
}

/// A folder and the beginning of names in it, for threads that may block.
struct DestinationFolder {
    folder: Arc<Path>,
    prefix: Arc<str>,
}

impl DestinationFolder {
    fn path(&self, object: &str) -> PathBuf {
        self.folder.join(format!("{}{object}", self.prefix))
    }

    fn manifest(&self) -> Result<Option<VersionedManifest>, DestinationError> {
        let path = self.path(MANIFEST_NAME);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(VersionedManifest { tag: tag(&bytes), bytes })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
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
        ErrorKind::PermissionDenied | ErrorKind::NotADirectory | ErrorKind::ReadOnlyFilesystem => {
            let reason = format!("{error}; it must be a folder that this user may write to");
            DestinationError::Refused { doing, at, reason }
        }
        _ => DestinationError::Unavailable { doing, at, reason: error.to_string() },
    }
}
