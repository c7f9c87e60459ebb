//! The names of an archive's objects, relative to its prefix.

use laredo_core::Lsn;

use crate::format::ArtifactFormat;
use crate::manifest::ArtifactKind;

/// The manifest's name.
pub const MANIFEST: &str = "manifest.json";

/// Returns a position in the form that names use: `0_19F000`.
#[must_use]
pub fn file_position(position: Lsn) -> String {
    position.to_string().replace('/', "_")
}

/// Returns an artifact's name, such as `epoch=1/snapshot-0_19F000.jsonl` or
/// `epoch=1/diff-0_19F000-0_1A2B3C.jsonl`. Returns `None` for a diff without `from`.
#[must_use]
pub fn artifact_name(
    kind: ArtifactKind,
    epoch: u64,
    from: Option<Lsn>,
    to: Lsn,
    format: ArtifactFormat,
) -> Option<String> {
    spelled_name(kind, epoch, from.map(|from| from.to_string()).as_deref(), &to.to_string(), format)
}

/// Returns an artifact's name for positions as a manifest spells them.
pub(crate) fn spelled_name(
    kind: ArtifactKind,
    epoch: u64,
    from: Option<&str>,
    to: &str,
    format: ArtifactFormat,
) -> Option<String> {
    let (to, extension) = (to.replace('/', "_"), format.extension());
    Some(match kind {
        ArtifactKind::Diff => format!("epoch={epoch}/diff-{}-{to}.{extension}", from?.replace('/', "_")),
        ArtifactKind::Snapshot => format!("epoch={epoch}/snapshot-{to}.{extension}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let (from, to) = (Lsn(0x0019_F000), Lsn(0x001A_2B3C));
        let jsonl: ArtifactFormat = "jsonl".parse().unwrap();
        let packed: ArtifactFormat = "protobuf.zst".parse().unwrap();
        let name = |kind, epoch, from, to, format| artifact_name(kind, epoch, from, to, format).unwrap();
        assert_eq!(name(ArtifactKind::Snapshot, 1, None, from, jsonl), "epoch=1/snapshot-0_19F000.jsonl");
        assert_eq!(name(ArtifactKind::Diff, 1, Some(from), to, jsonl), "epoch=1/diff-0_19F000-0_1A2B3C.jsonl");
        assert_eq!(artifact_name(ArtifactKind::Diff, 1, None, to, jsonl), None);
        assert_eq!(
            name(ArtifactKind::Snapshot, 2, None, Lsn(0x16_B374_D848), packed),
            "epoch=2/snapshot-16_B374D848.pb.zst"
        );
    }
}
