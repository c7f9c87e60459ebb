//! What the tests of whole processes share: a `laredo-server` of its own, simple clients, and comparing them with the database.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses what it needs")]

pub mod binary;
pub mod compare;
pub mod definitions;
pub mod fleet;
pub mod server;
pub mod simple;
pub mod snapshotter;
pub mod verify;
