//! `laredo archive` on archives that a server and a snapshotter wrote of a real database, and the readers of others on the same.

#[path = "../support/mod.rs"]
mod support;

mod bad;
mod export;
mod others;
mod pipeline;
mod restore;
mod show;
mod types;
