//! The tests of the archive. They are one program because linking each takes longer than running
//! it.

mod aws;
mod destination;
mod reader;
mod scene;
#[cfg(feature = "aws")]
mod store;
mod writer;
