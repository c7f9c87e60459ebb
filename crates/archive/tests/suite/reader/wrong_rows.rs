//! Objects that contain a wrong row but otherwise match the manifest. Only the checksum of the rows
//! reveals it.

use laredo_archive::ArchivePoint;
use laredo_core::Lsn;
use ring::digest::{SHA256, digest};
use serde_json::Value;

use crate::reader::sample::SampleArchive;

/// A change to the lines of an object.
type ObjectLinesEdit = fn(&mut Vec<String>);

/// A changed cell, a missing row or change, and an extra one.
const DEEDS: [(&str, ObjectLinesEdit); 3] = [
    ("a changed cell", |lines| {
        let place = lines.iter().position(|line| line.contains("\"body\":\"")).unwrap();
        let at = lines[place].rfind("\"body\":\"").unwrap() + 8;
        lines[place].insert(at, 'X');
    }),
    ("a missing row", |lines| drop(lines.pop())),
    ("an extra row", |lines| {
        let place = lines.iter().position(|line| !line.contains("TRUNCATE")).unwrap();
        let extra = if lines[place].contains("\"action\"") {
            r#"{"action":"INSERT","key":"77","new":{"id":77,"body":"extra"}}"#
        } else {
            r#"{"id":77,"body":"extra"}"#
        };
        lines.push(extra.to_owned());
    }),
];

/// Plants a wrong row into an object, and adapts sizes, SHA-256 and count in the manifest.
fn plant(sample: &SampleArchive, object: &str, deed: ObjectLinesEdit) {
    let text = String::from_utf8(sample.read(object)).unwrap();
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    deed(&mut lines);
    let bytes = lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes();
    let mut manifest = sample.manifest();
    let artifacts = manifest["artifacts"].as_array_mut().unwrap();
    for artifact in artifacts {
        let stored = &mut artifact["formats"]["jsonl"];
        if stored["uri"].as_str().unwrap().ends_with(object) {
            stored["size_bytes"] = bytes.len().into();
            stored["unpacked_bytes"] = bytes.len().into();
            let sha256 = digest(&SHA256, &bytes);
            stored["sha256"] = sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
            let count = if artifact["kind"] == "snapshot" { "row_count" } else { "change_count" };
            artifact[count] = Value::from(lines.len());
        }
    }
    sample.write(object, &bytes);
    sample.set_manifest(&manifest);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_row_is_found_in_each_object() {
    let objects = SampleArchive::written(&["jsonl"]).await.objects();
    for (what, deed) in DEEDS {
        for place in 0..objects.len() {
            let sample = SampleArchive::written(&["jsonl"]).await;
            let (object, end) = sample.objects()[place].clone();
            if sample.read(&object).is_empty() {
                continue;
            }
            plant(&sample, &object, deed);
            let faults = sample.faults().await;
            let [fault] = faults.as_slice() else { panic!("{what} in {object}: {faults:#?}") };
            assert!(fault.contains(&object) && fault.contains("have the checksum"), "{what} in {object}: {fault}");
            let newest = sample.objects().iter().rposition(|(_, at)| *at == end).unwrap();
            if newest == place {
                let refused = sample.rebuilt(ArchivePoint::Position(end)).await.unwrap_err();
                assert!(refused.is_damage() && refused.to_string().contains(&object), "{what} in {object}: {refused}");
            }
        }
    }
}

/// Objects of one artifact that contain different changes. Only the first object is applied; the
/// others are compared with it.
#[tokio::test(start_paused = true)]
async fn a_format_with_other_changes_is_found() {
    for (what, deed) in DEEDS {
        let sample = SampleArchive::written(&["jsonl", "protobuf"]).await;
        let diffs = sample.objects().into_iter().filter(|(object, _)| object.contains("diff-"));
        let (object, _) = diffs.clone().find(|(object, _)| object.ends_with(".jsonl")).unwrap();
        plant(&sample, &object, deed);
        let faults = sample.faults().await;
        assert!(
            faults.iter().any(|fault| fault.contains(&object) || fault.contains("other changes")),
            "{what}: {faults:#?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn artifacts_of_writers_without_checksums_are_read() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let mut manifest = sample.manifest();
    for artifact in manifest["artifacts"].as_array_mut().unwrap() {
        artifact.as_object_mut().unwrap().remove("checksum").expect("each has one");
    }
    sample.set_manifest(&manifest);
    assert_eq!(sample.faults().await, Vec::<String>::new());
    let end: Lsn = sample.history.position;
    assert_eq!(sample.rebuilt(ArchivePoint::Latest).await.unwrap(), sample.history.states[&end]);
}
