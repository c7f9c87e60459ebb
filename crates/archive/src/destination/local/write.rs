//! The writing of an archive in a folder.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use futures::future::BoxFuture;
use laredo_values::hex;
use ring::digest::{Context, SHA256};

use super::{DestinationFolder, FolderDestination, failed, regular_file, tag};
use crate::destination::staging::archive_file_in;
use crate::destination::{ArtifactStager, Destination, DestinationError, ListedObject, ManifestTag, StagedArtifact};
use crate::layout::MANIFEST_NAME;

/// The subfolder for everything but the manifest and artifacts: the lock, and files without their
/// final name.
pub(super) const WORK: &str = ".writing";
const LOCK: &str = "lock";

impl Destination for FolderDestination {
    fn put<'a>(&'a self, object: &'a str, staged: &'a StagedArtifact) -> BoxFuture<'a, Result<(), DestinationError>> {
        let (object, source, sha256, size) =
            (object.to_owned(), staged.path().to_owned(), staged.sha256.clone(), staged.size_bytes);
        self.run(move |folder| put(folder, &object, &source, size, &sha256))
    }

    fn publish<'a>(
        &'a self,
        manifest: &'a [u8],
        over: Option<&'a ManifestTag>,
    ) -> BoxFuture<'a, Result<ManifestTag, DestinationError>> {
        let (manifest, over) = (manifest.to_vec(), over.cloned());
        self.run(move |folder| publish(folder, &manifest, over.as_ref()))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedObject>, DestinationError>> {
        self.run(list)
    }

    fn delete<'a>(&'a self, objects: &'a [String]) -> BoxFuture<'a, Result<(), DestinationError>> {
        let objects = objects.to_owned();
        self.run(move |folder| objects.iter().try_for_each(|object| delete(folder, object)))
    }

    fn stager(&self) -> Option<ArtifactStager> {
        Some(ArtifactStager::for_archive(self.inner.unfinished.clone()))
    }
}

fn put(to: &DestinationFolder, object: &str, source: &Path, size: u64, sha256: &str) -> Result<(), DestinationError> {
    let path = to.path(object);
    let parent = path.parent().unwrap_or(&to.folder);
    make_folder(to, parent)?;
    File::open(source).and_then(|file| file.sync_all()).map_err(failed("read", source))?;
    // A file that is staged here becomes this archive's object. A file that is staged elsewhere
    // is copied: archives on one disk must not share a file, because damage to it would affect
    // both.
    let linked = match source.starts_with(to.folder.join(WORK)) {
        true => match fs::hard_link(source, &path) {
            Err(error) if lacks_links(&error) => copy(to, source, &path),
            linked => linked,
        },
        false => copy(to, source, &path),
    };
    match linked {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if summed(to.open(object)?).map_err(failed("read", &path))? != (size, sha256.to_owned()) {
                return Err(DestinationError::Occupied { at: path.display().to_string() });
            }
        }
        linked => linked.map_err(failed("write", &path))?,
    }
    sync_folder(parent)
}

/// Copies a file. The copy has its name only once it is complete.
fn copy(to: &DestinationFolder, source: &Path, path: &Path) -> io::Result<()> {
    let mut file = temporary(to)?;
    io::copy(&mut File::open(source)?, file.as_file_mut())?;
    file.as_file().sync_all()?;
    match fs::hard_link(file.path(), path) {
        Err(error) if lacks_links(&error) => rename(to, file, path),
        linked => linked,
    }
}

/// Gives a file its name on a file system without hard links. A rename would replace an
/// existing file, so the lock keeps other writers out between the check and the rename.
fn rename(to: &DestinationFolder, file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    let _lock = lock(to)?;
    if path.try_exists()? {
        return Err(ErrorKind::AlreadyExists.into());
    }
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Takes the writers' lock, which is held until the returned file is dropped.
fn lock(to: &DestinationFolder) -> io::Result<File> {
    to.unfinished.make_parent()?;
    let path = to.folder.join(WORK).join(format!("{}{LOCK}", to.prefix));
    let mut options = File::options();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600).custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0));
    }
    let lock = options.open(path)?;
    lock.lock()?;
    Ok(lock)
}

fn temporary(to: &DestinationFolder) -> io::Result<tempfile::NamedTempFile> {
    archive_file_in(&to.unfinished.path()?)
}

fn publish(
    to: &DestinationFolder,
    manifest: &[u8],
    over: Option<&ManifestTag>,
) -> Result<ManifestTag, DestinationError> {
    let path = to.path(MANIFEST_NAME);
    // The lock keeps other writers out between the comparison and the replacement.
    let _lock = lock(to).map_err(failed("lock", &to.folder.join(WORK)))?;
    let there = to.manifest()?;
    if there.as_ref().map(|there| &there.tag) != over {
        return match there {
            // An earlier call took effect before it failed.
            Some(there) if there.bytes == manifest => sync_folder(&to.folder).map(|()| there.tag),
            _ => Err(DestinationError::Moved { at: path.display().to_string() }),
        };
    }
    let replace = || -> io::Result<()> {
        let mut file = temporary(to)?;
        file.write_all(manifest)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(())
    };
    replace().map_err(failed("write", &path))?;
    sync_folder(&to.folder)?;
    Ok(tag(manifest))
}

fn list(to: &DestinationFolder) -> Result<Vec<ListedObject>, DestinationError> {
    let mut found = Vec::new();
    for epoch in entries(&to.folder)? {
        let name = epoch.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_prefix(&*to.prefix).filter(|name| name.starts_with("epoch=")) else { continue };
        // The objects in another folder are not those of the archive, and would be deleted.
        if epoch.file_type().is_ok_and(|kind| kind.is_symlink()) {
            return Err(failed("list", &epoch.path())(linked()));
        }
        for object in entries(&epoch.path())? {
            let about = object.metadata().map_err(failed("read", &object.path()))?;
            let modified = about.modified().map_err(failed("read", &object.path()))?;
            let object = format!("{name}/{}", object.file_name().to_string_lossy());
            found.push(ListedObject { object, size_bytes: about.len(), modified });
        }
    }
    Ok(found)
}

fn delete(to: &DestinationFolder, object: &str) -> Result<(), DestinationError> {
    let deleted = regular_file::delete(&to.folder, &format!("{}{object}", to.prefix));
    deleted.map_err(failed("delete", &to.path(object)))
}

/// Returns true if an error may mean that the file system lacks hard links. Such file systems (FAT,
/// CIFS, many with FUSE) return different errors.
fn lacks_links(error: &io::Error) -> bool {
    // EPERM is a PermissionDenied error, like EACCES. If the name really cannot be written, the
    // next call fails, too.
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied | ErrorKind::TooManyLinks)
        || error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error())
}

/// Makes the folder of an epoch.
fn make_folder(to: &DestinationFolder, folder: &Path) -> Result<(), DestinationError> {
    fs::create_dir_all(folder).map_err(failed("create", folder))?;
    let is_linked = fs::symlink_metadata(folder).is_ok_and(|found| found.is_symlink());
    match is_linked && *folder != *to.folder {
        true => Err(failed("write to", folder)(linked())),
        false => Ok(()),
    }
}

fn linked() -> io::Error {
    let problem = "it is a link, and links inside of an archive are not followed; replace it with the folder itself";
    io::Error::new(ErrorKind::InvalidInput, problem)
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

fn summed(mut file: File) -> io::Result<(u64, String)> {
    let (mut sum, mut size) = (Context::new(&SHA256), 0);
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
