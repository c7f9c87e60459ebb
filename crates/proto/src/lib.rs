#![doc = include_str!("../README.md")]

pub mod batch;
pub mod frame;
mod identity;
pub mod schema;

#[cfg(test)]
mod fuzz_tests;

/// The package `laredo.replication.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    reason = "generated; the .proto files are the documentation"
)]
pub mod replication {
    include!(concat!(env!("OUT_DIR"), "/laredo.replication.v1.rs"));
}

/// The package `laredo.v1`: operation, administration and maintenance, and queries.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    reason = "generated; the .proto files are the documentation"
)]
pub mod oam {
    include!(concat!(env!("OUT_DIR"), "/laredo.v1.rs"));
}

/// The compiled `.proto` files, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/laredo.bin"));
