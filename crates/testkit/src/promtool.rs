use std::path::{Path, PathBuf};

use crate::{HarnessError, Result};

/// Returns the checker of Prometheus: `$LAREDO_TEST_PROMTOOL`, else that on the `PATH`, else the
/// one that `./dev test` unpacks.
///
/// # Errors
/// [`HarnessError::Missing`] when there is none.
pub fn promtool() -> Result<PathBuf> {
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("promtool")).find(|program| program.exists())
    };
    // A relative path is relative to the project, where `./dev test` ran.
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(target);
    let unpacked = unpacked.join("tools/prometheus/usr/bin/promtool");
    let program = std::env::var_os("LAREDO_TEST_PROMTOOL").map(PathBuf::from).or_else(on_path).unwrap_or(unpacked);
    if program.exists() {
        return Ok(program);
    }
    Err(HarnessError::Missing(format!(
        "{} does not exist: `./dev test` unpacks it there; or install promtool, or set LAREDO_TEST_PROMTOOL to it",
        program.display()
    )))
}
