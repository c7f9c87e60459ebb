//! The places of archives.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use laredo_archive::{Archive, ArchivePoint, AwsProfileSet, Destination, FolderDestination, S3Destination, S3Options};

use super::args::{ArchiveLocationArgs, ArchiveReadArgs, ArchiveStateArg, S3AccessArgs};
use crate::cli::error::CliError;

/// The place of an archive, as given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum ArchiveLocation {
    Folder(PathBuf),
    Bucket { bucket: String, prefix: String },
}

impl FromStr for ArchiveLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<ArchiveLocation, String> {
        match text.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let slash = if prefix.is_empty() || prefix.ends_with('/') { "" } else { "/" };
                match bucket {
                    "" => Err("write s3://BUCKET/PREFIX".to_owned()),
                    _ => Ok(ArchiveLocation::Bucket { bucket: bucket.to_owned(), prefix: format!("{prefix}{slash}") }),
                }
            }
            Some(("file", path)) => Ok(ArchiveLocation::Folder(path.into())),
            Some(_) => Err("an archive is in a folder or at s3://BUCKET/PREFIX".to_owned()),
            None if text.is_empty() => Err("name the folder that has manifest.json".to_owned()),
            None => Ok(ArchiveLocation::Folder(text.into())),
        }
    }
}

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
pub(super) async fn open_newest(place: &ArchiveLocation, store: &S3AccessArgs) -> Result<Archive, CliError> {
    Ok(Archive::open_newest(destination(place, store).await?, None).await?)
}

async fn destination(place: &ArchiveLocation, store: &S3AccessArgs) -> Result<Arc<dyn Destination>, CliError> {
    match place {
        ArchiveLocation::Folder(folder) => Ok(Arc::new(FolderDestination::new(folder))),
        ArchiveLocation::Bucket { bucket, prefix } => {
            let options = S3Options {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                region: store.region.clone(),
                endpoint: store.endpoint.clone(),
                force_path_style: store.force_path_style,
                encryption: None,
            };
            let credentials = AwsProfileSet::default().credentials(None).await?;
            Ok(Arc::new(S3Destination::new(&options, &credentials)?))
        }
    }
}

impl ArchiveLocation {
    /// Returns the folder on this machine where artifacts are staged before they are written to the
    /// place.
    pub(super) fn staging(&self) -> PathBuf {
        match self {
            ArchiveLocation::Folder(folder) => FolderDestination::new(folder).staging(),
            ArchiveLocation::Bucket { .. } => std::env::temp_dir().join("laredo-export"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_in_a_folder_or_in_a_bucket() {
        let bucket = |bucket: &str, prefix: &str| ArchiveLocation::Bucket {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        assert_eq!("a/b".parse(), Ok(ArchiveLocation::Folder("a/b".into())));
        assert_eq!("file:///a/b".parse(), Ok(ArchiveLocation::Folder("/a/b".into())));
        assert_eq!("s3://b".parse(), Ok(bucket("b", "")));
        assert_eq!("s3://b/p/users".parse(), Ok(bucket("b", "p/users/")));
        assert_eq!("s3://b/p/".parse(), Ok(bucket("b", "p/")));
        for wrong in ["", "s3://", "gs://b/p"] {
            assert!(wrong.parse::<ArchiveLocation>().is_err(), "{wrong}");
        }
    }
}
