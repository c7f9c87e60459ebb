//! The folder of a table's snapshots: they are written, listed, read and removed here.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufWriter, IntoInnerError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use laredo_core::{CommitTime, Lsn, TableName};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::Span;

use super::description::SnapshotDescription;
use super::open::{self, OpenSnapshot, format_of};
use super::{
    RecoveredSnapshot, SnapshotError, SnapshotFormat, SnapshotInfo, SnapshotOptions, SnapshotStatus, blocking, jsonl,
    native, retention,
};
use crate::base::{self, Base, BaseError, BaseWriter};
use crate::clock::Clock;
use crate::descriptors::with_reserve;
use crate::durable::{DurablePosition, FsyncProof, sync};
use crate::journal::{BaseMergeInput, Journal};
use crate::recovery::rows_of;
use crate::source::{Fork, SourceServer};
use crate::store::{ForkLog, JournalManifest, LockedFolder, StoreError, io_error};

/// The number of bytes written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// The snapshots of a table, which can be written, listed, read and removed. No other server can
/// use their folder while this lives.
pub struct SnapshotFolder {
    folder: LockedFolder,
    options: SnapshotOptions,
    /// The folder for temporary files.
    temporary: PathBuf,
    table: TableName,
    source: Mutex<SourceServer>,
    /// The forks of the database's history that were noted in this folder.
    forks: Mutex<ForkLog>,
    clock: Clock,
    /// The known snapshots, newest first. All belong to this table and to its source's history.
    known: Mutex<Vec<SnapshotInfo>>,
    /// The lock for changes of the folder's contents.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// The bases of snapshots that are being read, by ID. Reading a snapshot of JSON makes a
    /// temporary copy of the table, which all its readers share. The lock is held while a snapshot
    /// is opened, so that one copy is made at a time.
    opened: Arc<tokio::sync::Mutex<OpenBases>>,
    status: watch::Sender<SnapshotStatus>,
    /// The span in which the folder was opened: lines of the log have its source.
    span: Span,
}

