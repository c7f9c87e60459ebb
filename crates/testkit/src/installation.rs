use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{HarnessError, Result};

/// The programs of PostgreSQL, and the user that may run its server.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    bin: PathBuf,
    /// The version, as in `postgres (PostgreSQL) 15.18`, without the words.
    version: String,
    /// The user and group `postgres` if this process runs as root, because the server refuses to
    /// run as root.
    owner: Option<(u32, u32)>,
}

impl Installation {
    /// Finds the programs in `$LAREDO_TEST_PG_BIN`, else in the newest of
    /// `/usr/lib/postgresql/*/bin`, else on the `PATH`.
    pub(crate) fn find() -> Result<Self> {
        let bin = std::env::var_os("LAREDO_TEST_PG_BIN")
            .map(PathBuf::from)
            .or_else(newest_of_debian)
            .or_else(on_path)
            .filter(|bin| bin.join("initdb").exists())
            .ok_or_else(|| {
                HarnessError::Missing(
                    "PostgreSQL's server programs were not found: install them (`./dev test` does so on Debian and \
                     Ubuntu) or set LAREDO_TEST_PG_BIN to the directory that holds initdb and postgres"
                        .to_owned(),
                )
            })?;
        let mut found = Self { bin, version: String::new(), owner: owner()? };
        let said = run(found.command("postgres", Path::new("/")).arg("--version"))?;
        found.version = said.split_whitespace().nth(2).unwrap_or_default().to_owned();
        Ok(found)
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Returns the path of a program of this installation, or its name for the `PATH` if the
    /// installation lacks it.
    pub(crate) fn bin(&self, name: &str) -> PathBuf {
        let path = self.bin.join(name);
        if path.exists() { path } else { PathBuf::from(name) }
    }

    /// Returns a command for a program of this installation. It runs as the server's user in `dir`,
    /// which that user must be able to enter.
    pub(crate) fn command(&self, name: &str, dir: &Path) -> Command {
        let mut command = Command::new(self.bin(name));
        self.as_owner(&mut command);
        command.current_dir(dir);
        command
    }

    pub(crate) fn as_owner(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
    }

    /// Makes the server's user the owner of `path`.
    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(HarnessError::io(format!("give {} to postgres", path.display())))
    }

    /// Returns the ID of the server's user.
    pub(crate) fn user(&self) -> u32 {
        self.owner.map_or_else(|| rustix::process::geteuid().as_raw(), |(uid, _)| uid)
    }

    pub(crate) fn owns(&self, dir: &Path) -> bool {
        fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir() && found.uid() == self.user())
    }
}

/// Runs `command` to its end, and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.stdin(Stdio::null()).output().map_err(HarnessError::io(format!("run {program}")))?;
    if !done.status.success() {
        let output = String::from_utf8_lossy(&done.stderr).into_owned();
        return Err(HarnessError::Program { program, output });
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn newest_of_debian() -> Option<PathBuf> {
    fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let major: u32 = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            bin.join("initdb").exists().then_some((major, bin))
        })
        .max()
        .map(|(_, bin)| bin)
}

fn on_path() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).find(|dir| dir.join("initdb").exists())
}

fn owner() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let id = |flag| run(Command::new("id").args([flag, "postgres"])).map(|id| id.trim().parse().ok());
    match (id("-u"), id("-g")) {
        (Ok(Some(uid)), Ok(Some(gid))) => Ok(Some((uid, gid))),
        _ => Err(HarnessError::Missing(
            "PostgreSQL does not run as root, and there is no user `postgres` to run it as: create one, or run the \
             tests as another user"
                .to_owned(),
        )),
    }
}
