//! Fuzz targets of archives: artifacts and manifests. An archive may come from anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use laredo_core::{Cell, Column, CommitMark, KeyColumns, Lsn, Schema, ScopedMark, Tuple, TupleBuf};
use laredo_fuzz::{FuzzTarget, outcome};

use crate::layout::{ArtifactFormat, ArtifactKind};

fn schema() -> Arc<Schema> {
    let column = |(name, type_oid, type_name): (&str, u32, &str)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        not_null: false,
        is_text: false,
    };
    let columns = [("id", 20, "bigint"), ("name", 25, "text"), ("n", 1700, "numeric"), ("data", 3802, "jsonb")];
    Arc::new(Schema::new(columns.map(column).to_vec(), KeyColumns::new([0]), BTreeMap::new()))
}

fn row(id: i64, name: Option<&str>) -> Tuple {
    let number = [0, 2, 0, 0, 0, 0, 0, 2, 0, 12, 13, 128];
    let name = name.map_or(Cell::Null, |name| Cell::Value(name.as_bytes()));
    let cells = [Cell::Value(&id.to_be_bytes()), name, Cell::Value(&number), Cell::Value(b"\x01{\"a\": [1, null]}")];
    cells.into_iter().collect::<TupleBuf>().as_ref().to_tuple()
}

mod artifacts {
    use super::*;
    use crate::format::{ArchivedChange, ArtifactReader, ArtifactWriter};
    use crate::net_changes::NetChange;

    /// The first byte of an input: the number of the format, the kind of the artifact, and whether
    /// the rest is compressed before it is read.
    const DIFF: u8 = 4;
    const PLAIN: u8 = 8;

    fn unpacked(format: ArtifactFormat, written: Vec<u8>) -> Vec<u8> {
        if format.is_packed() {
            zstd::decode_all(written.as_slice()).expect("it was written just now")
        } else {
            written
        }
    }

    fn seeds() -> Vec<Vec<u8>> {
        let rows = [row(1, Some("one\n\u{e9}")), row(i64::MAX, None)];
        let mut seeds = Vec::new();
        for (number, format) in (0..).zip(ArtifactFormat::ALL) {
            let mut writer = ArtifactWriter::new(format, schema(), Vec::new()).expect("a writer");
            rows.iter().for_each(|row| writer.row(row.as_ref()).expect("a valid row"));
            let snapshot = writer.finish().expect("a buffer");
            let mut writer = ArtifactWriter::new(format, schema(), Vec::new()).expect("a writer");
            for change in [
                NetChange::Truncate,
                NetChange::Insert(&rows[0]),
                NetChange::Update { old: &rows[0], new: &rows[0] },
                NetChange::Delete(&rows[1]),
            ] {
                writer.change(&change).expect("a valid change");
            }
            let diff = writer.finish().expect("a buffer");
            if format.is_packed() {
                seeds.push([&[number | PLAIN], snapshot.as_slice()].concat());
            }
            seeds.push([&[number][..], &unpacked(format, snapshot)].concat());
            seeds.push([&[number | DIFF][..], &unpacked(format, diff)].concat());
        }
        seeds
    }

    fn read_rows(format: ArtifactFormat, bytes: &[u8]) -> Result<Vec<Tuple>, String> {
        let mut reader = ArtifactReader::new(format, schema(), bytes).map_err(outcome)?;
        let mut rows = Vec::new();
        while let Some(row) = reader.row().map_err(outcome)? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// Writes rows and reads them again.
    fn rewritten(format: ArtifactFormat, rows: &[Tuple]) -> Vec<Tuple> {
        let mut writer = ArtifactWriter::new(format, schema(), Vec::new()).expect("a writer");
        rows.iter().for_each(|row| writer.row(row.as_ref()).expect("a row that was read can be written"));
        read_rows(format, &writer.finish().expect("a buffer")).expect("it was written just now")
    }

    /// Reads rows, which are written and read again. The spelling of a document is lost when it is
    /// written for the first time.
    fn read_snapshot(format: ArtifactFormat, bytes: &[u8]) -> Result<u64, String> {
        let once = rewritten(format, &read_rows(format, bytes)?);
        assert_eq!(rewritten(format, &once), once);
        Ok(once.len() as u64)
    }

    fn read_diff(format: ArtifactFormat, bytes: &[u8]) -> Result<u64, String> {
        let mut lines = Vec::new();
        let mut reader = ArtifactReader::new(format, schema(), bytes).map_err(outcome)?;
        let is_shown = loop {
            match reader.push_json_line(ArtifactKind::Diff, &mut lines) {
                Ok(true) => {}
                Ok(false) => break true,
                Err(_) => break false,
            }
        };
        let (mut reader, mut kinds) = (ArtifactReader::new(format, schema(), bytes).map_err(outcome)?, 0);
        while let Some(change) = reader.change().map_err(outcome)? {
            kinds |= match change {
                ArchivedChange::Truncate => 1,
                ArchivedChange::Put(_) => 2,
                ArchivedChange::Move { .. } => 4,
                ArchivedChange::Delete(_) => 8,
            };
        }
        assert!(is_shown, "what is read can be shown");
        Ok(16 + kinds)
    }

    #[test]
    fn any_artifact_is_refused_or_its_rows_can_be_written() {
        let words =
            ["\"action\":", "\"old\":", "\"new\":", "\"INSERT\"", "\"TRUNCATE\"", "null", "1e999", "{", "[[", "\n"];
        FuzzTarget::new("artifacts", seeds()).dictionary(&words).run(|input| {
            let (head, contents) = input.split_first().ok_or("it is empty")?;
            let format = ArtifactFormat::ALL[usize::from(head % 4)];
            let packed = match format.is_packed() && head & PLAIN == 0 {
                true => zstd::encode_all(contents, 1).map_err(outcome)?,
                false => contents.to_vec(),
            };
            if head & DIFF == 0 { read_snapshot(format, &packed) } else { read_diff(format, &packed) }
        });
    }
}

/// Returns a manifest as it is written.
fn sample_manifest() -> crate::manifest::Manifest {
    use crate::manifest::{Artifact, ArtifactObject, Manifest, SealedLink, WriterId};
    let time = "2026-01-02T03:04:05Z";
    let with_object = |artifact: Artifact, count: u64| {
        let is_base = artifact.kind == ArtifactKind::Snapshot;
        let stored = ArtifactObject {
            uri: "file:///a/epoch=3/x.jsonl".to_owned(),
            size_bytes: 10,
            sha256: Some("ab".repeat(32)),
            unpacked_bytes: Some(10),
        };
        let mut artifact = artifact;
        *(if is_base { &mut artifact.row_count } else { &mut artifact.change_count }) = count;
        artifact.formats.insert("jsonl".to_owned(), stored);
        artifact
    };
    let base = with_object(Artifact::new(ArtifactKind::Snapshot, 3, None, Lsn(0x100), time), 7);
    let diff = with_object(Artifact::new(ArtifactKind::Diff, 3, Some(Lsn(0x100)), Lsn(0x200), time), 2);
    let sealed = SealedLink {
        uri: "file:///a/epoch=2/sealed-1-2-abababababababab.json".to_owned(),
        size_bytes: 99,
        sha256: "ab".repeat(32),
        first_epoch: 1,
        last_epoch: 2,
        artifacts: 4,
    };
    let manifest = Manifest {
        writer: Some(WriterId { id: "w".to_owned(), fence: 7 }),
        sealed: Some(sealed),
        ..Manifest::empty("public.t", time)
    };
    let manifest = manifest.with_snapshot(base, &schema()).expect("it keeps the rules");
    manifest.with_diff(diff).expect("it keeps the rules")
}

mod manifests {
    use super::*;
    use crate::manifest::Manifest;

