//! The reference says what the program does: its examples load, and it has every key. The README's examples load and compile.

use std::collections::BTreeSet;
use std::time::Duration;

use laredo::config::ServerConfig;
use laredo_client::{Replica, TableName, Unique};

use super::Folder;

fn reference() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    std::fs::read_to_string(path).expect("the reference")
}

/// The code blocks of a language in a document.
fn blocks<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let rests = document.split(&format!("```{language}\n")).skip(1).collect::<Vec<_>>();
    rests.into_iter().map(|rest| rest.split("```").next().expect("split has a first part")).collect()
}

const README: &str = include_str!("../../../../README.md");

#[test]
fn the_configuration_of_the_readme_loads() {
    let examples = blocks(README, "hocon");
    assert_eq!(examples.len(), 1);
    let folder = Folder::new(&[("laredo.conf", examples[0])]);
    let config = ServerConfig::load(&folder.loader().file(folder.path("laredo.conf")));
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
    let row = replica.lookup(("inst_abc", "rulesets/default"));
    let view = replica.view(); // rows and indexes of one commit, without a lock
    println!("{} rows as of {}, {:?} old", view.len(), view.position(), view.age());
    // It ends.
    drop(row);
    Ok(())
}

#[test]
fn every_example_of_the_reference_loads() {
    let reference = reference();
    let examples = blocks(&reference, "hocon");
    assert_eq!(examples.len(), 4);
    let folder = Folder::new(&[("tables.conf", examples[0])]);
    for example in &examples {
        folder.write("example.conf", example.as_bytes());
        let loader = folder.loader_with(&[("PG_URL", "postgresql://u@h/d")]).file(folder.path("example.conf"));
        ServerConfig::load(&loader).unwrap_or_else(|report| panic!("{example}\n{}", report.render(false)));
    }
}

/// The keys in the first column of the reference's tables.
fn documented_keys() -> BTreeSet<String> {
    reference().lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).map(str::to_owned).collect()
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let (reference, documented) = (reference(), documented_keys());
    let is_suffix = |key: &str, row: &str| key == row || key.ends_with(&format!(".{row}"));
    let keys = ServerConfig::keys();
    let missing: Vec<_> = keys
        .iter()
        .filter(|key| {
            let last = key.trim_end_matches(".*").rsplit('.').next().unwrap_or_default();
            // The keys of filters and transforms share rows with their meaning.
            let in_row_of_its_type = key.contains("filters.") || key.contains("transforms.");
            let found = in_row_of_its_type && reference.contains(&format!("`{last}`"));
            !found && !documented.iter().any(|row| is_suffix(key, row))
        })
        .collect();
    assert!(missing.is_empty(), "not in docs/configuration.md: {missing:#?}");

    // Rows are keys, the blocks and lists above them, and the types of filters and transforms.
    let is_above = |key: &str, row: &str| key.contains(&format!(".{row}."));
    let invented: Vec<_> = documented
        .iter()
        .filter(|row| !row.contains('-') && !keys.iter().any(|key| is_suffix(key, row) || is_above(key, row)))
        .collect();
    assert!(invented.is_empty(), "only in docs/configuration.md: {invented:#?}");
}
