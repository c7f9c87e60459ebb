//! The folder of a table that a retired source has left: it is locked, and its files are removed.
//! Only files that laredo writes there are removed, and no link is followed.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::error::{StoreError, io_error};
use super::folder::{ASIDE, LOCK, TEMPORARY, read_holder};
use super::journal_folder::{BASE, JOURNAL};
use super::{forks, manifest};

/// The contents that a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderKind {
    /// The journal of a table, and its newest base.
    Journal,
    /// The snapshots of a table.
    Snapshots,
}

/// The folder of a table that no server uses while this lives.
#[derive(Debug)]
pub struct RetiredFolder {
    path: PathBuf,
    /// The lock file. `None` if the folder has none, so that no server uses it.
    _lock: Option<File>,
    own: Vec<PathBuf>,
    own_bytes: u64,
    foreign: Vec<PathBuf>,
}

impl RetiredFolder {
    /// Locks an existing folder, and lists its files. `path` ends with the names of the schema and
    /// the table. Returns `None` if there is no folder. Changes nothing on disk.
    ///
    /// # Errors
    /// When a server uses the folder, when a link is in its place, or when it cannot be read.
    pub fn open(path: &Path, kind: FolderKind) -> Result<Option<RetiredFolder>, StoreError> {
        for folder in [path.parent(), Some(path)].into_iter().flatten() {
            if !is_folder(folder)? {
                return Ok(None);
            }
        }
        let lock = lock(path)?;
        let mut found =
            RetiredFolder { path: path.to_owned(), _lock: lock, own: Vec::new(), own_bytes: 0, foreign: Vec::new() };
        found.list(path, kind)?;
        let aside = path.join(ASIDE);
        // A link or a file of this name was listed as foreign.
        if found.own.contains(&aside) {
            found.list(&aside, kind)?;
        }
        // A folder comes after its files, and the lock after all others.
        found.own.sort_by_key(|path| (path.file_name() == Some(OsStr::new(LOCK)), std::cmp::Reverse(path.clone())));
        Ok(Some(found))
    }

    /// Returns the path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of laredo's files and folders in it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.own.len()
    }

    /// Returns the size of laredo's files in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.own_bytes
    }

    /// Returns the paths of other files, which are kept.
    #[must_use]
    pub fn foreign(&self) -> &[PathBuf] {
        &self.foreign
    }

    /// Removes laredo's files, and then the folder and that of its schema, as far as they are
    /// empty. Returns true if the folder is gone, and false if foreign files are left.
    ///
    /// # Errors
    /// At the first file that cannot be removed. Those before it are gone.
    pub fn remove(self) -> Result<bool, StoreError> {
        for path in &self.own {
            let is_aside = path.file_name() == Some(OsStr::new(ASIDE));
            let removed = if is_aside { remove_empty(path) } else { fs::remove_file(path).map(|()| true) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("removing", path)(error)),
                _ => {}
            }
        }
        let is_gone = remove_empty(&self.path).map_err(io_error("removing", &self.path))?;
        // The folder of the schema may have other tables.
        if let (true, Some(schema)) = (is_gone, self.path.parent()) {
            remove_empty(schema).map_err(io_error("removing", schema))?;
        }
        Ok(is_gone)
    }

    /// Adds the entries of a folder.
    fn list(&mut self, folder: &Path, kind: FolderKind) -> Result<(), StoreError> {
        let error = || io_error("listing", folder);
        for entry in fs::read_dir(folder).map_err(error())? {
            let entry = entry.map_err(error())?;
            let (path, name) = (entry.path(), entry.file_name());
            // The type and the size of a link are its own.
            let about = entry.metadata().map_err(io_error("reading", &path))?;
            let is_own = match name.to_str() {
                Some(ASIDE) if folder == self.path => about.is_dir(),
                Some(LOCK) if folder != self.path => false,
                Some(name) => about.is_file() && is_file_name(name, kind),
                None => false,
            };
            if is_own {
                self.own_bytes += if about.is_file() { about.len() } else { 0 };
                self.own.push(path);
            } else {
                self.foreign.push(path);
            }
        }
        self.foreign.sort();
        Ok(())
    }
}

/// Returns true for a folder, and false if there is nothing.
fn is_folder(path: &Path) -> Result<bool, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => Ok(true),
        Ok(_) => Err(io_error("opening", path)(io::Error::new(
            io::ErrorKind::NotADirectory,
            "a link or a file is in the place of a folder; laredo follows no link here, so remove it by hand",
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("reading", path)(error)),
    }
}

/// Locks a folder. Returns `None` if it has no lock file.
fn lock(folder: &Path) -> Result<Option<File>, StoreError> {
    let path = folder.join(LOCK);
    match fs::symlink_metadata(&path) {
        Ok(about) if about.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("reading", &path)(error)),
    }
    let mut lock = File::options().read(true).write(true).open(&path).map_err(io_error("opening", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::Locked { path: folder.to_owned(), holder: read_holder(&mut lock) })
        }
        Err(TryLockError::Error(error)) => Err(io_error("locking", &path)(error)),
    }
}