    /// Parses a manifest. What is written of it is the same, and every question has an answer.
    #[test]
    fn any_manifest_is_refused_or_written_as_it_was_read() {
        let mark = ScopedMark { commit: CommitMark { end: Lsn(0x200), ..CommitMark::default() }, scope: 3 };
        let mut marked = sample_manifest();
        if let Some(last) = marked.artifacts.last_mut() {
            last.mark = Some(mark);
        }
        // As the public Go program spells positions.
        let foreign = r#"{"manifest_version":1,"table":"public.t","epoch":1,"updated_at":"2026-01-02T03:04:05Z",
            "head_position":"0/0019F000","artifacts":[{"kind":"snapshot","epoch":1,"from_position":null,
            "to_position":"0/0019F000","created_at":"2026-01-02T03:04:05Z","row_count":1,
            "formats":{"jsonl":{"uri":"x","size_bytes":1}}}],"columns":null}"#;
        let seeds = vec![
            sample_manifest().to_json().expect("it keeps the rules"),
            marked.to_json().expect("it keeps the rules"),
            foreign.as_bytes().to_vec(),
        ];
        let words =
            ["null", "\"0/00000200\"", "\"snapshot\"", "\"diff\"", "[]", "{}", "18446744073709551615", "\"history\":"];
        FuzzTarget::new("manifests", seeds).dictionary(&words).run(|input| {
            let manifest = Manifest::parse(input, None).map_err(outcome)?;
            let written = manifest.to_json().expect("it keeps the rules");
            let again = Manifest::parse(&written, Some(&manifest.table)).expect("it was written just now");
            assert_eq!(again, manifest);
            assert_eq!(again.to_json().ok(), Some(written));
            for history in manifest.histories() {
                assert!(manifest.of_history(history.id).is_some());
            }
            for at in [Lsn(0), Lsn(0x150), Lsn(u64::MAX)] {
                if let Ok(found) = manifest.locate(at) {
                    assert!(!manifest.chain_to(found).is_empty());
                }
            }
            let has_schema = manifest.schema(manifest.epoch, &["id".to_owned()]).is_ok_and(|schema| schema.is_some());
            Ok(2 * manifest.chain().len().min(20) as u64 + u64::from(has_schema))
        });
    }
}

mod sealed_manifests {
    use super::*;
    use crate::manifest::{SealedLink, SealedManifest};

    #[test]
    fn any_sealed_manifest_is_refused_or_written_as_it_was_read() {
        let manifest = sample_manifest();
        let sealed = SealedManifest::new(&manifest.table, manifest.artifacts.clone(), manifest.sealed.clone());
        let seeds = vec![sealed.to_json().expect("it keeps the rules")];
        let link = SealedLink { first_epoch: 3, last_epoch: 3, ..manifest.sealed.expect("the sample has one") };
        FuzzTarget::new("sealed_manifests", seeds).run(|input| {
            let sealed = SealedManifest::parse(input, &link, "public.t").map_err(outcome)?;
            let written = sealed.to_json().map_err(outcome)?;
            let again = SealedManifest::parse(&written, &link, "public.t").expect("it was written just now");
            assert_eq!(again, sealed);
            Ok(sealed.artifacts.len().min(20) as u64)
        });
    }
}
