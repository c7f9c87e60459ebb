//! An archive in a folder.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use ring::digest::{Context, SHA256};

use super::staging::{hex, temporary_in};
use super::{Destination, DestinationError, ListedObject, ManifestTag, StagedArtifact, VersionedManifest};
use crate::layout::MANIFEST;

/// The subfolder for everything but the manifest and artifacts: the lock, and files without their
/// final name.
const WORK: &str = ".writing";
const LOCK: &str = "lock";

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

    /// Returns a folder on the same file system. Artifacts that are staged there need not be
    /// copied.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.folder.join(WORK)
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DestinationFolder) -> Result<T, DestinationError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, DestinationError>> {
        let (folder, name) = (DestinationFolder(self.folder.clone(), self.prefix.clone()), self.name.clone());
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

impl Destination for FolderDestination {
    fn name(&self) -> &str {
        &self.name
    }

    fn uri(&self, object: &str) -> String {
        format!("file://{}", self.folder.join(format!("{}{object}", self.prefix)).display())
    }

    fn put<'a>(&'a self, object: &'a str, staged: &'a StagedArtifact) -> BoxFuture<'a, Result<(), DestinationError>> {
        let (object, source, sha256, size) =
            (object.to_owned(), staged.path().to_owned(), staged.sha256.clone(), staged.size_bytes);
        self.run(move |folder| folder.put(&object, &source, size, &sha256))
    }

    fn manifest(&self) -> BoxFuture<'_, Result<Option<VersionedManifest>, DestinationError>> {
        self.run(DestinationFolder::manifest)
    }

    fn publish<'a>(
        &'a self,
        manifest: &'a [u8],
        over: Option<&'a ManifestTag>,
    ) -> BoxFuture<'a, Result<ManifestTag, DestinationError>> {
        let (manifest, over) = (manifest.to_vec(), over.cloned());
        self.run(move |folder| folder.publish(&manifest, over.as_ref()))
    }

    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>> {
        let object = object.to_owned();
        self.run(move |folder| {
            let path = folder.path(&object);
            let file = File::open(&path).map_err(failed("read", &path))?;
            Ok(Box::new(file) as Box<dyn Read + Send>)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedObject>, DestinationError>> {
        self.run(DestinationFolder::list)
    }

    fn delete<'a>(&'a self, objects: &'a [String]) -> BoxFuture<'a, Result<(), DestinationError>> {
        let objects = objects.to_owned();
        self.run(move |folder| objects.iter().try_for_each(|object| folder.delete(object)))
    }
}

/// The folder, and the beginning of names in it, for threads that may block.
struct DestinationFolder(Arc<Path>, Arc<str>);

impl DestinationFolder {
    fn path(&self, object: &str) -> PathBuf {
        self.0.join(format!("{}{object}", self.1))
    }

    fn put(&self, object: &str, source: &Path, size: u64, sha256: &str) -> Result<(), DestinationError> {
        let path = self.path(object);
        let parent = path.parent().unwrap_or(&self.0);
        make_folder(parent)?;
        File::open(source).and_then(|file| file.sync_all()).map_err(failed("read", source))?;
        // A file that is staged here becomes this archive's object. A file that is staged elsewhere
        // is copied: archives on one disk must not share a file, because damage to it would affect
        // both.
        let linked = match source.starts_with(self.0.join(WORK)) {
            true => match fs::hard_link(source, &path) {
                Err(error) if lacks_links(&error) => self.copy(source, &path),
                linked => linked,
            },
            false => self.copy(source, &path),
        };
        match linked {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if summed(&path).map_err(failed("read", &path))? != (size, sha256.to_owned()) {
                    return Err(DestinationError::Occupied { at: path.display().to_string() });
                }
            }
            linked => linked.map_err(failed("write", &path))?,
        }
        sync_folder(parent)
    }

    /// Copies a file. The copy has its name only once it is complete.
    fn copy(&self, source: &Path, path: &Path) -> io::Result<()> {
        let mut file = self.temporary()?;
        io::copy(&mut File::open(source)?, file.as_file_mut())?;
        file.as_file().sync_all()?;
        match fs::hard_link(file.path(), path) {
            Err(error) if lacks_links(&error) => self.rename(file, path),
            linked => linked,
        }
    }

    /// Gives a file its name on a file system without hard links. A rename would replace an
    /// existing file, so the lock keeps other writers out between the check and the rename.
    fn rename(&self, file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
        let _lock = self.lock()?;
        if path.try_exists()? {
            return Err(ErrorKind::AlreadyExists.into());
        }
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Takes the writers' lock, which is held until the returned file is dropped.
    fn lock(&self) -> io::Result<File> {
        let work = self.0.join(WORK);
        fs::create_dir_all(&work)?;
        let path = work.join(format!("{}{LOCK}", self.1));
        let lock = File::options().create(true).truncate(false).write(true).open(path)?;
        lock.lock()?;
        Ok(lock)
    }

    fn temporary(&self) -> io::Result<tempfile::NamedTempFile> {
        let work = self.0.join(WORK);
        fs::create_dir_all(&work)?;
        temporary_in(&work)
    }

    fn manifest(&self) -> Result<Option<VersionedManifest>, DestinationError> {
        let path = self.path(MANIFEST);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(VersionedManifest { tag: tag(&bytes), bytes })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    fn publish(&self, manifest: &[u8], over: Option<&ManifestTag>) -> Result<ManifestTag, DestinationError> {
        let path = self.path(MANIFEST);
        // The lock keeps other writers out between the comparison and the replacement.
        let _lock = self.lock().map_err(failed("lock", &self.0.join(WORK)))?;
        let there = self.manifest()?;
        if there.as_ref().map(|there| &there.tag) != over {
            return match there {
                // An earlier call took effect before it failed.
                Some(there) if there.bytes == manifest => sync_folder(&self.0).map(|()| there.tag),
                _ => Err(DestinationError::Moved { at: path.display().to_string() }),
            };
        }
        let replace = || -> io::Result<()> {
            let mut file = self.temporary()?;
            file.write_all(manifest)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        replace().map_err(failed("write", &path))?;
        sync_folder(&self.0)?;
        Ok(tag(manifest))
    }

    fn list(&self) -> Result<Vec<ListedObject>, DestinationError> {
        let mut found = Vec::new();
        for epoch in entries(&self.0)? {
            let name = epoch.file_name().to_string_lossy().into_owned();
            let Some(name) = name.strip_prefix(&*self.1).filter(|name| name.starts_with("epoch=")) else { continue };
            for object in entries(&epoch.path())? {
                let about = object.metadata().map_err(failed("read", &object.path()))?;
                let modified = about.modified().map_err(failed("read", &object.path()))?;
                let object = format!("{name}/{}", object.file_name().to_string_lossy());
                found.push(ListedObject { object, size_bytes: about.len(), modified });
            }
        }
        Ok(found)
    }

    fn delete(&self, object: &str) -> Result<(), DestinationError> {
        let path = self.path(object);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("delete", &path)(error)),
            _ => {}
        }
        // The folder is removed with its last object; a folder that is not empty stays.
        let _ = path.parent().map(fs::remove_dir);
        Ok(())
    }
}

/// Returns true if an error may mean that the file system lacks hard links. Such file systems (FAT,
/// CIFS, many with FUSE) return different errors.
fn lacks_links(error: &io::Error) -> bool {
    // EPERM is a PermissionDenied error, like EACCES. If the name really cannot be written, the
    // next call fails, too.
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied | ErrorKind::TooManyLinks)
        || error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error())
}

fn make_folder(folder: &Path) -> Result<(), DestinationError> {
    fs::create_dir_all(folder).map_err(failed("make", folder))
}

fn sync_folder(folder: &Path) -> Result<(), DestinationError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(failed("sync", folder))
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>, DestinationError> {
    match fs::read_dir(folder).and_then(Iterator::collect) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(failed("list", folder)),
    }
}

fn tag(manifest: &[u8]) -> ManifestTag {
    ManifestTag(hex(ring::digest::digest(&SHA256, manifest).as_ref()))
}

fn summed(path: &Path) -> io::Result<(u64, String)> {
    let (mut file, mut sum, mut size) = (File::open(path)?, Context::new(&SHA256), 0);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((size, hex(sum.finish().as_ref()))),
            read => {
                sum.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
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
