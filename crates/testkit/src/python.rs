use std::path::{Path, PathBuf};

use crate::{HarnessError, Result};

/// Returns the folder with the programs of a Python virtual environment that `./dev test` makes.
/// `moto` emulates AWS, and `readers` has other software that reads archives. The variable
/// `LAREDO_TEST_MOTO` or `LAREDO_TEST_READERS` names another environment.
///
/// # Errors
/// [`HarnessError::Missing`] when the environment does not exist.
pub fn programs(environment: &str) -> Result<PathBuf> {
    let variable = format!("LAREDO_TEST_{}", environment.to_uppercase());
    let folder = std::env::var_os(&variable).map_or_else(
        || {
            // A relative path is relative to the project, where `./dev test` ran.
            let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(target).join("tools").join(environment)
        },
        PathBuf::from,
    );
    let programs = folder.join("bin");
    // The path is absolute, because the programs that a test runs may have another working
    // directory.
    let programs = std::path::absolute(&programs).map_err(HarnessError::io("ask for the working directory"))?;
    if programs.join("python").exists() {
        return Ok(programs);
    }
    Err(HarnessError::Missing(format!(
        "there is no environment of Python in {}: `./dev test` makes it there; or set {variable} to one that has what \
         `./dev` installs there",
        folder.display()
    )))
}