/// Removes a folder if it is empty. Returns false if it is not.
fn remove_empty(folder: &Path) -> io::Result<bool> {
    match fs::remove_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns true for the name of a file that laredo writes into such a folder.
fn is_file_name(name: &str, kind: FolderKind) -> bool {
    let is_number =
        |text: &str, digits: usize, radix: u32| text.len() == digits && text.chars().all(|c| c.is_digit(radix));
    if [LOCK, forks::NAME].contains(&name) || name.starts_with(TEMPORARY) {
        return true;
    }
    let Some((stem, extension)) = name.rsplit_once('.') else { return false };
    match kind {
        FolderKind::Journal => {
            name == manifest::NAME
                || (extension == JOURNAL && is_number(stem, 20, 10))
                || (extension == BASE && is_number(stem, 16, 16))
        }
        FolderKind::Snapshots => {
            let position = stem.split_once('.').map(|(position, _)| position);
            matches!(extension, "native" | "jsonl") && position.is_some_and(|position| is_number(position, 16, 16))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::LockedFolder;
    use super::*;

    const JOURNAL_FILES: [&str; 4] =
        ["manifest.json", "history.json", "00000000000000301234.journal", "0000000001A2B3C4.base"];

    fn folder_with(files: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let store = tempfile::tempdir().unwrap();
        let path = store.path().join("public/items");
        drop(LockedFolder::open(&path).unwrap());
        files.iter().for_each(|name| fs::write(path.join(name), "12345").unwrap());
        (store, path)
    }

    #[test]
    fn all_files_of_laredo_are_removed_with_the_folders_that_are_empty_then() {
        let (store, path) = folder_with(&JOURNAL_FILES);
        LockedFolder::open(&path).unwrap().set_aside().unwrap();
        JOURNAL_FILES.iter().for_each(|name| fs::write(path.join(name), "12345").unwrap());
        fs::write(path.join(".writing-abc"), "1").unwrap();
        let found = RetiredFolder::open(&path, FolderKind::Journal).unwrap().unwrap();
        // The lock has the name of this process.
        let lock_bytes = fs::metadata(path.join(LOCK)).unwrap().len();
        assert_eq!((found.foreign(), found.bytes()), ([].as_slice(), 7 * 5 + 1 + lock_bytes));
        assert!(found.remove().unwrap());
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0, "the folder of the schema is removed, too");
        assert!(RetiredFolder::open(&path, FolderKind::Journal).unwrap().is_none());
    }

    #[test]
    fn foreign_files_and_links_are_kept_and_named() {
        let foreign = ["notes.txt", "1.journal", "00000000000000301234.journal.gz", "0000000001A2B3C4.9f-1.native"];
        let (store, path) = folder_with(&[&JOURNAL_FILES[..], &foreign[..]].concat());
        let elsewhere = store.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join(JOURNAL_FILES[2]), "12345").unwrap();
        std::os::unix::fs::symlink(&elsewhere, path.join(ASIDE)).unwrap();
        std::os::unix::fs::symlink(elsewhere.join(JOURNAL_FILES[2]), path.join("0000000001A2B3C5.base")).unwrap();
        let found = RetiredFolder::open(&path, FolderKind::Journal).unwrap().unwrap();
        let mut kept: Vec<PathBuf> = foreign.iter().map(|name| path.join(name)).collect();
        kept.extend([path.join(ASIDE), path.join("0000000001A2B3C5.base")]);
        kept.sort();
        assert_eq!((found.foreign(), found.count()), (kept.as_slice(), JOURNAL_FILES.len() + 1));
        assert!(!found.remove().unwrap());
        let mut left: Vec<PathBuf> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        assert_eq!(left, kept);
        assert!(elsewhere.join(JOURNAL_FILES[2]).exists(), "no link was followed");
    }

    #[test]
    fn a_folder_of_snapshots_has_files_of_both_formats() {
        let (_store, path) =
            folder_with(&["0000000001A2B3C4.9f-1.native", "0000000001A2B3C5.9f-2.jsonl", "9f-2.jsonl"]);
        let found = RetiredFolder::open(&path, FolderKind::Snapshots).unwrap().unwrap();
        assert_eq!((found.foreign(), found.count()), ([path.join("9f-2.jsonl")].as_slice(), 3));
    }

    #[test]
    fn a_folder_that_a_server_uses_and_a_link_to_a_folder_are_refused() {
        let (store, path) = folder_with(&JOURNAL_FILES);
        let server = LockedFolder::open(&path).unwrap();
        let refused = RetiredFolder::open(&path, FolderKind::Journal).unwrap_err();
        assert!(matches!(&refused, StoreError::Locked { holder, .. } if holder.contains("process")), "{refused}");
        drop(server);
        let link = store.path().join("other/items");
        fs::create_dir(store.path().join("other")).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let refused = RetiredFolder::open(&link, FolderKind::Journal).unwrap_err();
        assert!(refused.to_string().contains("a link or a file is in the place of a folder"), "{refused}");
        let linked_schema = store.path().join("linked");
        std::os::unix::fs::symlink(store.path().join("public"), &linked_schema).unwrap();
        assert!(RetiredFolder::open(&linked_schema.join("items"), FolderKind::Journal).is_err());
    }
}
