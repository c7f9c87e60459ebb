//! The operator's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    laredo::cli::main()
}
