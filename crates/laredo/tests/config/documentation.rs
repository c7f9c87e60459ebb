//! The configuration reference agrees with the program: its examples load, and it has every key.
//! The page of metrics has every metric. The README's examples load and compile.

use std::collections::BTreeSet;
use std::time::Duration;

use laredo::config::{ServerConfig, SnapshotterConfig};
use laredo_client::{Replica, TableName, Unique};

use super::ConfigFolder;

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");

fn reference() -> String {
    std::fs::read_to_string(REFERENCE).expect("the reference")
}

/// The end of a generated table.
const TABLE_END: &str = "<!-- end of keys -->";

/// Returns the page with the tables that the declarations make. A marker names the program and the
/// path of the block.
fn with_generated_tables(page: &str) -> String {
    let mut pieces = page.split("<!-- keys: ");
    let mut generated = pieces.next().expect("split has a first part").to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once(" -->").expect("the marker ends");
        let (_, rest) = rest.split_once(TABLE_END).expect("the table ends");
        let table = match name.split_once(' ').unwrap_or((name, "")) {
            ("laredo-server", path) => ServerConfig::reference(path),
            (_, path) => SnapshotterConfig::reference(path),
        };
        let table = table.unwrap_or_else(|| panic!("{name} is not a block"));
        generated += &format!("<!-- keys: {name} -->\n\n{table}\n\n{TABLE_END}{rest}");
    }
    generated
}

#[test]
fn every_table_of_the_reference_is_generated() {
    let page = reference();
    let generated = with_generated_tables(&page);
    if std::env::var_os("LAREDO_WRITE_REFERENCE").is_some() {
        std::fs::write(REFERENCE, &generated).expect("the reference can be written");
    } else {
        assert!(page == generated, "docs/configuration.md is out of date; CONTRIBUTING.md says how it is written");
    }
}

const METRICS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");

/// The end of the generated tables of a program's metrics.
const METRICS_END: &str = "<!-- end of metrics -->";

#[test]
fn every_table_of_metrics_is_generated() {
    let page = std::fs::read_to_string(METRICS).expect("the page of metrics");
    let mut generated = page.clone();
    let programs = [
        ("laredo-server", laredo_server::metrics_reference()),
        ("laredo-snapshotter", laredo::snapshotter::metrics_reference()),
    ];
    for (program, tables) in programs {
        let marker = format!("<!-- metrics: {program} -->");
        let (before, rest) = generated.split_once(&marker).expect("the page names the program");
        let (_, after) = rest.split_once(METRICS_END).expect("the tables end");
        generated = format!("{before}{marker}\n\n{tables}\n{METRICS_END}{after}");
    }
    if std::env::var_os("LAREDO_WRITE_REFERENCE").is_some() {
        std::fs::write(METRICS, &generated).expect("the page can be written");
    } else {
        assert!(page == generated, "docs/metrics.md is out of date; CONTRIBUTING.md says how it is written");
    }
}

/// `promtool` checks only the metrics that a program shows at the time.
#[test]
fn every_metric_follows_the_conventions_of_prometheus() {
    let page = std::fs::read_to_string(METRICS).expect("the page of metrics");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() > 80, "{}", rows.len());
    let other_units = ["_ms", "_us", "milliseconds", "_minutes", "_kb", "_mb", "percent"];
    for row in &rows {
        let [_, name, kind, _, unit, help, _] = row[..] else { panic!("{row:?}") };
        let name = name.trim_matches('`');
        assert!(!other_units.iter().any(|unit| name.contains(unit)), "{name} has another unit");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(kind != "histogram" || unit == "seconds", "{name} is a histogram of {unit}");
        assert!(name.trim_end_matches("_total").ends_with(unit), "{name} does not end with {unit}");
        assert!(help.ends_with('.') && help.len() > 5, "{name} has no help: {help}");
        let reserved = ["_count", "_sum", "_bucket"];
        assert!(!reserved.iter().any(|suffix| name.ends_with(suffix)), "{name} has a name of a histogram's part");
    }
    for promised in ["epoch", "buffer_depth", "churn_records", "snapshot_age_seconds"] {
        assert!(page.contains(&format!("| `snapshotter_{promised}` | gauge |")), "{promised} is promised to users");
    }
}

/// Returns the code blocks of a language in a document.
fn blocks<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let rests = document.split(&format!("```{language}\n")).skip(1).collect::<Vec<_>>();
    rests.into_iter().map(|rest| rest.split("```").next().expect("split has a first part")).collect()
}

const README: &str = include_str!("../../../../README.md");

#[test]
fn the_configurations_of_the_readme_load() {
    let examples = blocks(README, "hocon");
    assert_eq!(examples.len(), 2);
    let folder = ConfigFolder::new(&[("laredo.conf", examples[0]), ("snapshotter.conf", examples[1])]);
    let config = ServerConfig::load(&folder.loader().file(folder.path("laredo.conf")));
    assert!(config.is_ok(), "{}", config.expect_err("it is none").render(false));
    let config = SnapshotterConfig::load(&folder.loader().file(folder.path("snapshotter.conf")));
    assert!(config.is_ok(), "{}", config.expect_err("it is none").render(false));
}

