//! The native format: a base whose footer also has the description of the snapshot.

use std::io::{self, Write};
use std::path::Path;

use super::description::{self, SnapshotDescription};
use super::open::OpenSnapshot;
use crate::base::{Base, BaseError};
use crate::head::Head;
use crate::store::{BaseFooter, MegabyteChecksums, RowDefinition, StoreError};

/// Writes the rows of a base as the state at `head`.
///
/// # Errors
/// When the base cannot be read, or the file cannot be written.
pub(super) fn write(
    base: &Base,
    head: Head,
    about: &SnapshotDescription,
    definition: &RowDefinition,
    out: &mut impl Write,
) -> Result<(), BaseError> {
    let (mut sums, mut at) = (MegabyteChecksums::default(), 0);
    loop {
        let bytes = base.read(at)?;
        if bytes.is_empty() {
            break;
        }
        at += bytes.len() as u64;
        sums.update(&bytes);
        out.write_all(&bytes)?;
    }
    let footer = BaseFooter {
        instance: about.manifest.instance().0,
        rows: base.rows(),
        bytes: at,
        schema: Some(laredo_proto::schema::to_wire(base.schema())),
        definition: Some(definition.clone()),
        checksums: sums.finish(),
        about: serde_json::to_string(about).map_err(io::Error::from)?,
        ..BaseFooter::at(head)
    };
    out.write_all(&footer.ending())?;
    Ok(())
}

/// Reads the footer of a file.
///
/// # Errors
/// When the file cannot be read, or is damaged.
pub(super) fn open(path: &Path) -> Result<OpenSnapshot, StoreError> {
    let (base, footer) = Base::open(path)?;
    let about: SnapshotDescription = description::parse(footer.about.as_bytes(), path)?;
    if about.manifest.instance().0 != footer.instance {
        return Err(StoreError::damaged(path, base.bytes(), "it names two journals"));
    }
    Ok(OpenSnapshot::native(about, footer.definition.unwrap_or_default(), base))
}
