//! The tests of the test kit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod cluster;
mod conformance;
mod process;
mod proxy;
mod workload;
