//! Archives that differ from what was written. Each fault is reported with its object, no rows are
//! returned, and nothing panics. Archives written by other programs are also tested.

mod damaged;
mod example;
mod foreign_archives;
mod foreign_encodings;
mod manifests;
mod mutations;
mod sample;
mod unpacked_sizes;
mod wrong_rows;