type OpenBases = HashMap<String, Weak<Base>>;

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
        source: SourceServer,
        clock: Clock,
    ) -> Result<SnapshotFolder, StoreError> {
        let folder = LockedFolder::open(&options.folder)?;
        let (known, changing, status) = (Mutex::default(), Arc::default(), watch::Sender::default());
        let (forks, source) = (Mutex::new(ForkLog::read(&folder)?), Mutex::new(source));
        let (opened, span) = (Arc::default(), Span::current());
        let snapshots = SnapshotFolder {
            folder,
            options,
            temporary,
            table,
            source,
            forks,
            clock,
            known,
            changing,
            opened,
            status,
            span,
        };
        let mut found = Vec::new();
        for path in snapshots.folder.list()? {
            let Some(format) = format_of(&path) else { continue };
            match snapshots.admit(&path, format).and_then(|opened| Ok(opened.info(&path, size_of_file(&path)?))) {
                Ok(info) => found.push(info),
                Err(error) => snapshots.report_damage(&error.into()),
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

    /// Removes the snapshots whose rows have passed other filters and transforms than those of this
    /// description. They may have values that the present ones hide.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(crate) fn remove_other_rows(&self, pipeline: &str) -> Result<(), StoreError> {
        for info in self.list() {
            let is_other = match open::open(&info.path, info.format) {
                Ok(opened) => opened.definition.pipeline != pipeline,
                Err(error) => {
                    self.distrust(&info, &error.into());
                    continue;
                }
            };
            if is_other {
                tracing::warn!(
                    event = "snapshot_outdated",
                    table = %self.table, id = info.id,
                    "the filters or transforms have changed: a snapshot with other rows is removed"
                );
                self.forget(&info.id);
                remove_file(&info.path)?;
            }
        }
        Ok(())
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

    /// Returns the rows of a snapshot. Its present readers share them.
    fn base(&self, id: &str, opened: &mut OpenBases) -> Result<Arc<Base>, SnapshotError> {
        self.read_listed(id, |info| {
            opened.retain(|_, base| base.strong_count() > 0);
            if let Some(base) = opened.get(&info.id).and_then(Weak::upgrade) {
                return Ok(base);
            }
            let base = Arc::new(self.open_base(info)?);
            opened.insert(info.id.clone(), Arc::downgrade(&base));
            Ok(base)
        })
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
    pub(super) fn remove_beyond(&self, keep_count: u32, age_max: Option<Duration>) -> Result<usize, SnapshotError> {
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
            let fork = Fork {
                common: source.identity.left_at(manifest.timeline()).unwrap_or_default(),
                abandoned: position,
                is_certain: true,
            };
            let is_noted = self.forks.lock().abandoned() >= position;
            let is_fork = manifest.is_of_database(&source) && !is_noted;
            if is_fork && let Err(error) = self.note_fork(&fork, why) {
                tracing::error!(
                    event = "fork_not_noted", table = %self.table, %error,
                    "the fork of the database's history cannot be noted"
                );
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

    /// Sets the server of the source after the database's timeline has changed.
    pub(crate) fn identify(&self, source: SourceServer) {
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
        self.report_damage(error);
    }

    fn report_damage(&self, error: &SnapshotError) {
        self.status.send_modify(|status| status.errors += 1);
        tracing::error!(
            event = "snapshot_unusable", table = %self.table, %error,
            "a snapshot is unusable and is ignored"
        );
    }

    /// Writes a snapshot of everything that is visible in the table's journal. If the newest
    /// snapshot has all of that and the same metadata, that one is returned.
    ///
    /// `user_meta` is stored with it. Without it, the metadata of an earlier snapshot of the same
    /// entries is used.
    ///
    /// # Errors
    /// When the snapshot cannot be written. Other snapshots are not affected.
    pub async fn take_snapshot(
        self: &Arc<Self>,
        journal: Journal,
        user_meta: Option<serde_json::Value>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        self.change_folder(move |snapshots| snapshots.write_requested(&journal, user_meta)).await
    }

    /// Returns the rows of a snapshot, to be read frame by frame. They are verified when they are
    /// read.
    ///
    /// # Errors
    /// When there is no such snapshot, or it cannot be read, or is damaged.
    pub async fn fetch(self: &Arc<Self>, id: String) -> Result<Arc<Base>, SnapshotError> {
        // A call that has begun is completed even if the caller is dropped, so the lock goes along.
        let (snapshots, mut opened) = (self.clone(), self.opened.clone().lock_owned().await);
        blocking(self.span.clone(), move || snapshots.base(&id, &mut opened)).await
    }

    /// Reads a whole snapshot to verify it, and returns its properties.
    ///
    /// # Errors
    /// When there is no such snapshot, or it cannot be read, or is damaged.
    pub async fn verify(self: &Arc<Self>, id: String) -> Result<SnapshotInfo, SnapshotError> {
        let snapshots = self.clone();
        blocking(self.span.clone(), move || snapshots.read_whole(&id)).await
    }

    /// Returns a snapshot with all its rows, verified.
    pub(crate) async fn recover(self: &Arc<Self>, id: String) -> Result<RecoveredSnapshot, SnapshotError> {
        let snapshots = self.clone();
        blocking(self.span.clone(), move || snapshots.recover_now(&id)).await
    }

    /// Removes a snapshot. The newest one cannot be removed, because a restart resumes from it.
    ///
    /// # Errors
    /// When there is no such snapshot, when it is the newest, or when its file cannot be removed.
    pub async fn delete(self: &Arc<Self>, id: String) -> Result<(), SnapshotError> {
        self.change_folder(move |snapshots| snapshots.remove(&id)).await
    }

    /// Removes all snapshots except the newest `keep`, but never the newest one. Returns the number
    /// of removed snapshots.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub async fn prune(self: &Arc<Self>, keep: u32) -> Result<usize, SnapshotError> {
        self.change_folder(move |snapshots| snapshots.remove_beyond(keep, None)).await
    }

    /// Changes the contents of the folder, one change at a time. A change that has begun is
    /// completed even if the caller is dropped.
    pub(super) async fn change_folder<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&SnapshotFolder) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let (snapshots, changing) = (self.clone(), self.changing.clone().lock_owned().await);
        blocking(self.span.clone(), move || {
            let _changing = changing;
            work(&snapshots)
        })
        .await
    }

    /// Returns a receiver that is notified of every change of the status.
    pub(crate) fn watch(&self) -> watch::Receiver<SnapshotStatus> {
        self.status.subscribe()
    }

    /// Writes a snapshot, unless the newest one has the same entries and position.
    pub(super) fn write_if_moved(&self, journal: &Journal) -> Result<(), SnapshotError> {
        if self.newest_at_head(journal).is_some() { Ok(()) } else { self.write(journal, None).map(drop) }
    }

    /// Writes a snapshot on request, unless the newest one would be the same. Requests in a loop
    /// must not write an unchanged table again and again.
    pub(super) fn write_requested(
        &self,
        journal: &Journal,
        user_meta: Option<serde_json::Value>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let is_same = |newest: &SnapshotInfo| user_meta.is_none() || user_meta == newest.user_meta;
        match self.newest_at_head(journal).filter(|newest| is_same(newest) && newest.path.is_file()) {
            Some(newest) => Ok(newest),
            None => self.write(journal, user_meta),
        }
    }

    /// Returns the newest snapshot if it has the entries and the position of the journal's head.
    fn newest_at_head(&self, journal: &Journal) -> Option<SnapshotInfo> {
        let head = journal.head();
        let id = journal.instance().snapshot_id(head.sequence);
        // A journal whose history was abandoned has no use for a snapshot of it.
        if journal.is_parted() {
            return None;
        }
        self.newest().filter(|newest| newest.id == id && newest.position == head.position)
    }

    /// Writes a snapshot of everything that is visible.
    pub(super) fn write(
        &self,
        journal: &Journal,
        user_meta: Option<serde_json::Value>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let began_at = Instant::now();
        let written = self.write_now(journal, user_meta);
        match &written {
            Ok(info) => self.report_written(info, began_at.elapsed()),
            Err(SnapshotError::Forked) => {}
            Err(error) => self.failed(error),
        }
        written
    }

    fn report_written(&self, info: &SnapshotInfo, took: Duration) {
        // The write itself has notified the watchers.
        self.status.send_if_modified(|status| {
            status.write_times.observe(took);
            false
        });
        tracing::info!(
            event = "snapshot_written",
            table = %self.table, id = info.id, position = %info.position, rows = info.rows, bytes = info.size_bytes,
            "snapshot written"
        );
    }

    /// Notes the reason why a snapshot could not be written.
    pub(super) fn failed(&self, error: &SnapshotError) {
        self.status.send_modify(|status| {
            status.errors += 1;
            status.error = Some(error.to_string());
        });
    }

    fn write_now(
        &self,
        journal: &Journal,
        user_meta: Option<serde_json::Value>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        // The order matters: a fork that is noted later is detected after the file was written.
        let forks = self.forks.lock().count();
        if journal.is_parted() {
            return Err(SnapshotError::Forked);
        }
        let merging = journal.base_and_after();
        let unchanged_since = merging.unchanged_since();
        let BaseMergeInput { base, after, head, definition, .. } = merging;
        let base = match after.is_empty() {
            true => base,
            false => {
                let writer = BaseWriter::new(&self.temporary)?;
                Arc::new(base::merge(&base, &after, head, &self.temporary, writer)?)
            }
        };
        let id = journal.instance().snapshot_id(head.sequence);
        let earlier = self.known.lock().iter().find(|info| info.id == id).cloned();
        let user_meta = user_meta.or_else(|| earlier.as_ref()?.user_meta.clone());
        let taken_at = self.clock.as_ref()();
        let manifest = JournalManifest::new(journal.instance(), &self.table, &self.source.lock(), forks);
        let about = SnapshotDescription::new(manifest, taken_at, unchanged_since, user_meta.clone());
        let format = self.options.format;
        let name = format!("{:016X}.{id}.{}", head.position.0, format.name());
        let path = self.folder.path().join(&name);
        let file = self.folder.temporary().map_err(io_error("creating a file next to", &path))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        match format {
            SnapshotFormat::Native => native::write(&base, head, &about, &definition, &mut out)?,
            SnapshotFormat::Jsonl => jsonl::write(&base, head, &about, &definition, &mut out)?,
        }
        let file = out.into_inner().map_err(IntoInnerError::into_error)?;
        let size_bytes = file.as_file().metadata()?.len();
        let (_, synced) = self.folder.persist_file(file, &name)?;
        let info = SnapshotInfo {
            id,
            sequence: head.sequence,
            position: head.position,
            committed_at: head.committed_at,
            mark: head.mark,
            taken_at,
            rows: base.rows(),
            size_bytes,
            format,
            user_meta,
            path,
        };
        {
            let (now, mut known) = (self.forks.lock(), self.known.lock());
            if now.count() != forks {
                return Err(SnapshotError::Forked);
            }
            drop(now);
            known.retain(|other| other.id != info.id);
            known.push(info.clone());
            newest_first(&mut known);
        }
        self.status.send_modify(|status| {
            status.durable = DurablePosition::kept(&synced, head.position);
            status.writes += 1;
            status.error = None;
        });
        // The new snapshot is valid even if old ones cannot be removed.
        if let Err(error) = self.make_room(earlier.as_ref().filter(|earlier| earlier.path != info.path)) {
            self.status.send_modify(|status| status.errors += 1);
            tracing::warn!(
                event = "snapshot_not_removed", table = %self.table, %error,
                "an old snapshot cannot be removed"
            );
        }
        Ok(info)
    }

    fn make_room(&self, replaced: Option<&SnapshotInfo>) -> Result<(), SnapshotError> {
        replaced.map_or(Ok(()), |replaced| remove_file(&replaced.path))?;
        self.remove_beyond(self.options.keep_count, self.options.age_max).map(drop)
    }

    /// Returns the rest of the interval since the newest snapshot; zero if there is none.
    pub(super) fn first_wait(&self) -> Duration {
        let now = self.clock.as_ref()();
        let age = self.newest().map(|newest| age(newest.taken_at, now));
        age.map_or(Duration::ZERO, |age| self.options.interval.saturating_sub(age))
    }

    pub(super) fn announce(&self, wait: Duration) {
        let wait_us = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
        let at = CommitTime(self.clock.as_ref()().0.saturating_add(wait_us));
        self.status.send_modify(|status| status.next_at = Some(at));
    }

    /// Returns the name of the table.
    pub(super) fn table(&self) -> &TableName {
        &self.table
    }

    /// Returns the interval between snapshots.
    pub(super) fn interval(&self) -> Duration {
        self.options.interval
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
        return Err(StoreError::damaged(&info.path, 0, format!("it has {rows} rows, and states {}", info.rows)).into());
    }
    Ok(())
}

/// Sorts snapshots by position, which orders everything that one source has written.
fn newest_first(known: &mut [SnapshotInfo]) {
    known.sort_by_key(|info| std::cmp::Reverse((info.position, info.taken_at)));
}

fn size_of_file(path: &Path) -> Result<u64, StoreError> {
    fs::metadata(path).map(|found| found.len()).map_err(io_error("reading", path))
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
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

/// Returns the age of a snapshot; zero if the clock was set back.
fn age(taken_at: CommitTime, now: CommitTime) -> Duration {
    Duration::from_micros(u64::try_from(now.0.saturating_sub(taken_at.0)).unwrap_or(0))
}
