//! The tests of the client. They are one program because linking each takes longer than running it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod behavior;
mod hostile;
mod local_snapshot;
#[cfg(feature = "metrics")]
mod metrics;
mod resume;
mod subscription;
mod support;
#[cfg(feature = "tls")]
mod tls;
