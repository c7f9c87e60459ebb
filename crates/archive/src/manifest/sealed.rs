//! Sealed manifests: the older epochs of an archive, to which `manifest.json` points.
//!
//! `manifest.json` is written again for each artifact, so the number of artifacts that it names is
//! bounded. Older epochs move into sealed manifests, which never change. Each one points to the one
//! before it. Their addresses are relative to the archive, so that a sealed manifest is the same
//! object at all destinations.

use serde::{Deserialize, Serialize};

#[cfg(feature = "writer")]
use super::ArtifactKind;
use super::{Artifact, MANIFEST_VERSION, ManifestError, ManifestViolation, rules, spelling};

/// The maximum number of artifacts that are added to one sealed manifest. Beyond it, a new one is
/// begun.
#[cfg(feature = "writer")]
const SEALED_ARTIFACTS_MAX: usize = 1024;

/// The address and the description of a sealed manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedLink {
    /// The address of the object.
    pub uri: String,
    /// The object's size in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of the object's bytes, in hex.
    pub sha256: String,
    /// The oldest epoch that the sealed manifest names.
    pub first_epoch: u64,
    /// The newest epoch that the sealed manifest names.
    pub last_epoch: u64,
    /// The number of artifacts that the sealed manifest names.
    pub artifacts: u64,
}

/// The complete epochs that are older than those of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedManifest {
    pub(crate) manifest_version: u32,
    pub(crate) table: String,
    /// The artifacts, oldest first.
    pub(crate) artifacts: Vec<Artifact>,
    /// The sealed manifest of the epochs before these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) earlier: Option<SealedLink>,
}

impl SealedLink {
    /// Returns the name of the object, or `None` if the address leads out of the archive.
    #[must_use]
    pub fn object(&self) -> Option<String> {
        let name = self.uri.get(self.uri.rfind("epoch=")?..)?;
        let (_, file) = name.split_once('/')?;
        (file.starts_with("sealed-") && !file.contains(['/', '\\'])).then(|| name.to_owned())
    }

    /// Checks that the epochs are in their range.
    pub(super) fn check(&self) -> Result<(), ManifestViolation> {
        rules::check_number("sealed epoch", self.first_epoch.max(self.last_epoch))
    }

    /// Sets the address of the object at a destination.
    pub(super) fn locate(&mut self, uri: &impl Fn(&str) -> String) {
        if let Some(object) = self.object() {
            self.uri = uri(&object);
        }
    }

    /// Returns true if the sealed manifest has room for `more` artifacts.
    #[cfg(feature = "writer")]
    pub(crate) fn has_room(&self, more: usize) -> bool {
        self.artifacts.saturating_add(more as u64) <= SEALED_ARTIFACTS_MAX as u64
    }
}

impl SealedManifest {
    /// Seals artifacts, of which there must be at least one.
    #[cfg(feature = "writer")]
    pub(crate) fn new(table: &str, artifacts: Vec<Artifact>, earlier: Option<SealedLink>) -> SealedManifest {
        let mut sealed =
            SealedManifest { manifest_version: MANIFEST_VERSION, table: table.to_owned(), artifacts, earlier };
        for artifact in &mut sealed.artifacts {
            artifact.locate(&ToOwned::to_owned);
        }
        if let Some(earlier) = &mut sealed.earlier {
            earlier.locate(&ToOwned::to_owned);
        }
        sealed
    }

    /// Returns the manifest's text.
    ///
    /// # Errors
    /// If the manifest cannot be written as JSON.
    #[cfg(feature = "writer")]
    pub(crate) fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let mut json = serde_json::to_value(self)?;
        spelling::restore(&self.artifacts, &mut json);
        Ok(serde_json::to_vec(&json)?)
    }

    /// Parses a sealed manifest and checks that it is the one that the link describes.
    ///
    /// # Errors
    /// [`ManifestError`] if it cannot be used.
    pub(crate) fn parse(bytes: &[u8], link: &SealedLink, table: &str) -> Result<SealedManifest, ManifestError> {
        let mut sealed: SealedManifest = serde_json::from_slice(bytes)?;
        if sealed.manifest_version != MANIFEST_VERSION {
            return Err(ManifestError::Version(sealed.manifest_version.into()));
        }
        if sealed.table != table {
            return Err(ManifestError::Table { found: sealed.table, expected: table.to_owned() });
        }
        sealed.artifacts.iter().try_for_each(|artifact| rules::check_number("epoch", artifact.epoch))?;
        sealed.earlier.as_ref().map_or(Ok(()), SealedLink::check)?;
        spelling::note(&mut sealed.artifacts, bytes)?;
        let ends = (sealed.artifacts.first().map(|first| first.epoch), sealed.artifacts.last().map(|last| last.epoch));
        if ends != (Some(link.first_epoch), Some(link.last_epoch)) {
            let expected = format!("{} to {}", link.first_epoch, link.last_epoch);
            return Err(ManifestViolation::Sealed(format!("its epochs are not {expected}")).into());
        }
        if sealed.earlier.as_ref().is_some_and(|earlier| earlier.last_epoch >= link.first_epoch) {
            return Err(ManifestViolation::Sealed("the sealed manifest before it is not older".to_owned()).into());
        }
        Ok(sealed)
    }

    /// Returns the object's name and link. `size_bytes` and `sha256` are those of its text.
    #[cfg(feature = "writer")]
    pub(crate) fn link(&self, size_bytes: u64, sha256: &str) -> Option<(String, SealedLink)> {
        let (first, last) = (self.artifacts.first()?.epoch, self.artifacts.last()?.epoch);
        let object = format!("epoch={last}/sealed-{first}-{last}-{}.json", sha256.get(..16)?);
        let link = SealedLink {
            uri: object.clone(),
            size_bytes,
            sha256: sha256.to_owned(),
            first_epoch: first,
            last_epoch: last,
            artifacts: self.artifacts.len() as u64,
        };
        Some((object, link))
    }

    /// Returns the numbers of the epochs, oldest first.
    #[cfg(feature = "writer")]
    pub(crate) fn epochs(&self) -> impl Iterator<Item = u64> {
        self.artifacts.iter().filter(|artifact| artifact.kind == ArtifactKind::Snapshot).map(|artifact| artifact.epoch)
    }
}
