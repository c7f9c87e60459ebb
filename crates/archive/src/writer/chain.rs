//! How far an archive is since its newest base.

use std::time::{Duration, SystemTime};

use laredo_core::Lsn;
use tokio::time::Instant;

use crate::manifest::{Artifact, Kind, Manifest};
use crate::rebase::Progress;

/// What the manifest says of the newest chain.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) head: Option<Lsn>,
    pub(super) epoch: u64,
    /// When the base was written.
    base: Option<Instant>,
    /// When the newest artifact was.
    newest: Instant,
    written: Progress,
}

impl Chain {
    /// `wall` is the time now, by the clock that the artifacts' times are of.
    pub(super) fn of(manifest: &Manifest, wall: SystemTime) -> Chain {
        let (now, chain) = (Instant::now(), manifest.chain());
        let written_at = |artifact: &Artifact| {
            let ago = artifact.written_at().and_then(|at| wall.duration_since(at).ok()).unwrap_or(Duration::ZERO);
            now.checked_sub(ago).unwrap_or(now)
        };
        let mut written = Progress::default();
        for artifact in chain {
            match artifact.kind {
                Kind::Snapshot => (written.base_bytes, written.base_rows) = (bytes(artifact), artifact.row_count),
                Kind::Diff => {
                    written.diff_bytes += bytes(artifact);
                    written.churn_records += artifact.change_count;
                    written.diffs += 1;
                }
            }
        }
        Chain {
            head: manifest.head_position,
            epoch: manifest.epoch,
            base: chain.first().map(written_at),
            newest: chain.last().map_or(now, written_at),
            written,
        }
    }

    /// The chain after an artifact was written just now. Clocks on the wall may jump; only what was written before this start is dated by
    /// one.
    pub(super) fn after(&self, manifest: &Manifest, kind: Kind) -> Chain {
        let now = Instant::now();
        let base = match kind {
            Kind::Snapshot => Some(now),
            Kind::Diff => self.base,
        };
        Chain { base, newest: now, ..Chain::of(manifest, SystemTime::UNIX_EPOCH) }
    }

    /// With so many keys in the buffer.
    pub(super) fn progress(&self, depth: u64) -> Progress {
        let now = Instant::now();
        Progress {
            since_base: self.base.map(|at| now.duration_since(at)),
            since_artifact: now.duration_since(self.newest),
            churn_records: self.written.churn_records + depth,
            has_changes: depth > 0,
            ..self.written
        }
    }
}

/// Of its largest object.
fn bytes(artifact: &Artifact) -> u64 {
    artifact.formats.values().map(|stored| stored.size_bytes).max().unwrap_or(0)
}
