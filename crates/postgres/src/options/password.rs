//! The role's password: the places that it comes from, read at each attempt to connect.

mod command;
mod passfile;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

pub use command::PasswordCommand;

use super::{ConnectionOptions, SecretText};

/// The maximum size of a password and of the output that holds it, in bytes. PostgreSQL accepts
/// passwords of up to 64 KiB.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// The place that the role's password comes from. It is read at each attempt to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordSource {
    /// The password itself, from the connection string.
    Text(SecretText),
    /// The places of libpq: the variable `PGPASSWORD`, else a line of a password file.
    Environment {
        /// The value of `passfile`. The default is the variable `PGPASSFILE`, else `~/.pgpass`.
        passfile: Option<PathBuf>,
    },
    /// A file that holds the password alone.
    File(PathBuf),
    /// A command that prints the password.
    Command(Arc<PasswordCommand>),
}

/// A password for one attempt to connect.
#[derive(Clone, Debug)]
pub(crate) struct ObtainedPassword {
    /// The password.
    pub(crate) text: SecretText,
    /// True if an earlier run of the command printed the password, so that it may be outdated.
    is_cached: bool,
}

impl ObtainedPassword {
    fn fresh(text: SecretText) -> ObtainedPassword {
        ObtainedPassword { text, is_cached: false }
    }
}

impl ConnectionOptions {
    /// Obtains the password for an attempt to connect. `None` if there is none.
    ///
    /// # Errors
    /// A sentence for the operator, if the place of the password cannot be read.
    pub(crate) async fn obtain_password(&self) -> Result<Option<ObtainedPassword>, String> {
        let text = match &self.password {
            PasswordSource::Text(text) => Some(text.clone()),
            PasswordSource::Environment { passfile } => self.look_up_password(passfile.as_deref(), variable).await?,
            PasswordSource::File(path) => Some(read_file(path).await?),
            PasswordSource::Command(command) => return command.obtain().await.map(Some),
        };
        Ok(text.map(ObtainedPassword::fresh))
    }

    /// Forgets a password that PostgreSQL refused. Returns true if the password was outdated, so
    /// that another one may be accepted at once.
    pub(crate) async fn forget_password(&self, refused: &ObtainedPassword) -> bool {
        if let PasswordSource::Command(command) = &self.password {
            command.forget(&refused.text).await;
        }
        refused.is_cached
    }

    /// Looks the password up as libpq does. `variable` returns a variable of the environment.
    async fn look_up_password(
        &self,
        passfile: Option<&Path>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<SecretText>, String> {
        if let Some(password) = variable("PGPASSWORD").filter(|password| !password.is_empty()) {
            let password = password.into_string().map_err(|_| "the variable PGPASSWORD is not UTF-8".to_owned())?;
            return Ok(Some(SecretText::new(password)));
        }
        let given = passfile.map(Path::to_owned).or_else(|| variable("PGPASSFILE").map(PathBuf::from));
        let Some(path) = given.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".pgpass"))) else {
            return Ok(None);
        };
        passfile::find_password(&path, self).await
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Reads a file that holds the password alone.
async fn read_file(path: &Path) -> Result<SecretText, String> {
    let refused = |problem: &dyn std::fmt::Display| {
        let path = path.display();
        format!("password_file {path} cannot be used: {problem}; write the password alone into that file")
    };
    let read = read_plain_file(path, PASSWORD_BYTES_MAX).await.map_err(|error| refused(&error))?;
    password_of(read).map_err(|problem| refused(&problem))
}

/// Reads a plain file of at most `bytes_max` bytes.
async fn read_plain_file(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // To open a pipe would wait for its writer.
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    let mut bytes = Vec::new();
    File::open(path).await?.take(bytes_max + 1).read_to_end(&mut bytes).await?;
    match bytes.len() as u64 > bytes_max {
        true => Err(io::Error::other(format!("it is larger than {bytes_max} bytes"))),
        false => Ok(bytes),
    }
}

/// Returns the password in the contents of a file or in the output of a command, without one line
/// break at the end. The error is a part of a sentence, and shows none of the bytes.
fn password_of(bytes: Vec<u8>) -> Result<SecretText, &'static str> {
    let mut text = String::from_utf8(bytes).map_err(|_| "the password is not UTF-8")?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    match text {
        text if text.is_empty() => Err("the password is empty"),
        text if text.contains('\0') => Err("the password contains a zero byte"),
        text => Ok(SecretText::new(text)),
    }
}

#[cfg(test)]
mod tests;
