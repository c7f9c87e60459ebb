//! Bytes that are not what PostgreSQL would send: what the stream makes of them, and what the state.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod recording;
mod state;
mod stream;
