//! The credentials and the HTTP client for calls to AWS.

mod credentials_cache;
mod http;
mod profiles;

pub(crate) use credentials_cache::{NoCredentials, ObjectStoreCredentials};
pub(crate) use http::{AwsConnector, connector};
pub use profiles::{AssumeRole, AwsCredentials, AwsProfile, AwsProfileError, AwsProfileSet};
