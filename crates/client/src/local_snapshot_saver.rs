//! Saves the local snapshot: at intervals in the background, and when the replica stops.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use laredo_core::{IndexSpec, Lsn, TableState};
use tracing::Span;

use crate::local_snapshot::{LocalSnapshotFile, LocalSnapshotRows, ResumableTable};

/// A clock for the time of day.
pub(crate) type WallClock = Box<dyn Fn() -> SystemTime + Send>;

/// Keeps the local snapshot up to date.
pub(crate) struct LocalSnapshotSaver {
    file: Arc<LocalSnapshotFile>,
    interval: Duration,
    /// True if a loaded snapshot is shown before a server has confirmed it.
    pub(crate) serves: bool,
    wall: WallClock,
    /// The position of the table in the file, or of the one that is being written.
    position: Lsn,
    saved_at: Instant,
    saving: Option<JoinHandle<()>>,
}

impl LocalSnapshotSaver {
    pub(crate) fn new(
        file: LocalSnapshotFile,
        interval: Duration,
        serves: bool,
        wall: WallClock,
        now: Instant,
    ) -> LocalSnapshotSaver {
        LocalSnapshotSaver {
            file: Arc::new(file),
            interval,
            serves,
            wall,
            position: Lsn::ZERO,
            saved_at: now,
            saving: None,
        }
    }

    /// Loads the saved table.
    pub(crate) fn load(&mut self, indexes: &[IndexSpec]) -> Option<ResumableTable<TableState>> {
        let saved = self.file.load(indexes)?;
        self.position = saved.resume.position;
        Some(saved)
    }

    /// Returns the time since the saved table was all that the database had, or `None` if that is
    /// not known.
    pub(crate) fn age(&self, saved: &ResumableTable<TableState>) -> Option<Duration> {
        // If the clock was set back, the age is zero.
        saved.at_head.map(|at| (self.wall)().duration_since(at).unwrap_or_default())
    }

    /// Returns the time of day `age` ago.
    pub(crate) fn ago(&self, age: Duration) -> Option<SystemTime> {
        (self.wall)().checked_sub(age)
    }

    /// Returns true if a table at this position must be saved now.
    pub(crate) fn is_due(&self, position: Lsn, now: Instant) -> bool {
        let is_idle = self.saving.as_ref().is_none_or(JoinHandle::is_finished);
        is_idle && position != self.position && now.saturating_duration_since(self.saved_at) >= self.interval
    }

    /// Returns true if the file does not have the table at this position.
    pub(crate) fn lacks(&self, position: Lsn) -> bool {
        position != self.position
    }

    /// Saves on a separate thread, because it takes as long as the disk does.
    pub(crate) fn save(&mut self, state: ResumableTable<LocalSnapshotRows>, now: Instant) {
        (self.position, self.saved_at) = (state.resume.position, now);
        self.finish();
        let (file, span) = (self.file.clone(), Span::current());
        let save = move || match file.save(&state) {
            Ok(()) => {
                let (position, rows) = (state.resume.position, state.table.rows.len());
                tracing::debug!(event = "local_snapshot_saved", %position, rows, "local snapshot saved");
            }
            Err(error) => tracing::error!(
                event = "local_snapshot_not_saved", %error, ?file,
                "cannot save the local snapshot; the older file is kept"
            ),
        };
        match std::thread::Builder::new().name("laredo-save".to_owned()).spawn(move || span.in_scope(save)) {
            Ok(saving) => self.saving = Some(saving),
            Err(error) => {
                tracing::error!(
                    event = "local_snapshot_not_saved", %error,
                    "cannot spawn the thread that saves the local snapshot; the older file is kept"
                )
            }
        }
    }

    /// Waits until the running save is finished.
    pub(crate) fn finish(&mut self) {
        if let Some(saving) = self.saving.take()
            && saving.join().is_err()
        {
            tracing::error!(
                event = "local_snapshot_not_saved",
                "the thread that saves the local snapshot panicked; the older file is kept"
            );
        }
    }
}
