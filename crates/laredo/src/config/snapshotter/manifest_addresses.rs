//! Checks of the archives' places: no two archives may share one, and a missing `/` is reported.

use std::path::{Component, Path, PathBuf};

use laredo_archive::MANIFEST;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::tree::KeyPath;
use super::{ArchivedTableConfig, DestinationConfig};

/// The place of an archive: the address of its manifest, and the endpoint of a store that is not
/// AWS's own.
#[derive(Debug, PartialEq, Eq)]
struct ManifestAddress {
    endpoint: Option<String>,
    manifest: String,
}

/// Reports archives that would overwrite each other. `blocks` are the blocks that `tables` were
/// read from.
pub(super) fn check(blocks: &[BlockFields], tables: &[ArchivedTableConfig], reader: &mut ConfigReader) {
    let mut used: Vec<(ManifestAddress, KeyPath, String)> = Vec::new();
    for (block, table) in blocks.iter().zip(tables) {
        // Each destination was read from the block at the same index.
        for (destination, written) in table.destinations.iter().zip(block.items("destinations")) {
            let Some(place) = ManifestAddress::of(destination, table) else { continue };
            let path = written.path;
            let name = table.source.name();
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
        let prefix = match destination {
            DestinationConfig::Local { .. } => "",
            DestinationConfig::S3(s3) => &s3.prefix,
        };
        let ends_open = |text: &str| !text.is_empty() && !text.ends_with('/');
        let after = if ends_open(prefix) && !key_prefix.starts_with('/') {
            format!("prefix = \"{prefix}\"")
        } else if ends_open(key_prefix) {
            format!("key_prefix = \"{key_prefix}\"")
        } else {
            return None;
        };
        Some(format!("the manifest's name is {prefix}{key_prefix}{MANIFEST}; is a / missing after {after}?"))
    };
    table.destinations.iter().filter_map(warn).collect()
}

impl ManifestAddress {
    /// Returns the place. Returns `None` if a required value is missing, which has been reported.
    fn of(destination: &DestinationConfig, table: &ArchivedTableConfig) -> Option<ManifestAddress> {
        let key_prefix = &table.key_prefix;
        match destination {
            _ if table.source.table.is_empty() => None,
            DestinationConfig::Local { path } if path.as_os_str().is_empty() => None,
            DestinationConfig::Local { path } => {
                let manifest = format!("{}/{key_prefix}{MANIFEST}", path.display());
                Some(ManifestAddress { endpoint: None, manifest: plain(Path::new(&manifest)).display().to_string() })
            }
            DestinationConfig::S3(s3) if s3.bucket.is_empty() => None,
            DestinationConfig::S3(s3) => {
                let key = format!("{}{key_prefix}{MANIFEST}", s3.prefix);
                // Stores treat empty parts differently. Two keys that differ only in these may be
                // the same key.
                let parts: Vec<_> = key.split('/').filter(|part| !part.is_empty()).collect();
                let endpoint = s3.aws.endpoint.as_ref().map(|endpoint| endpoint.trim_end_matches('/').to_owned());
                Some(ManifestAddress { endpoint, manifest: format!("s3://{}/{}", s3.bucket, parts.join("/")) })
            }
        }
    }
}

/// Returns the absolute path without `.` and `..`. Symbolic links are not resolved.
fn plain(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}
