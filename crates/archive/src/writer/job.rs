//! The writing of one artifact while further changes are collected.

use std::sync::Arc;

use laredo_core::{Checksum, Lsn, SourceIdentity, TableState};
use laredo_values::ArchivedChecksums;
use tokio::time::Instant;

use super::buffered_state::RowsVersion;
use super::ledger::{LedgerRetryPolicy, ManifestLedger, PutError};
use super::report::WriterReport;
use super::status::WrittenArtifact;
use super::{WriterContext, WriterError, next_epoch};
use crate::encode::{self, EncodedArtifact};
use crate::events::ArtifactEvent;
use crate::format::FormatError;
use crate::layout::{ArtifactKind, MANIFEST_NAME};
use crate::manifest::{Artifact, ArtifactObject, Manifest};
use crate::net_changes::NetChangeSet;
use crate::writer::ArtifactPlan;

/// The state to write: `net` leads to it from `before`.
pub(crate) struct ArtifactJob {
    pub(crate) before: Arc<TableState>,
    pub(crate) net: Arc<NetChangeSet>,
    /// The position of `before`.
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    /// The checksum of the rows at `to`.
    pub(crate) checksum: Checksum,
    /// The checksum that the manifest has for `before`, if that is archived.
    pub(crate) archived: Checksum,
    pub(crate) source: Option<SourceIdentity>,
    /// The version of the rows at `to`.
    pub(crate) version: RowsVersion,
    /// The newest position up to which the history of the archive's head and that of the rows are
    /// known to be the same.
    pub(crate) shared_until: Lsn,
    pub(crate) plan: ArtifactPlan,
}

/// The result of a job. The ledger is returned in every case.
pub(crate) struct ArtifactJobEnd {
    pub(crate) ledger: ManifestLedger,
    pub(crate) result: Result<WrittenArtifact, ArtifactJobError>,
}

/// The reason why a job did not write its artifact.
#[derive(Debug)]
pub(crate) enum ArtifactJobError {
    /// Other objects have the same names. A later epoch has other names.
    Occupied { epoch: u64 },
    /// The writer has to end.
    Writer(WriterError),
}

impl From<WriterError> for ArtifactJobError {
    fn from(error: WriterError) -> ArtifactJobError {
        ArtifactJobError::Writer(error)
    }
}

impl ArtifactJob {
    pub(crate) async fn run(
        self,
        mut ledger: ManifestLedger,
        tools: Arc<WriterContext>,
        report: WriterReport,
    ) -> ArtifactJobEnd {
        let began_at = Instant::now();
        let result = self.write(&mut ledger, &tools, &report).await;
        if let Ok(written) = &result {
            report.wrote_artifact(written.kind, began_at.elapsed());
        }
        ArtifactJobEnd { ledger, result }
    }

    async fn write(
        self,
        ledger: &mut ManifestLedger,
        tools: &Arc<WriterContext>,
        report: &WriterReport,
    ) -> Result<WrittenArtifact, ArtifactJobError> {
        let job = Arc::new(self);
        let (kind, encoded) = encode_with_retries(&job, tools, report).await?;
        report.hex_cells(&encoded.hex);
        let created_at = tools.now();
        let (epoch, from) = match (kind, &job.plan) {
            (ArtifactKind::Snapshot, ArtifactPlan::Base { epoch_least, .. }) => (*epoch_least, None),
            (ArtifactKind::Snapshot, ArtifactPlan::Diff { .. }) => (next_epoch(ledger.manifest().epoch)?, None),
            (ArtifactKind::Diff, _) => (ledger.manifest().epoch, Some(job.from)),
        };
        let mut artifact = Artifact::new(kind, epoch, from, job.to, &created_at);
        match kind {
            ArtifactKind::Snapshot => artifact.row_count = encoded.count,
            ArtifactKind::Diff => artifact.change_count = encoded.count,
        }
        artifact.checksum = Some(encoded.checksum);
        artifact.mark = job.version.mark.filter(|mark| mark.commit.end <= job.to);
        if kind == ArtifactKind::Snapshot {
            let history = ledger.manifest().next_history(epoch, job.to, job.shared_until, job.source.clone());
            artifact.history = Some(Box::new(history));
        }
        let Some(first) = ledger.first().cloned() else { return Err(WriterError::NoDestination.into()) };
        for staged in &encoded.objects {
            let stored = ArtifactObject {
                uri: String::new(),
                size_bytes: staged.size_bytes,
                sha256: Some(staged.sha256.clone()),
                unpacked_bytes: Some(staged.unpacked_bytes),
            };
            artifact.formats.insert(staged.format.id().to_owned(), stored);
        }
        match ledger.put_artifact(&artifact, &encoded.objects, tools, report).await {
            Ok(()) => {}
            Err(PutError::Occupied) => return Err(ArtifactJobError::Occupied { epoch }),
            Err(PutError::Writer(error)) => return Err(error.into()),
        }
        let mut next = next_manifest(ledger.manifest(), artifact, &job)?;
        if let (ArtifactKind::Snapshot, Some(keep)) = (kind, tools.options.keep_epochs) {
            next = ledger.drop_old_epochs(next, keep, report).await;
        }
        let next = ledger.seal(next, tools, report).await?;
        let next = next.located(|object| first.uri(object));
        ledger.advance(next, tools, report).await?;
        ledger.follow(LedgerRetryPolicy::Once, tools, report).await?;
        publish_event(ledger.manifest(), first.uri(MANIFEST_NAME), tools);
        Ok(WrittenArtifact {
            kind,
            epoch,
            from_position: from,
            to_position: job.to,
            count: encoded.count,
            bytes: encoded.bytes(),
            checksum: encoded.checksum,
            created_at,
        })
    }
}

