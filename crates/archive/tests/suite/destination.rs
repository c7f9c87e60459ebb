//! The contract of every destination, on a folder and on two independent S3 servers, and the
//! behavior of S3 alone.

mod contract;
mod local;
#[cfg(feature = "aws")]
mod missing_features;
#[cfg(feature = "aws")]
mod moto;
#[cfg(feature = "aws")]
mod s3s;
