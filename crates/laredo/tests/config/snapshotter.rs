//! The snapshotter's configuration.

mod errors;
mod examples;
mod layers;
mod values;

use laredo::config::SnapshotterConfig;

use super::ConfigFolder;

/// The smallest valid configuration, which tests extend.
const MINIMAL: &str = r#"
snapshotter { source { server = "localhost:4001", schema = public, table = t }
destinations = [{ type = local, path = /archive }] }
"#;

/// Loads one text as `snapshotter.conf`.
fn load(text: &str) -> Result<SnapshotterConfig, Vec<String>> {
    let folder = ConfigFolder::new(&[("snapshotter.conf", text)]);
    let loader = folder.loader().file(folder.path("snapshotter.conf"));
    SnapshotterConfig::load(&loader).map_err(|report| folder.lines(&report))
}

/// Returns a configuration whose line 2 is the source, line 4 the table and line 6 the only
/// destination.
fn with(source: &str, table: &str, destination: &str) -> String {
    format!(
        "snapshotter {{ source {{ server = \"h:1\", schema = s, table = t\n\
         {source}\n\
         }}\n\
         {table}\n\
         destinations = [{{ type = local, path = /p\n\
         {destination}\n\
         }}] }}\n"
    )
}

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    let problems = load(text).expect_err("the text is wrong");
    let expected: Vec<_> = expected.iter().map(|line| format!("snapshotter.conf:{line}")).collect();
    assert_eq!(problems, expected, "{text}");
}
