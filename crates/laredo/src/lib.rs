//! The configuration and the programs of laredo.

pub mod cli;
pub mod config;
mod program;
pub mod serve;
pub mod snapshotter;
