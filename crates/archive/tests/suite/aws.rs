//! Events that are sent to AWS, and the credentials for AWS.

#![cfg(feature = "aws")]

mod credentials;
mod proxies;
mod sinks;
mod sts;
