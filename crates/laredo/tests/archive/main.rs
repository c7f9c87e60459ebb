//! `laredo archive` and the example readers, on archives that a server and a snapshotter wrote of a
//! real database.

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
