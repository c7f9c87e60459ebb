use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use laredo_core::{Lsn, Sequence};
use tokio::sync::watch;

use super::error::{StoreError, io_error};
use crate::durable::{Durable, Synced, sync};

/// A table's folder, which nobody else may use as long as this lives.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// Held for its lock, which ends with the process at the latest.
    _lock: File,
    /// A new journal file is begun at this size.
    pub(super) file_bytes: u64,
    status: watch::Sender<StoreStatus>,
}

/// How far a store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// The position that a restart would go on from: every commit up to here is on disk.
    pub durable: Durable,
    /// The last entry of those.
    pub sequence: Sequence,
    /// Times that an fsync was waited for since the start.
    pub syncs: u64,
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
    /// Why nothing is kept any more.
    pub failed: Option<String>,
}

pub(super) const JOURNAL: &str = "journal";
pub(super) const BASE: &str = "base";
const TEMPORARY: &str = ".writing-";
const ASIDE: &str = "set-aside";
const LOCK: &str = "lock";

/// A journal is in about so many files: forgetting frees the disk in steps, and each takes a descriptor.
const FILES: u64 = 16;
const FILE_BYTES_MIN: u64 = 4 << 20;
const FILE_BYTES_MAX: u64 = 256 << 20;

impl Store {
    /// Takes a folder, which is made if there is none, for a journal of so many bytes.
    ///
    /// # Errors
    /// When another server has it, or when it cannot be written to.
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Store, StoreError> {
        fs::create_dir_all(path).map_err(io_error("making the folder", path))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(io_error("opening", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io_error("locking", &lock_path)(error)),
        }
        let file_bytes = (bytes_max / FILES).clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        let store = Store { path: path.to_owned(), _lock: lock, file_bytes, status: watch::Sender::default() };
        store.remove(|name| name.starts_with(TEMPORARY))?;
        Ok(store)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How far it is.
    pub(crate) fn status(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut StoreStatus)) {
        self.status.send_modify(change);
    }

    /// Says how far the files reach; only an fsync gives what it takes to say it.
    pub(super) fn reached(&self, synced: &Synced, sequence: Sequence, position: Lsn) {
        self.tell(|status| (status.durable, status.sequence) = (Durable::kept(synced, position), sequence));
    }

    /// Blocks until an entry is on disk; `false` if it never will be.
    pub(crate) fn wait_for(&self, sequence: Sequence) -> bool {
        let mut status = self.status.subscribe();
        let waited = tokio::runtime::Handle::current()
            .block_on(status.wait_for(|status| status.sequence >= sequence || status.failed.is_some()));
        waited.is_ok_and(|status| status.failed.is_none())
    }

    /// Where a new file is written before it gets its name.
    ///
    /// # Errors
    /// When no file can be made there.
    pub(crate) fn temporary(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.path)
    }

    /// Gives a file that was written and synced its name, so that it is there whole or not at all.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn put(&self, file: tempfile::NamedTempFile, name: &str) -> Result<(File, Synced), StoreError> {
        let path = self.path.join(name);
        sync(file.as_file()).map_err(io_error("syncing", &path))?;
        let file = file.persist(&path).map_err(|error| io_error("naming", &path)(error.error))?;
        let synced = self.sync_names()?;
        Ok((file, synced))
    }

    /// Makes names that came or went last.
    pub(super) fn sync_names(&self) -> Result<Synced, StoreError> {
        let folder = File::open(&self.path).and_then(|folder| sync(&folder));
        folder.map_err(io_error("syncing the folder", &self.path))
    }

    /// The files with an extension, by name; a file's name begins with a number, so that their order is that of their contents.
    pub(super) fn files(&self, extension: &str) -> Result<Vec<PathBuf>, StoreError> {
        let mut found = self.list()?;
        found.retain(|path| path.extension().is_some_and(|found| found == extension));
        found.sort();
        Ok(found)
    }

    /// The name of the base at a position.
    pub(crate) fn base_name(position: Lsn) -> String {
        format!("{:016X}.{BASE}", position.0)
    }

    /// Removes all bases but the one of this name.
    pub(crate) fn keep_base(&self, name: &str) -> Result<(), StoreError> {
        self.remove(|found| found.ends_with(&format!(".{BASE}")) && found != name)
    }

    /// Removes the journal's files.
    pub(super) fn remove_journal(&self) -> Result<(), StoreError> {
        self.remove(|name| name.ends_with(&format!(".{JOURNAL}")))
    }

    fn remove(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let names = self.list()?;
        for path in names.iter().filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(&unwanted)) {
            fs::remove_file(path).map_err(io_error("removing", path))?;
        }
        Ok(())
    }

    /// Puts everything aside, in place of what was put aside before: one is enough to look at, and more would fill the disk.
    pub(super) fn set_aside(&self) -> Result<PathBuf, StoreError> {
        let aside = self.path.join(ASIDE);
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("removing", &aside)(error)),
            _ => {}
        }
        fs::create_dir(&aside).map_err(io_error("making the folder", &aside))?;
        for path in self.list()? {
            let name = path.file_name().unwrap_or_default();
            if name != LOCK && name != ASIDE {
                fs::rename(&path, aside.join(name)).map_err(io_error("putting aside", &path))?;
            }
        }
        self.sync_names()?;
        Ok(aside)
    }

    fn list(&self) -> Result<Vec<PathBuf>, StoreError> {
        let entries = fs::read_dir(&self.path).map_err(io_error("listing", &self.path))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        paths.collect::<io::Result<_>>().map_err(io_error("listing", &self.path))
    }
}
