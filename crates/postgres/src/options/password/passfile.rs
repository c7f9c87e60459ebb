//! The password file of libpq (`~/.pgpass`).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::super::parse::DEFAULT_SOCKET_FOLDER;
use super::super::{ConnectionOptions, Host, SecretText};
use super::read_plain_file;

/// The maximum size of a password file, in bytes.
const PASSFILE_BYTES_MAX: u64 = 1 << 20;

/// Returns the password of the first line that fits the connection. As in libpq, a file that is
/// missing is ignored, and so is one that other users can read, with a warning.
pub(super) async fn find_password(path: &Path, options: &ConnectionOptions) -> Result<Option<SecretText>, String> {
    let Ok(found) = tokio::fs::metadata(path).await else { return Ok(None) };
    let passfile = path.display().to_string();
    if !found.is_file() {
        tracing::warn!(event = "passfile_ignored", passfile, "the password file is ignored: it is not a plain file");
        return Ok(None);
    }
    if found.permissions().mode() & 0o077 != 0 {
        tracing::warn!(
            event = "passfile_ignored",
            passfile,
            "the password file is ignored: its group or the world has access; run chmod 0600"
        );
        return Ok(None);
    }
    let bytes = read_plain_file(path, PASSFILE_BYTES_MAX).await.map_err(|error| {
        format!("the password file {passfile} cannot be read: {error}; let the user of this process read it")
    })?;
    let host = match &options.host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(folder) if folder == Path::new(DEFAULT_SOCKET_FOLDER) => "localhost".to_owned(),
        Host::Unix(folder) => folder.to_string_lossy().into_owned(),
    };
    let port = options.port.to_string();
    let wanted = [host.as_str(), &port, &options.database, &options.user];
    let password = bytes.split(|byte| *byte == b'\n').find_map(|line| password_of_line(line, &wanted));
    match password.map(String::from_utf8) {
        None => Ok(None),
        Some(Ok(password)) => Ok(Some(SecretText::new(password)).filter(|password| !password.expose().is_empty())),
        Some(Err(_)) => Err(format!("the password for this connection in {passfile} is not UTF-8")),
    }
}

/// Returns the password of a line `host:port:database:user:password`, if its other fields fit. A
/// field fits if it is `*` or equal. A `\` before a `:` or a `\` makes it a part of the field.
fn password_of_line(line: &[u8], wanted: &[&str; 4]) -> Option<Vec<u8>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") {
        return None;
    }
    let mut rest = line;
    for wanted in wanted {
        let is_wildcard = rest.starts_with(b"*:");
        let (field, after) = field_of(rest);
        if !is_wildcard && field != wanted.as_bytes() {
            return None;
        }
        rest = after?;
    }
    Some(field_of(rest).0)
}

/// Splits the first field off, without its escapes. Returns it and what follows its `:`, if there
/// is one.
fn field_of(text: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    let mut field = Vec::new();
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b':' => return (field, Some(&text[at + 1..])),
            b'\\' => field.push(bytes.next().map_or(b'\\', |(_, escaped)| *escaped)),
            byte => field.push(*byte),
        }
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_as_in_libpq() {
        let wanted = ["db.example", "5432", "app", "al:ice"];
        for (line, password) in [
            (r"db.example:5432:app:al\:ice:geheim", Some("geheim")),
            (r"*:*:*:*:geheim", Some("geheim")),
            (r"db.example:*:app:*:a\:b\\c", Some(r"a:b\c")),
            (r"*:*:*:*:up to:here", Some("up to")),
            ("*:*:*:*:ends with return\r", Some("ends with return")),
            (r"*:*:*:*: ü ", Some(" ü ")),
            (r"*:*:*:*:", Some("")),
            (r"#db.example:5432:app:al\:ice:geheim", None),
            (r"db.example:5433:app:al\:ice:geheim", None),
            (r"DB.EXAMPLE:5432:app:al\:ice:geheim", None),
            (r"db.ex*:5432:app:al\:ice:geheim", None),
            (r"db.example:5432:app:al", None),
            (r"db.example:5432:app:al:ice:geheim", None),
            (r"\*:*:*:*:geheim", None),
            ("", None),
        ] {
            let found = password_of_line(line.as_bytes(), &wanted);
            assert_eq!(found.as_deref(), password.map(str::as_bytes), "{line}");
        }
    }
}
