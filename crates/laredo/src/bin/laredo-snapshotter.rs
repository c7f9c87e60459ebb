//! The program `laredo-snapshotter`, which writes tables as archives, in files that any program can
//! read.

use std::process::ExitCode;

use clap::Parser;
use laredo::snapshotter::{SnapshotterArguments, run};

fn main() -> ExitCode {
    run(SnapshotterArguments::parse())
}
