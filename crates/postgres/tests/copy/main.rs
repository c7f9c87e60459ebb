//! Copies of real tables, and what they have to do with the stream.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod away_and_back;
mod copies;
mod harness;
mod redefinitions;
mod sessions;
mod triggered;
mod writers;
