//! The tests of the engine. They are one program because linking each takes longer than running it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod bases;
mod copies;
mod forks;
mod journal;
mod pipelines;
mod restarts;
mod snapshots;
mod source_states;
mod support;
mod table_set;
mod table_states;
mod verify;
