//! Checks of the archives' places: no two archives may share one, and a missing `/` is reported.

use laredo_archive::{MANIFEST_NAME, check_key_prefix};

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::tree::KeyPath;
use super::destination::ManifestAddress;
use super::{ArchivedTableConfig, DestinationConfig};

/// Reports archives that would overwrite each other. `blocks` are the blocks that `tables` were
/// read from.
pub(super) fn check(blocks: &[BlockFields], tables: &[ArchivedTableConfig], reader: &mut ConfigReader) {
    let mut used: Vec<(ManifestAddress, KeyPath, String)> = Vec::new();
    for (block, table) in blocks.iter().zip(tables) {
        // Each destination was read from the block at the same index.
        for (destination, written) in table.destinations.iter().zip(block.items("destinations")) {
            if table.source.table.is_empty() {
                continue;
            }
            let path = written.path.clone();
            let name = table.source.name();
            let place = match destination.manifest_address(&table.key_prefix) {
                Ok(Some(place)) => place,
                Ok(None) => continue,
                Err(error) => {
                    let remedy = if check_key_prefix(destination.prefix()).is_err() {
                        "correct prefix, such as archive/"
                    } else if block.has("key_prefix") {
                        "correct key_prefix, such as users/"
                    } else {
                        // The default is the table's name, which may contain anything.
                        "set key_prefix, such as users/, because the table's name is not suitable"
                    };
                    let message = format!("{name} cannot be written here: {error}; {remedy}");
                    reader.problems.push(ConfigProblem::new(&written.place, &path, message));
                    continue;
                }
            };
            if let Some((_, other_path, other)) = used.iter().find(|(other, ..)| *other == place) {
                let manifest = &place.manifest;
                let message = format!(
                    "{name} would be written where {other} is ({other_path}), to {manifest}; give each its own path, prefix or \
                     key_prefix"
                );
                reader.problems.push(ConfigProblem::new(&written.place, &path, message));
            }
            used.push((place, path, name));
        }
    }
}

/// Returns warnings about names in which a `/` seems to be missing.
pub(super) fn warnings(table: &ArchivedTableConfig) -> Vec<String> {
    let key_prefix = &table.key_prefix;
    let warn = |destination: &DestinationConfig| {
        let prefix = destination.prefix();
        let ends_open = |text: &str| !text.is_empty() && !text.ends_with('/');
        let after = if ends_open(prefix) && !key_prefix.starts_with('/') {
            format!("prefix = \"{prefix}\"")
        } else if ends_open(key_prefix) {
            format!("key_prefix = \"{key_prefix}\"")
        } else {
            return None;
        };
        Some(format!("the manifest's name is {prefix}{key_prefix}{MANIFEST_NAME}; is a / missing after {after}?"))
    };
    table.destinations.iter().filter_map(warn).collect()
}
