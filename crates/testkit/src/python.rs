use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The programs of a virtual environment of Python that `./dev test` makes: `moto`, an AWS; `readers`, with which others read archives. The
/// variable `LAREDO_TEST_MOTO` (or `_READERS`) names another one.
///
/// # Errors
/// [`Error::Missing`] when it is not there.
pub fn programs(environment: &str) -> Result<PathBuf> {
    let variable = format!("LAREDO_TEST_{}", environment.to_uppercase());
    let folder = std::env::var_os(&variable).map_or_else(
        || {
            // A relative one is relative to the project, where `./dev test` was.
            let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(target).join("tools").join(environment)
        },
        PathBuf::from,
    );
    let programs = folder.join("bin");
    // What a test runs may have another working directory.
    let programs = std::path::absolute(&programs).map_err(Error::io("ask for the working directory"))?;
    if programs.join("python").exists() {
        return Ok(programs);
    }
    Err(Error::Missing(format!(
        "there is no environment of Python in {}: `./dev test` makes it there; or set {variable} to one that has what \
         `./dev` installs there",
        folder.display()
    )))
}
