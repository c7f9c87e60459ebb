//! The shared code of the process tests: a `laredo-server` process, simple clients, and their
//! comparison with the database.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses what it needs")]

pub mod binary;
pub mod compare;
pub mod definitions;
pub mod fleet;
pub mod server;
pub mod simple;
pub mod snapshotter;
pub mod verify;
