//! `laredo archive` on archives that a server and a snapshotter wrote of a real database, and the readers of others on the same.

#[path = "../support/mod.rs"]
mod support;

mod bad;
mod export;
mod foreign;
mod handmade;
mod migrated;
mod others;
mod pipeline;
mod replace;
mod restore;
mod show;
mod types;
