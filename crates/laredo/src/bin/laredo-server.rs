//! `laredo-server`: one replication slot, and live copies of its tables for everybody who asks.

use std::process::ExitCode;

use clap::Parser;
use laredo::serve::{Arguments, run};

fn main() -> ExitCode {
    run(Arguments::parse())
}
