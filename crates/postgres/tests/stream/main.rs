//! Streams of a real PostgreSQL.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod changes;
mod harness;
mod histories;
mod positions;
mod reconnects;
