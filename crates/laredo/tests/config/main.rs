//! The programs' configurations: valid ones, refused ones, and the messages.

mod access;
mod arbitrary;
mod documentation;
mod errors;
mod examples;
mod layers;
mod secrets;
mod snapshotter;

use std::path::{Path, PathBuf};

use laredo::config::{ConfigLoader, ConfigReport, ServerConfig};

/// The smallest valid configuration, which tests extend.
const MINIMAL: &str = r#"
sources { pg { type = postgresql, connection = "postgresql://u@h/d" } }
tables = [{ source = pg, schema = public, table = t, targets = [{ type = replication-fanout }] }]
"#;

/// A folder with files. Its loader sees nothing else of the machine.
struct ConfigFolder(tempfile::TempDir);

impl ConfigFolder {
    fn new(files: &[(&str, &str)]) -> ConfigFolder {
        let folder = ConfigFolder(tempfile::tempdir().expect("a temporary folder"));
        std::fs::create_dir(folder.path("empty")).expect("a folder");
        for (name, text) in files {
            folder.write(name, text.as_bytes());
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }

    /// Returns a loader without environment variables and without the machine's own folders.
    fn loader(&self) -> ConfigLoader {
        self.loader_with(&[])
    }

    fn loader_with(&self, environment: &[(&str, &str)]) -> ConfigLoader {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        ConfigLoader::new(environment).conf_dir(self.path("empty")).init_dir(self.path("empty"))
    }

    /// Returns the lines of a report without the folder's own path, which differs from run to run.
    fn lines(&self, report: &ConfigReport) -> Vec<String> {
        let folder = format!("{}/", self.0.path().display());
        report.to_string().lines().map(|line| line.replace(&folder, "")).collect()
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config").join(name)
}

/// Loads one text as `laredo.conf`.
fn load(text: &str) -> Result<ServerConfig, Vec<String>> {
    let folder = ConfigFolder::new(&[("laredo.conf", text)]);
    ServerConfig::load(&folder.loader().file(folder.path("laredo.conf"))).map_err(|report| folder.lines(&report))
}

/// Returns the problems of a text that must not load.
fn problems(text: &str) -> Vec<String> {
    load(text).expect_err("the text is wrong")
}
