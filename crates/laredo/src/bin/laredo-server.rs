//! The program `laredo-server`, which serves live copies of PostgreSQL tables to any number of
//! clients, from one replication slot for each source.

use std::process::ExitCode;

use clap::Parser;
use laredo::serve::{ServerArguments, run};

/// The allocator of the program: jemalloc. The server allocates and frees millions of rows of any
/// size, on threads of their own. The system's allocator would return memory and clear it again all
/// the time, and leave gaps. See `docs/adr/0005-jemalloc-in-the-server.md`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    run(ServerArguments::parse())
}
