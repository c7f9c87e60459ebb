//! The configuration and the programs of laredo.

pub mod cli;
mod command_files;
pub mod config;
mod printable;
mod program;
pub mod serve;
pub mod snapshotter;
