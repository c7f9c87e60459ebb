//! `laredo-snapshotter`: tables as archives, in files that anyone can read.

use std::process::ExitCode;

use clap::Parser;
use laredo::snapshot::{Arguments, run};

fn main() -> ExitCode {
    run(Arguments::parse())
}
