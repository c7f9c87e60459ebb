//! The tests of the client: one program, for linking each takes longer than running it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod behaviour;
mod hostile;
mod local_snapshot;
mod resume;
mod subscription;
mod support;
mod tls;
