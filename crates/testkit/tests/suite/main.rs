//! The tests of what other tests are made of.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod cluster;
mod conformance;
mod process;
mod proxy;
mod workload;
