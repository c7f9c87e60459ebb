//! Events on their way to AWS, and as whom AWS is called.

#![cfg(feature = "aws")]

mod credentials;
mod sinks;
mod sts;
