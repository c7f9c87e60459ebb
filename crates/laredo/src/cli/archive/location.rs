//! The places of archives.

use std::sync::Arc;

use laredo_archive::{Archive, ArchivePoint, Destination, DestinationOptions, DestinationUri};

use super::args::{ArchiveLocationArgs, ArchiveReadArgs, ArchiveStateArg, S3AccessArgs};
use crate::cli::error::CliError;

impl ArchiveLocationArgs {
    pub(super) async fn destination(&self) -> Result<Arc<dyn Destination>, CliError> {
        destination(&self.place, &self.store).await
    }
}

impl ArchiveReadArgs {
    /// Opens the archive with all its epochs.
    ///
    /// # Errors
    /// A missing archive, or a manifest that cannot be used.
    pub(super) async fn open(&self) -> Result<Archive, CliError> {
        let destination = self.place.destination().await?;
        Ok(Archive::open(destination, None).await?.with_key(self.key_fields.clone()))
    }

    /// Opens the archive with the epochs that a state needs.
    ///
    /// # Errors
    /// The errors of [`ArchiveReadArgs::open`].
    pub(super) async fn open_for(&self, state: ArchiveStateArg) -> Result<Archive, CliError> {
        if state != (ArchiveStateArg { history: None, at: ArchivePoint::Latest }) {
            return self.open().await;
        }
        let archive = open_newest(&self.place.place, &self.place.store).await?;
        Ok(archive.with_key(self.key_fields.clone()))
    }
}

/// Opens the archive at a place, with only the epochs that `manifest.json` names.
///
/// # Errors
/// A missing archive, or a manifest that cannot be used.
pub(super) async fn open_newest(place: &DestinationUri, store: &S3AccessArgs) -> Result<Archive, CliError> {
    Ok(Archive::open_newest(destination(place, store).await?, None).await?)
}

async fn destination(place: &DestinationUri, store: &S3AccessArgs) -> Result<Arc<dyn Destination>, CliError> {
    let mut options = DestinationOptions::default();
    options.s3.region.clone_from(&store.region);
    options.s3.endpoint.clone_from(&store.endpoint);
    options.s3.force_path_style = store.force_path_style;
    Ok(place.open(&options).await?)
}
