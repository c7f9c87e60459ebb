//! What the tests of whole processes share: a `laredo-server` of its own, simple clients, and comparing them with the database.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses what it needs")]

pub mod binary;
pub mod compare;
pub mod fleet;
pub mod server;
pub mod simple;

/// Whether the long runs are wanted (`./dev test --full`).
pub fn is_full() -> bool {
    std::env::var_os("LAREDO_TEST_FULL").is_some_and(|value| !value.is_empty() && value != "0")
}
