//! The demo and the benchmarks: programs for developers, built from the same parts that users run.

pub mod bench;
mod clock;
pub mod demo;
pub mod percentile;
mod programs;
mod snapshotter;
