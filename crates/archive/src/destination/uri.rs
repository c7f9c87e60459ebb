//! The addresses of destinations, and the settings with which they are opened.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

#[cfg(feature = "writer")]
use super::Destination;
#[cfg(feature = "writer")]
use super::Destination as BuiltDestination;
// A build without the writer only reads.
#[cfg(not(feature = "writer"))]
use super::DestinationReader as BuiltDestination;
#[cfg(feature = "s3")]
use super::S3Destination;
use super::{DestinationError, DestinationReader, FolderDestination, S3Options};
#[cfg(feature = "s3")]
use crate::aws::{AwsCredentials, AwsProfileSet};

/// The address of a destination: a path, `file:///PATH`, or `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DestinationUri {
    /// A folder of a local or mounted file system.
    Folder(PathBuf),
    /// A bucket of S3, or of a compatible store. Without the feature `s3`, it cannot be opened.
    Bucket {
        /// The bucket's name.
        bucket: String,
        /// The beginning of every object's key.
        prefix: String,
    },
}

/// The settings of a destination that its address does not have. Each store uses its own.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DestinationOptions {
    /// The beginning of every object's name, after the address. It is used as it is: a `/` between
    /// the two is part of one of them.
    pub key_prefix: String,
    /// The settings of a bucket.
    pub s3: S3Options,
    /// The credentials for a bucket; those of the SDK's default chain if `None`.
    #[cfg(feature = "s3")]
    pub credentials: Option<AwsCredentials>,
}

/// An error for a text that is not the address of a destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidDestinationUri(&'static str);

impl FromStr for DestinationUri {
    type Err = InvalidDestinationUri;

    /// Parses an address. A prefix of S3 that does not end with `/` gets one.
    fn from_str(text: &str) -> Result<DestinationUri, InvalidDestinationUri> {
        match text.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let slash = if prefix.is_empty() || prefix.ends_with('/') { "" } else { "/" };
                match bucket {
                    "" => Err(InvalidDestinationUri("write s3://BUCKET/PREFIX")),
                    _ => Ok(DestinationUri::Bucket { bucket: bucket.to_owned(), prefix: format!("{prefix}{slash}") }),
                }
            }
            Some(("file", path)) => Ok(DestinationUri::Folder(path.into())),
            Some(_) => Err(InvalidDestinationUri("an archive is in a folder or at s3://BUCKET/PREFIX")),
            None if text.is_empty() => Err(InvalidDestinationUri("name the folder that has manifest.json")),
            None => Ok(DestinationUri::Folder(text.into())),
        }
    }
}

impl DestinationUri {
    /// Opens the destination. No request is sent yet.
    ///
    /// # Errors
    /// [`DestinationError::Refused`] if the options are invalid.
    #[cfg(feature = "writer")]
    pub async fn open(&self, options: &DestinationOptions) -> Result<Arc<dyn Destination>, DestinationError> {
        self.connect(options).await
    }

    /// Opens the destination for reading. No request is sent yet.
    ///
    /// # Errors
    /// [`DestinationError::Refused`] if the options are invalid.
    pub async fn open_reader(
        &self,
        options: &DestinationOptions,
    ) -> Result<Arc<dyn DestinationReader>, DestinationError> {
        let reader: Arc<dyn DestinationReader> = self.connect(options).await?;
        Ok(reader)
    }

    async fn connect(&self, options: &DestinationOptions) -> Result<Arc<dyn BuiltDestination>, DestinationError> {
        match self {
            DestinationUri::Folder(path) => {
                let destination = FolderDestination::with_prefix(path, &options.key_prefix);
                Ok(Arc::new(destination.map_err(|error| DestinationError::Refused {
                    doing: "use",
                    at: path.display().to_string(),
                    reason: error.to_string(),
                })?))
            }
            #[cfg(feature = "s3")]
            DestinationUri::Bucket { bucket, prefix } => {
                let prefix = format!("{prefix}{}", options.key_prefix);
                let credentials = match &options.credentials {
                    Some(credentials) => credentials.clone(),
                    None => AwsProfileSet::default().ambient().await,
                };
                Ok(Arc::new(S3Destination::new(bucket, &prefix, &options.s3, &credentials)?))
            }
            #[cfg(not(feature = "s3"))]
            DestinationUri::Bucket { bucket, prefix } => Err(DestinationError::Refused {
                doing: "open",
                at: format!("s3://{bucket}/{prefix}{}", options.key_prefix),
                reason: "this program was built without S3; build laredo with the feature aws, \
                         or laredo-archive with the feature s3"
                    .to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_in_a_folder() {
        assert_eq!("a/b".parse(), Ok(DestinationUri::Folder("a/b".into())));
        assert_eq!("file:///a/b".parse(), Ok(DestinationUri::Folder("/a/b".into())));
        for wrong in ["", "gs://b/p"] {
            assert!(wrong.parse::<DestinationUri>().is_err(), "{wrong}");
        }
    }

    #[cfg(not(feature = "s3"))]
    #[tokio::test]
    async fn a_bucket_is_refused_without_s3() {
        let uri: DestinationUri = "s3://b/p".parse().unwrap();
        let refused = uri.open_reader(&DestinationOptions::default()).await.map(drop).unwrap_err().to_string();
        assert!(refused.starts_with("cannot open s3://b/p/: this program was built without S3"), "{refused}");
    }

    #[test]
    fn an_archive_is_in_a_bucket() {
        let bucket = |bucket: &str, prefix: &str| DestinationUri::Bucket {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        assert_eq!("s3://b".parse(), Ok(bucket("b", "")));
        assert_eq!("s3://b/p/users".parse(), Ok(bucket("b", "p/users/")));
        assert_eq!("s3://b/p/".parse(), Ok(bucket("b", "p/")));
        assert!("s3://".parse::<DestinationUri>().is_err());
    }
}