/// Returns the manifest with a new artifact.
fn next_manifest(manifest: &Manifest, artifact: Artifact, job: &ArtifactJob) -> Result<Manifest, WriterError> {
    let next = match artifact.kind {
        ArtifactKind::Snapshot => manifest.with_snapshot(artifact, job.before.schema()),
        ArtifactKind::Diff => manifest.with_diff(artifact),
    };
    let next = next.map_err(WriterError::Broken)?;
    let definition = job.version.definition;
    let definition = definition.is_known().then_some(definition);
    Ok(Manifest { source: job.source.clone(), definition, ..next })
}

/// Encodes on a separate thread. I/O errors are retried.
async fn encode_with_retries(
    job: &Arc<ArtifactJob>,
    tools: &Arc<WriterContext>,
    report: &WriterReport,
) -> Result<(ArtifactKind, EncodedArtifact), WriterError> {
    let mut backoff = tools.backoff();
    loop {
        let (job, at_work) = (job.clone(), tools.clone());
        let encoded = tokio::task::spawn_blocking(move || encode_artifact(&job, &at_work));
        match encoded.await {
            Ok(Ok(encoded)) => return Ok(encoded),
            Ok(Err(FormatError::Io(error))) => report.retried(&format!("cannot write in {}: {error}", tools.stager)),
            Ok(Err(error)) => return Err(WriterError::Encode(error.to_string())),
            Err(error) => return Err(WriterError::Encode(error.to_string())),
        }
        tokio::time::sleep(backoff.after_failure()).await;
    }
}

fn encode_artifact(job: &ArtifactJob, tools: &WriterContext) -> Result<(ArtifactKind, EncodedArtifact), FormatError> {
    let (before, net, options) = (&*job.before, &*job.net, &tools.options);
    let sums = ArchivedChecksums::new(before.schema().clone());
    // The running checksum is of bytes, so it applies only to rows that are read back byte for
    // byte.
    let known = sums.are_of_bytes().then_some(job.checksum);
    if let ArtifactPlan::Diff { bytes_left } = job.plan {
        let mut diff = encode::diff(&tools.stager, &options.diff_formats, before, net)?;
        diff.checksum = known.map_or_else(|| net.archived_checksum(before, &sums, job.archived), Ok)?;
        if bytes_left.is_none_or(|left| diff.bytes() < left) {
            return Ok((ArtifactKind::Diff, diff));
        }
        tracing::info!(
            event = "diff_too_large", table = %options.table, bytes = diff.bytes(),
            "the diff is so large that a new base is written"
        );
    }
    let mut base = encode::base(&tools.stager, &options.snapshot_formats, before, net)?;
    base.checksum = known.map_or_else(|| encode::checksum(net.rows(before), &sums), Ok)?;
    Ok((ArtifactKind::Snapshot, base))
}

/// Publishes the event about the manifest's newest artifact.
fn publish_event(manifest: &Manifest, manifest_uri: String, tools: &WriterContext) {
    let Some(artifact) = manifest.artifacts.last() else { return };
    let shown = |position: Option<Lsn>| position.map(|position| position.to_string());
    (tools.publish)(ArtifactEvent {
        table: manifest.table.clone(),
        kind: artifact.kind,
        epoch: artifact.epoch,
        from_position: shown(artifact.from_position),
        to_position: shown(artifact.to_position).unwrap_or_default(),
        head_position: shown(manifest.head_position).unwrap_or_default(),
        manifest_uri,
        formats: artifact.formats.iter().map(|(id, stored)| (id.clone(), stored.uri.clone())).collect(),
        created_at: artifact.created_at.clone(),
    });
}
