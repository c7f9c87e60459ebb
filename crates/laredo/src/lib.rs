//! Configuration and the programs of laredo.

pub mod cli;
pub mod config;
pub mod serve;
