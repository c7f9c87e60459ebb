use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::installation::{Installation, run};
use crate::{ClusterOptions, HarnessError, Result};

/// Makes the data directory `data` in `dir`, and the TLS files next to it.
pub(crate) fn make(installation: &Installation, dir: &Path, options: &ClusterOptions) -> Result<()> {
    let data = dir.join("data");
    if options.own_identity {
        initdb(installation, dir, &data)?;
    } else {
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(template(installation)?).arg(&data);
        installation.as_owner(&mut copy);
        run(copy.current_dir(dir))?;
    }
    append(&data.join("postgresql.conf"), &conf(dir, options))?;
    fs::write(data.join("pg_hba.conf"), hba(options)).map_err(HarnessError::io("write pg_hba.conf"))?;
    #[cfg(feature = "tls")]
    if let Some(tls) = &options.tls {
        tls.write(dir)?;
        installation.give(&dir.join("server.key"))?;
    }
    Ok(())
}

/// Returns the folder for the directories of clusters. `initdb` makes a thousand files, which takes
/// a second on some file systems.
pub(crate) fn place(on_disk: bool) -> PathBuf {
    const MEMORY: &str = "/dev/shm";
    const ENOUGH_BYTES: u64 = 2 << 30;
    let room = rustix::fs::statvfs(MEMORY).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize));
    if on_disk || room < ENOUGH_BYTES { std::env::temp_dir() } else { PathBuf::from(MEMORY) }
}

/// Returns a data directory to copy. `initdb` makes it once for each version of PostgreSQL and
/// user, because copying takes a tenth of the time.
fn template(installation: &Installation) -> Result<PathBuf> {
    let shelf = std::env::temp_dir().join(format!("laredo-testkit-{}", installation.user()));
    if !shelf.exists() {
        // The folder has another name until it belongs to the right user, because other processes
        // check for it at the same time. Another process may make it first, and its folder is
        // equivalent: `rename` does not replace a folder with contents.
        let made = tempfile::Builder::new()
            .prefix("laredo-testkit-new-")
            .tempdir()
            .map_err(HarnessError::io("make a shelf"))?;
        installation.give(made.path())?;
        if fs::rename(made.path(), &shelf).is_ok() {
            let _ = made.keep();
        }
    }
    if !installation.owns(&shelf) {
        let shelf = shelf.display();
        return Err(HarnessError::Missing(format!("{shelf} belongs to another user: remove it")));
    }
    let template = shelf.join(format!("pg-{}", installation.version()));
    if template.exists() {
        return Ok(template);
    }
    let workshop = tempfile::Builder::new()
        .prefix("new-")
        .tempdir_in(&shelf)
        .map_err(HarnessError::io("make a temporary directory"))?;
    installation.give(workshop.path())?;
    let data = workshop.path().join("data");
    initdb(installation, workshop.path(), &data)?;
    // Another process may have been faster. Its template is equivalent.
    match fs::rename(&data, &template) {
        Err(error) if !template.exists() => Err(HarnessError::io("keep a template of a data directory")(error)),
        _ => Ok(template),
    }
}

fn initdb(installation: &Installation, dir: &Path, data: &Path) -> Result<()> {
    let mut command = installation.command("initdb", dir);
    command.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "-D"]);
    run(command.arg(data)).map(drop)
}

fn conf(dir: &Path, options: &ClusterOptions) -> String {
    let on_or_off = |on| if on { "on" } else { "off" };
    #[cfg(feature = "tls")]
    let has_tls = options.tls.is_some();
    #[cfg(not(feature = "tls"))]
    let has_tls = false;
    let socket_dir = dir.to_string_lossy();
    let mut lines = vec![
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", &socket_dir),
        ("fsync", on_or_off(options.fsync)),
        ("wal_level", "logical"),
        ("max_replication_slots", "20"),
        ("max_wal_senders", "20"),
        ("max_prepared_transactions", "10"),
        ("ssl", on_or_off(has_tls)),
        ("ssl_cert_file", "../server.crt"),
        ("ssl_key_file", "../server.key"),
        ("timezone", "UTC"),
        ("log_line_prefix", "%m [%p] %q%a "),
    ];
    lines.extend(options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let line = |(name, value): (&str, &str)| format!("{name} = '{}'\n", value.replace('\'', "''"));
    lines.into_iter().map(line).collect()
}

fn hba(options: &ClusterOptions) -> String {
    let method = if options.password.is_some() { "scram-sha-256" } else { "trust" };
    let tcp = options.hba.iter().map(|line| format!("{line}\n")).collect::<String>();
    format!(
        "local all all trust\nlocal replication all trust\n{tcp}\
         host all all 127.0.0.1/32 {method}\nhost replication all 127.0.0.1/32 {method}\n"
    )
}

fn append(path: &Path, text: &str) -> Result<()> {
    File::options()
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(HarnessError::io(format!("write {}", path.display())))
}
