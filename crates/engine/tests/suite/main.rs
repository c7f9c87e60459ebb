//! The tests of the engine. They are one program because linking each takes longer than running it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod bases;
mod changes;
mod copies;
mod forks;
mod journal;
mod pipelines;
mod reader;
mod restarts;
mod snapshots;
mod source_states;
mod table_states;
mod verify;
