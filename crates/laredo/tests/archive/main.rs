//! `laredo archive` and the example readers, on archives that a server and a snapshotter wrote of a
//! real database.

#[path = "../support/mod.rs"]
mod support;

mod damaged_archives;
mod example_readers;
mod export;
mod foreign;
mod handmade;
mod hostile_objects;
mod hostile_words;
mod migrated;
mod pipeline;
mod replace;
mod restore;
mod show;
mod types;
