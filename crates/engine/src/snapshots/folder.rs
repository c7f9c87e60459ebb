//! The folder of a table's snapshots, and the list of those in it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laredo_core::{Lsn, TableName};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::open::{self, OpenSnapshot, format_of};
use super::{
    RecoveredSnapshot, SnapshotError, SnapshotFormat, SnapshotInfo, SnapshotOptions, SnapshotStatus, retention,
};
use crate::base::{Base, BaseError};
use crate::clock::Clock;
use crate::descriptors::with_reserve;
use crate::durable::{DurablePosition, FsyncProof, sync};
use crate::recovery::rows_of;
use crate::source::Fork;
use crate::source::SourceIdentity;
use crate::store::{ForkLog, JournalManifest, LockedFolder, StoreError, io_error};

/// The snapshots of a table, which can be written, listed, read and removed. No other server can
/// use their folder while this lives.
pub struct SnapshotFolder {
    pub(super) folder: LockedFolder,
    pub(super) options: SnapshotOptions,
    /// The folder for temporary files.
    pub(super) temporary: PathBuf,
    pub(super) table: TableName,
    pub(super) source: Mutex<SourceIdentity>,
    /// The forks of the database's history that were noted in this folder.
    pub(super) forks: Mutex<ForkLog>,
    pub(super) clock: Clock,
    /// The known snapshots, newest first. All belong to this table and to its source's history.
    pub(super) known: Mutex<Vec<SnapshotInfo>>,
    /// The lock for changes of the folder's contents.
    pub(super) changing: Arc<tokio::sync::Mutex<()>>,
    pub(super) status: watch::Sender<SnapshotStatus>,
}

impl std::fmt::Debug for SnapshotFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl SnapshotFolder {
    /// Opens the folder, creates it if it is missing, and lists its snapshots. An unusable file is
    /// logged and left in place.
    ///
    /// # Errors
    /// When another server uses the folder, or when it cannot be read or written.
    pub(crate) fn open(
        options: SnapshotOptions,
        temporary: PathBuf,
        table: TableName,
        source: SourceIdentity,
        clock: Clock,
    ) -> Result<SnapshotFolder, StoreError> {
        let folder = LockedFolder::open(&options.folder)?;
        let (known, changing, status) = (Mutex::default(), Arc::default(), watch::Sender::default());
        let (forks, source) = (Mutex::new(ForkLog::read(&folder)?), Mutex::new(source));
        let snapshots =
            SnapshotFolder { folder, options, temporary, table, source, forks, clock, known, changing, status };
        let mut found = Vec::new();
        for path in snapshots.folder.list()? {
            let Some(format) = format_of(&path) else { continue };
            match snapshots.admit(&path, format).and_then(|opened| Ok(opened.info(&path, size_of_file(&path)?))) {
                Ok(info) => found.push(info),
                Err(error) => snapshots.tell_of_damage(&error.into()),
            }
        }
        newest_first(&mut found);
        // A snapshot of the same entries at a later position has replaced this one. The server
        // ended before it removed this one.
        let twice = |info: &SnapshotInfo| {
            found.iter().find(|first| first.id == info.id).is_some_and(|first| first.path != info.path)
        };
        let (gone, found): (Vec<_>, Vec<_>) = found.iter().cloned().partition(twice);
        gone.iter().try_for_each(|info| remove_file(&info.path))?;
        *snapshots.known.lock() = found;
        Ok(snapshots)
    }

