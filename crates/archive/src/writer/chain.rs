//! The progress of an archive since its newest snapshot.

use std::time::{Duration, SystemTime};

use laredo_core::Lsn;
use tokio::time::Instant;

use crate::layout::ArtifactKind;
use crate::manifest::{Artifact, Manifest};
use crate::rebase::ChainProgress;

/// The sizes and times of the manifest's newest chain.
#[derive(Clone, Debug)]
pub(super) struct NewestChain {
    pub(super) head: Option<Lsn>,
    pub(super) epoch: u64,
    /// The time when the snapshot was written.
    base: Option<Instant>,
    /// The time when the newest artifact was written.
    newest: Instant,
    written: ChainProgress,
}

impl NewestChain {
    /// Returns the newest chain of a manifest. `wall` is the current time by the clock of the
    /// artifacts' times.
    pub(super) fn of(manifest: &Manifest, wall: SystemTime) -> NewestChain {
        let (now, chain) = (Instant::now(), manifest.chain());
        let written_at = |artifact: &Artifact| {
            let ago = artifact.written_at().and_then(|at| wall.duration_since(at).ok()).unwrap_or(Duration::ZERO);
            now.checked_sub(ago).unwrap_or(now)
        };
        let mut written = ChainProgress::default();
        for artifact in chain {
            match artifact.kind {
                ArtifactKind::Snapshot => {
                    (written.base_bytes, written.base_rows) = (bytes(artifact), artifact.row_count)
                }
                ArtifactKind::Diff => {
                    written.diff_bytes = written.diff_bytes.saturating_add(bytes(artifact));
                    written.churn_records = written.churn_records.saturating_add(artifact.change_count);
                    written.diffs += 1;
                }
            }
        }
        NewestChain {
            head: manifest.head_position,
            epoch: manifest.epoch,
            base: chain.first().map(written_at),
            newest: chain.last().map_or(now, written_at),
            written,
        }
    }

    /// Returns the chain after an artifact was written just now. Wall clocks may jump, so only
    /// artifacts from before this start are dated by one.
    pub(super) fn after(&self, manifest: &Manifest, kind: ArtifactKind) -> NewestChain {
        let now = Instant::now();
        let base = match kind {
            ArtifactKind::Snapshot => Some(now),
            ArtifactKind::Diff => self.base,
        };
        NewestChain { base, newest: now, ..NewestChain::of(manifest, SystemTime::UNIX_EPOCH) }
    }

    /// Returns the progress with `depth` keys in the buffer.
    pub(super) fn progress(&self, depth: u64) -> ChainProgress {
        let now = Instant::now();
        ChainProgress {
            since_base: self.base.map(|at| now.duration_since(at)),
            since_artifact: now.duration_since(self.newest),
            churn_records: self.written.churn_records.saturating_add(depth),
            has_changes: depth > 0,
            ..self.written
        }
    }
}

/// Returns the size in bytes of an artifact's largest object.
fn bytes(artifact: &Artifact) -> u64 {
    artifact.formats.values().map(|stored| stored.size_bytes).max().unwrap_or(0)
}
