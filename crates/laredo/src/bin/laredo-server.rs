//! `laredo-server`: one replication slot, and live copies of its tables for everybody who asks.

use std::process::ExitCode;

use clap::Parser;
use laredo::serve::{Arguments, run};

/// Millions of rows of any size come and go, on threads of their own: the system's allocator gives memory back and clears it anew
/// all the time, and keeps gaps. See `docs/adr/0005-jemalloc-in-the-server.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    run(Arguments::parse())
}