    /// Returns all known snapshots, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<SnapshotInfo> {
        self.known.lock().clone()
    }

    /// Returns the newest snapshot.
    #[must_use]
    pub fn newest(&self) -> Option<SnapshotInfo> {
        self.known.lock().first().cloned()
    }

    /// Returns the status of writing snapshots.
    #[must_use]
    pub fn status(&self) -> SnapshotStatus {
        self.status.borrow().clone()
    }

    /// Returns the rows of a snapshot.
    pub(super) fn base(&self, id: &str) -> Result<Arc<Base>, SnapshotError> {
        self.read_listed(id, |info| self.open_base(info).map(Arc::new))
    }

    /// Reads a whole snapshot to verify it.
    pub(super) fn read_whole(&self, id: &str) -> Result<SnapshotInfo, SnapshotError> {
        self.read_listed(id, |info| {
            let base = self.open_base(info)?;
            count_rows(&base, info).map(|()| info.clone())
        })
    }

    /// Returns a snapshot with all its rows.
    pub(super) fn recover_now(&self, id: &str) -> Result<RecoveredSnapshot, SnapshotError> {
        self.read_listed(id, |info| self.load(info))
    }

    /// Returns the newest valid snapshot with all its rows. Logs newer ones that are invalid or
    /// cannot be read, and no longer lists them.
    pub(crate) fn recover_newest(&self) -> Option<RecoveredSnapshot> {
        loop {
            let info = self.newest()?;
            let recovered = self.load(&info).and_then(|recovered| Ok((self.sync_file(&info.path)?, recovered)));
            match recovered {
                Ok((synced, recovered)) => {
                    let durable = DurablePosition::kept(&synced, info.position);
                    self.status.send_modify(|status| status.durable = durable);
                    return Some(recovered);
                }
                Err(error) => self.distrust(&info, &error),
            }
        }
    }

    /// Removes a snapshot that is not the newest.
    pub(super) fn remove(&self, id: &str) -> Result<(), SnapshotError> {
        let info = self.find(id)?;
        if self.newest().is_some_and(|newest| newest.id == info.id) {
            return Err(SnapshotError::Newest(info.id));
        }
        self.forget(&info.id);
        Ok(remove_file(&info.path)?)
    }

    /// Removes the snapshots beyond a number or an age. Returns their number.
    pub(super) fn remove_beyond(
        &self,
        keep_count: u32,
        age_max: Option<std::time::Duration>,
    ) -> Result<usize, SnapshotError> {
        let beyond = retention::snapshots_beyond(&self.known.lock(), keep_count, age_max, self.clock.as_ref()());
        for info in &beyond {
            self.forget(&info.id);
            remove_file(&info.path)?;
        }
        Ok(beyond.len())
    }

    fn find(&self, id: &str) -> Result<SnapshotInfo, SnapshotError> {
        let found = self.known.lock().iter().find(|info| info.id == id).cloned();
        found.ok_or_else(|| SnapshotError::Unknown(id.to_owned()))
    }

    fn forget(&self, id: &str) {
        self.known.lock().retain(|info| info.id != id);
    }

    /// Opens a file of an earlier run. Files of this run are not checked: they may be ahead of the
    /// end of the WAL that the source reported at the start.
    fn admit(&self, path: &Path, format: SnapshotFormat) -> Result<OpenSnapshot, StoreError> {
        let opened = open::open(path, format)?;
        let manifest = &opened.about.manifest;
        if manifest.table() != self.table {
            let (path, found) = (path.to_owned(), Box::new(manifest.table()));
            return Err(StoreError::Table { path, found, wanted: Box::new(self.table.clone()) });
        }
        let past = self.check_history(manifest, opened.position());
        past.map_err(|why| StoreError::History { path: path.to_owned(), why })?;
        Ok(opened)
    }

    /// Checks that a snapshot is part of the database's history. If it is not, notes the fork.
    fn check_history(&self, manifest: &JournalManifest, position: Lsn) -> Result<(), String> {
        self.forks.lock().check(manifest.forks(), position)?;
        let source = self.source.lock().clone();
        manifest.is_past_of(&source, position).inspect_err(|why| {
            let fork = Fork { common: source.left_at(manifest.timeline()), abandoned: position, is_certain: true };
            let is_noted = self.forks.lock().abandoned() >= position;
            let is_fork = manifest.is_of_database(&source) && !is_noted;
            if is_fork && let Err(error) = self.note_fork(&fork, why) {
                tracing::error!(table = %self.table, %error, "the fork of the database's history cannot be noted");
            }
        })
    }

    /// Notes a fork of the database's history. Snapshots of the other history are no longer used.
    ///
    /// # Errors
    /// When the fork cannot be noted.
    pub(crate) fn note_fork(&self, fork: &Fork, reason: &str) -> Result<(), StoreError> {
        ForkLog::note(&self.folder, fork, reason)?;
        *self.forks.lock() = ForkLog::read(&self.folder)?;
        if fork.is_certain {
            self.known.lock().retain(|info| info.position <= fork.common);
            let durable = DurablePosition::default();
            self.status.send_modify(|status| status.durable = durable);
        }
        Ok(())
    }

    /// Sets the identity of the source after the database's timeline has changed.
    pub(crate) fn identify(&self, source: SourceIdentity) {
        *self.source.lock() = source;
    }

    /// Returns the highest position that may belong to a history that the database has abandoned.
    pub(crate) fn abandoned(&self) -> Lsn {
        self.forks.lock().abandoned()
    }

    fn open_base(&self, info: &SnapshotInfo) -> Result<Base, SnapshotError> {
        open::open(&info.path, info.format)?.into_base(&info.path, &self.temporary)
    }

    fn load(&self, info: &SnapshotInfo) -> Result<RecoveredSnapshot, SnapshotError> {
        let opened = open::open(&info.path, info.format)?;
        let is_of_same_server = opened.about.manifest.is_of_server(&self.source.lock());
        let definition = opened.definition.clone();
        let unchanged_since = opened.about.unchanged_since().unwrap_or(info.position);
        let base = opened.into_base(&info.path, &self.temporary)?;
        let rows = rows_of(&base, &VecDeque::new(), &info.path)?;
        Ok(RecoveredSnapshot { info: info.clone(), rows, definition, unchanged_since, is_of_same_server })
    }

    fn sync_file(&self, path: &Path) -> Result<FsyncProof, StoreError> {
        with_reserve(|| File::open(path)).and_then(|file| sync(&file)).map_err(io_error("syncing", path))?;
        self.folder.sync_names()
    }

    /// Reads a snapshot with `read`. If its file turns out to be damaged, the snapshot is no longer
    /// listed.
    fn read_listed<T>(
        &self,
        id: &str,
        read: impl FnOnce(&SnapshotInfo) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        let info = self.find(id)?;
        let looked = read(&info);
        if let Err(error) = &looked {
            // It may have been removed in the meantime, as old ones are.
            self.find(id)?;
            if error.is_damage() {
                self.distrust(&info, error);
            }
        }
        looked
    }

    fn distrust(&self, info: &SnapshotInfo, error: &SnapshotError) {
        self.forget(&info.id);
        self.tell_of_damage(error);
    }

    fn tell_of_damage(&self, error: &SnapshotError) {
        self.status.send_modify(|status| status.errors += 1);
        tracing::error!(table = %self.table, %error, "a snapshot is of no use, and left out");
    }
}

/// Reads all rows, and checks that their number is right.
fn count_rows(base: &Base, info: &SnapshotInfo) -> Result<(), SnapshotError> {
    let mut rows = 0;
    base.for_each_row::<BaseError>(|_| {
        rows += 1;
        Ok(())
    })?;
    if rows != info.rows {
        return Err(
            StoreError::damaged(&info.path, 0, format!("it has {rows} rows and says it has {}", info.rows)).into()
        );
    }
    Ok(())
}

/// Sorts snapshots by position, which orders everything that one source has written.
pub(super) fn newest_first(known: &mut [SnapshotInfo]) {
    known.sort_by_key(|info| std::cmp::Reverse((info.position, info.taken_at)));
}

fn size_of_file(path: &Path) -> Result<u64, StoreError> {
    fs::metadata(path).map(|found| found.len()).map_err(io_error("reading", path))
}

pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("removing", path)(error)),
        _ => Ok(()),
    }
}

impl From<std::io::Error> for SnapshotError {
    fn from(error: std::io::Error) -> SnapshotError {
        SnapshotError::Base(BaseError::Io(error))
    }
}
