//! The rules that every published manifest keeps.

use laredo_core::Lsn;

use super::{Artifact, ArtifactKind};

/// The largest epoch and the largest fencing number of a manifest. Every reader of JSON holds them
/// exactly.
pub const MANIFEST_NUMBER_MAX: u64 = (1 << 53) - 1;

/// A rule that a manifest breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestViolation {
    /// The first artifact of an epoch is a diff, or the epoch has two snapshots.
    #[error("epoch {0} does not begin with its only snapshot")]
    Opening(u64),
    /// A diff does not begin at the end of the artifact before it.
    #[error("the diff of epoch {epoch} up to {to} begins at {from}, and the artifact before it ends at {before}")]
    Gap {
        /// The epoch.
        epoch: u64,
        /// The position where the diff begins.
        from: String,
        /// The position where the diff ends.
        to: String,
        /// The position where the artifact before it ends.
        before: String,
    },
    /// Positions do not increase within an epoch.
    #[error("in epoch {epoch} {to} does not come after {before}")]
    Order {
        /// The epoch.
        epoch: u64,
        /// The position where an artifact ends.
        to: String,
        /// The position where the artifact before it ends.
        before: String,
    },
    /// An epoch comes after a later one.
    #[error("epoch {0} comes after a later one")]
    Epochs(u64),
    /// A number is larger than [`MANIFEST_NUMBER_MAX`].
    #[error(
        "its {name} {number} is larger than {MANIFEST_NUMBER_MAX}; put back an earlier manifest, or begin another \
         archive under another prefix"
    )]
    TooLarge {
        /// The name of the number.
        name: &'static str,
        /// The number.
        number: u64,
    },
    /// The manifest's epoch or head is not that of the last artifact.
    #[error("its {0} is not that of its last artifact")]
    Head(&'static str),
    /// An artifact has no object in any format.
    #[error("the artifact of epoch {epoch} that ends at {to} has no object")]
    NoObject {
        /// The epoch.
        epoch: u64,
        /// The position where the artifact ends.
        to: String,
    },
    /// The columns are not those of a table.
    #[error("its columns are not those of a table: {0}")]
    Columns(String),
    /// A sealed manifest is not the one that its link describes.
    #[error("the sealed manifest does not match its link: {0}")]
    Sealed(String),
}

/// Checks that a number of a manifest is in its range.
pub(super) fn check_number(name: &'static str, number: u64) -> Result<(), ManifestViolation> {
    match number <= MANIFEST_NUMBER_MAX {
        true => Ok(()),
        false => Err(ManifestViolation::TooLarge { name, number }),
    }
}

/// Returns the number after a number of a manifest.
///
/// # Errors
/// If a manifest cannot have the next number.
#[cfg(feature = "writer")]
pub(crate) fn next_number(name: &'static str, number: u64) -> Result<u64, ManifestViolation> {
    let next = number.saturating_add(1);
    check_number(name, next).map(|()| next)
}

/// Checks that an artifact may follow another one, or be the first if `before` is `None`.
pub(super) fn check_order(before: Option<&Artifact>, artifact: &Artifact) -> Result<(), ManifestViolation> {
    let Artifact { epoch, to_position, .. } = artifact;
    let of_same_epoch = before.filter(|before| before.epoch == *epoch);
    check_number("epoch", *epoch)?;
    if before.is_some_and(|before| before.epoch > *epoch) {
        return Err(ManifestViolation::Epochs(*epoch));
    }
    if of_same_epoch.is_some() == (artifact.kind == ArtifactKind::Snapshot) {
        return Err(ManifestViolation::Opening(*epoch));
    }
    if artifact.formats.is_empty() {
        return Err(ManifestViolation::NoObject { epoch: *epoch, to: shown(*to_position) });
    }
    let Some(before) = of_same_epoch else { return Ok(()) };
    // Other writers may leave out the end of a snapshot. The diff after it may then begin anywhere.
    let end = before.to_position.or(artifact.from_position);
    if artifact.from_position != end {
        return Err(ManifestViolation::Gap {
            epoch: *epoch,
            from: shown(artifact.from_position),
            to: shown(*to_position),
            before: shown(end),
        });
    }
    // A missing position is lower than every other.
    if *to_position <= end {
        return Err(ManifestViolation::Order { epoch: *epoch, to: shown(*to_position), before: shown(end) });
    }
    Ok(())
}

fn shown(position: Option<Lsn>) -> String {
    position.map_or_else(|| "nowhere".to_owned(), |position| position.to_string())
}
