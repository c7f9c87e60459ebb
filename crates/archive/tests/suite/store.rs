//! Buckets for tests, and an S3 server that runs in this process.

mod server;

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_credential_types::Credentials as Keys;
use laredo_archive::{AwsProfileSet, Destination, S3Destination, S3Options};

pub(crate) use server::{BucketInspection, RequestFault, RequestFaultMode, TestS3Server};

pub(crate) const BUCKET: &str = "archives";

/// A bucket at this endpoint. The name of a place is the prefix.
pub(crate) struct TestBucket {
    endpoint: String,
    pub(crate) credentials: laredo_archive::AwsCredentials,
}

impl TestBucket {
    pub(crate) async fn new(endpoint: String, keys: Keys) -> TestBucket {
        let profiles = AwsProfileSet::new(BTreeMap::new()).unwrap().with_ambient(keys).with_region("us-east-1");
        TestBucket { endpoint, credentials: profiles.credentials(None).await.unwrap() }
    }

    pub(crate) fn options(&self) -> S3Options {
        let mut options = S3Options::default();
        options.endpoint = Some(self.endpoint.clone());
        options.force_path_style = true;
        options
    }

    pub(crate) fn with(&self, prefix: &str, options: &S3Options) -> Arc<dyn Destination> {
        Arc::new(S3Destination::new(BUCKET, prefix, options, &self.credentials).unwrap())
    }

    pub(crate) fn place(&self, name: &str) -> Arc<dyn Destination> {
        self.with(&format!("{name}/"), &self.options())
    }
}

pub(crate) fn keys() -> Keys {
    Keys::from_keys("AKIALAREDO", "secret", None)
}
