//! Archives that differ from what was written. Each fault is reported with its object, no rows are
//! returned, and nothing panics. Archives written by other programs are also tested.

mod canaries;
mod damaged;
mod manifests;
mod mutations;
mod others;
mod sample;
mod unlike;
