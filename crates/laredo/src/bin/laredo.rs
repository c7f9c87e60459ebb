//! The operator's command `laredo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    laredo::cli::main()
}
