//! A folder that only one server uses, and in which files appear completely or not at all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::error::{StoreError, io_error};
use crate::descriptors::with_reserve;
use crate::durable::{FsyncProof, sync};

/// A folder that no other server can use while this lives.
#[derive(Debug)]
pub(crate) struct LockedFolder {
    path: PathBuf,
    /// The lock file. The lock ends with the process at the latest.
    _lock: File,
}

pub(super) const TEMPORARY: &str = ".writing-";
pub(super) const ASIDE: &str = "set-aside";
pub(super) const LOCK: &str = "lock";
/// The maximum number of bytes that are read from a lock file.
const HOLDER_BYTES_MAX: u64 = 200;

impl LockedFolder {
    /// Opens and locks a folder, and creates it if it is missing. Removes the files that an earlier
    /// run did not finish.
    ///
    /// # Errors
    /// When another server uses the folder, or when it cannot be written to.
    pub(crate) fn open(path: &Path) -> Result<LockedFolder, StoreError> {
        make_private(path).map_err(io_error("making the folder", path))?;
        warn_if_open_to_others(path);
        let lock_path = path.join(LOCK);
        let lock = private_file().create(true).truncate(false).read(true).write(true).open(&lock_path);
        let mut lock = lock.map_err(io_error("opening", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => note_holder(&mut lock),
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path: path.to_owned(), holder: read_holder(&mut lock) });
            }
            Err(TryLockError::Error(error)) => return Err(io_error("locking", &lock_path)(error)),
        }
        let folder = LockedFolder { path: path.to_owned(), _lock: lock };
        folder.remove(|name| name.starts_with(TEMPORARY))?;
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a file that gets its name later.
    ///
    /// # Errors
    /// When no file can be created in the folder.
    pub(crate) fn temporary(&self) -> io::Result<tempfile::NamedTempFile> {
        with_reserve(|| tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.path))
    }

    /// Syncs a written file and gives it its name, so that it appears completely or not at all.
    ///
    /// # Errors
    /// When the file cannot be synced, or the folder cannot be written.
    pub(crate) fn persist_file(
        &self,
        file: tempfile::NamedTempFile,
        name: &str,
    ) -> Result<(File, FsyncProof), StoreError> {
        let path = self.path.join(name);
        sync(file.as_file()).map_err(io_error("syncing", &path))?;
        let file = file.persist(&path).map_err(|error| io_error("naming", &path)(error.error))?;
        let synced = self.sync_names()?;
        Ok((file, synced))
    }

    /// Syncs the folder, so that added and removed names are on disk.
    pub(crate) fn sync_names(&self) -> Result<FsyncProof, StoreError> {
        let folder = with_reserve(|| File::open(&self.path)).and_then(|folder| sync(&folder));
        folder.map_err(io_error("syncing the folder", &self.path))
    }

    /// Returns the files with an extension, ordered by name. A name begins with a number, so this
    /// is the order of the contents.
    pub(crate) fn files(&self, extension: &str) -> Result<Vec<PathBuf>, StoreError> {
        let mut found = self.list()?;
        found.retain(|path| path.extension().is_some_and(|found| found == extension));
        found.sort();
        Ok(found)
    }

    /// Removes the files for whose names `unwanted` returns true.
    pub(crate) fn remove(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let names = self.list()?;
        for path in names.iter().filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(&unwanted)) {
            fs::remove_file(path).map_err(io_error("removing", path))?;
        }
        Ok(())
    }

    /// Moves all files into a subfolder, and removes what was set aside there before. One set of
    /// files is enough to inspect, and more would fill the disk.
    pub(crate) fn set_aside(&self) -> Result<PathBuf, StoreError> {
        let aside = self.path.join(ASIDE);
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("removing", &aside)(error)),
            _ => {}
        }
        make_private(&aside).map_err(io_error("making the folder", &aside))?;
        for path in self.list()? {
            let name = path.file_name().unwrap_or_default();
            if name != LOCK && name != ASIDE && name != super::forks::NAME {
                fs::rename(&path, aside.join(name)).map_err(io_error("putting aside", &path))?;
            }
        }
        self.sync_names()?;
        Ok(aside)
    }

    /// Returns the paths of all files and folders in the folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn list(&self) -> Result<Vec<PathBuf>, StoreError> {
        let entries = with_reserve(|| fs::read_dir(&self.path)).map_err(io_error("listing", &self.path))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        paths.collect::<io::Result<_>>().map_err(io_error("listing", &self.path))
    }
}

/// Returns options for files that only their owner may read, because they have the rows of a table.
pub(crate) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Makes a folder that only its owner may enter, and its parents. An existing one stays as it is.
fn make_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Logs that other users may enter an existing folder. Files of an earlier version may be readable
/// there.
fn warn_if_open_to_others(folder: &Path) {
    let mode = fs::metadata(folder).map_or(0, |found| found.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(
            event = "folder_open_to_others",
            folder = %folder.display(),
            mode = format!("{:o}", mode & 0o777),
            "other users may enter a folder with the rows of a table; run chmod -R go-rwx on it"
        );
    }
}

/// Writes the name of this process into the lock file. Only operators read it, so a full disk does
/// not matter.
fn note_holder(lock: &mut File) {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let holder = format!("process {} on {}\n", std::process::id(), host.trim());
    let _ = lock.set_len(0).and_then(|()| lock.write_all(holder.as_bytes()));
}

/// Returns the process that is named in the lock file.
pub(super) fn read_holder(lock: &mut File) -> String {
    let mut holder = String::new();
    // An older version writes no name. Bytes that are not text are ignored.
    let _ = lock.take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
    match holder.lines().next() {
        Some(line) if !line.is_empty() => line.to_owned(),
        _ => "an unknown process".to_owned(),
    }
}