#[test]
fn the_rust_of_the_readme_is_what_compiles_here() {
    let own = include_str!("documentation.rs");
    let (_, own) = own.split_once("// The README's example begins.\n").expect("its beginning");
    let (own, _) = own.split_once("// It ends.\n").expect("its end");
    let bare = |text: &str| text.split_whitespace().collect::<String>();
    let examples = blocks(README, "rust,no_run");
    assert_eq!(examples.len(), 1);
    assert_eq!(bare(examples[0]), bare(own), "change both");
}

#[expect(dead_code, reason = "it is there to be compiled")]
async fn example_of_the_readme() -> Result<(), Box<dyn std::error::Error>> {
    // The README's example begins.
    let replica = Replica::builder("http://laredo-server:4002", TableName::new("public", "config_document"))
        .lookup(["instance_id", "key"])
        .index("by_instance", ["instance_id"], Unique::No)
        .start()?;
    replica.ready(Duration::from_secs(30)).await?;
    let row = replica.lookup(("inst_abc", "rulesets/default"))?;
    let view = replica.view(); // rows and indexes of one commit, without a lock
    println!("{} rows as of {}, {:?} old", view.len(), view.position(), view.age());
    // It ends.
    drop(row);
    Ok(())
}

/// Returns the reference's part about the server, and the part about the snapshotter.
fn parts() -> [String; 2] {
    let reference = reference();
    let (server, snapshotter) = reference.split_once("\n## The snapshotter\n").expect("both");
    [server.to_owned(), snapshotter.to_owned()]
}

#[test]
fn every_example_of_the_reference_loads() {
    let [server, snapshotter] = parts();
    let examples = blocks(&server, "hocon");
    assert_eq!(examples.len(), 7);
    let folder = ConfigFolder::new(&[("tables.conf", examples[0])]);
    let loader = |example: &str| {
        folder.write("example.conf", example.as_bytes());
        folder.loader_with(&[("PG_URL", "postgresql://u@h/d")]).file(folder.path("example.conf"))
    };
    for example in &examples {
        ServerConfig::load(&loader(example)).unwrap_or_else(|report| panic!("{example}\n{}", report.render(false)));
    }
    let examples = blocks(&snapshotter, "hocon");
    assert_eq!(examples.len(), 2);
    for example in &examples {
        let config = SnapshotterConfig::load(&loader(example));
        let config = config.unwrap_or_else(|report| panic!("{example}\n{}", report.render(false)));
        assert_eq!(config.warnings(), [""; 0], "{example}");
    }
}

#[test]
fn the_example_of_jwts_loads() {
    let page = include_str!("../../../../docs/security.md");
    let examples: Vec<_> = blocks(page, "hocon").into_iter().filter(|example| example.contains("jwt {")).collect();
    assert_eq!(examples.len(), 1);
    let config = super::load(&format!("{}\n{}", super::MINIMAL, examples[0])).expect("the example is valid");
    let identities = config.access.expect("it has rules").identities;
    assert!(identities["pods"].jwt.is_some() && identities["people"].jwt.is_some(), "{identities:?}");
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let [server, snapshotter] = parts();
    check_keys(&server, &ServerConfig::keys(), &["filters.", "transforms."]);
    // The snapshotter's credentials are documented in the server's part.
    let credentials = server.split_once("\n## Credentials\n").expect("the profiles").1;
    let credentials = credentials.split("\n## ").next().expect("split has a first part");
    check_keys(&format!("{snapshotter}{credentials}"), &SnapshotterConfig::keys(), &["destinations.", "events."]);
}

/// Checks that a reference has every key and no other. The keys of the blocks in `by_type` share
/// rows with their types.
fn check_keys(reference: &str, keys: &[String], by_type: &[&str]) {
    // The keys in the first column of the tables.
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<&str> = rows.collect();
    let is_suffix = |key: &str, row: &str| key == row || key.ends_with(&format!(".{row}"));
    let missing: Vec<_> = keys
        .iter()
        .filter(|key| {
            // The entries of a map are documented with the map.
            let key = key.strip_suffix(".*").unwrap_or(key);
            let last = key.rsplit('.').next().unwrap_or_default();
            let in_row_of_its_type = last == "type" || reference.contains(&format!("`{last}`"));
            let found = by_type.iter().any(|part| key.contains(part)) && in_row_of_its_type;
            !found && !documented.iter().any(|row| is_suffix(key, row))
        })
        .collect();
    assert!(missing.is_empty(), "not in docs/configuration.md: {missing:#?}");

    // Rows are keys, the blocks and lists above them, and the types of blocks that have several.
    let is_above = |key: &str, row: &str| key.contains(&format!(".{row}.")) || key.starts_with(&format!("{row}."));
    let types = ["local", "s3", "sns", "sqs", "kinesis"];
    let invented: Vec<_> = documented
        .iter()
        .filter(|row| !row.contains('-') && !types.contains(row))
        .filter(|row| !keys.iter().any(|key| is_suffix(key, row) || is_above(key, row)))
        .collect();
    assert!(invented.is_empty(), "only in docs/configuration.md: {invented:#?}");
}
