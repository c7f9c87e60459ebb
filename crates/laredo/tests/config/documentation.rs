//! The reference says what the program does: its examples load, and it has every key.

use std::collections::BTreeSet;

use laredo::config::ServerConfig;

use super::Folder;

fn reference() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    std::fs::read_to_string(path).expect("the reference")
}

#[test]
fn every_example_of_the_reference_loads() {
    let reference = reference();
    let examples: Vec<_> = reference
        .split("```hocon\n")
        .skip(1)
        .map(|rest| rest.split("```").next().expect("split has a first part"))
        .collect();
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
