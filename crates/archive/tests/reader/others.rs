//! Archives as other programs may write them: without checksums, schemas and writers; the changes of a diff in any order, its TRUNCATE
//! among them; positions that are not known.

use laredo_archive::{At, MANIFEST};
use laredo_core::Lsn;
use serde_json::{Value, json};

use crate::sample::{Sample, shown};

const BASE: Lsn = Lsn(0x100);

/// Without what is ours.
fn stripped(mut manifest: Value) -> Value {
    let top = manifest.as_object_mut().unwrap();
    top.remove("writer");
    top.remove("source");
    for column in top["columns"].as_array_mut().unwrap() {
        column.as_object_mut().unwrap().retain(|name, _| !["DefaultValue", "MaxLength"].contains(&name.as_str()));
    }
    for artifact in top["artifacts"].as_array_mut().unwrap() {
        artifact.as_object_mut().unwrap().remove("schema");
        for stored in artifact["formats"].as_object_mut().unwrap().values_mut() {
            stored.as_object_mut().unwrap().remove("sha256");
        }
    }
    manifest
}

/// An object's entries, each with its length where it has one.
fn entries(bytes: &[u8], format: &str) -> Vec<Vec<u8>> {
    if format == "jsonl" {
        return bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    }
    let (mut entries, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let head = rest.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let length = rest[..head].iter().rev().fold(0, |length, byte| length << 7 | usize::from(byte & 0x7F));
        let (entry, after) = rest.split_at(head + length);
        entries.push(entry.to_vec());
        rest = after;
    }
    entries
}

async fn another(format: &str) -> Sample {
    let sample = Sample::written(&[format]).await;
    for (object, _) in sample.objects().iter().filter(|(object, _)| object.contains("diff")) {
        let mut lines = entries(&sample.read(object), format);
        // The TRUNCATE, which is first, becomes the last.
        lines.reverse();
        sample.write(object, &lines.concat());
    }
    sample.set_manifest(&stripped(sample.manifest()));
    sample
}

async fn every_boundary_is_right(sample: &Sample) {
    assert_eq!(sample.faults().await, Vec::<String>::new());
    for (_, position) in sample.objects() {
        assert_eq!(
            sample.rebuilt(At::Position(position)).await.unwrap(),
            sample.history.states[&position],
            "{position}"
        );
    }
    assert_eq!(sample.rebuilt(At::Latest).await.unwrap(), sample.history.states[&sample.history.position]);
}

#[tokio::test(start_paused = true)]
async fn changes_come_in_any_order_the_truncate_last() {
    for format in ["jsonl", "protobuf"] {
        let sample = another(format).await;
        let truncates = sample.objects().iter().any(|(object, _)| {
            let lines = entries(&sample.read(object), format);
            lines.len() > 1 && String::from_utf8_lossy(lines.last().unwrap()).contains("TRUNCATE")
        });
        assert!(truncates);
        every_boundary_is_right(&sample).await;
    }
}

/// What is inherited may have no position.
#[tokio::test(start_paused = true)]
async fn a_base_of_no_position_is_begun_with() {
    let sample = another("jsonl").await;
    let whole = sample.manifest();
    let oldest = |manifest: &Value| -> Value {
        let mut manifest = manifest.clone();
        manifest["artifacts"].as_array_mut().unwrap().truncate(6);
        manifest["epoch"] = json!(1);
        manifest["head_position"] = manifest["artifacts"][5]["to_position"].clone();
        manifest["artifacts"][0]["to_position"] = json!("");
        manifest
    };
    // As an object that was there before, under the name that it has.
    sample.set_manifest(&oldest(&whole));
    assert_eq!(sample.faults().await, Vec::<String>::new());
    assert_eq!(sample.rebuilt(At::Latest).await.unwrap(), sample.history.states[&Lsn(0x150)]);
    assert_eq!(sample.rebuilt(At::Position(Lsn(0x110))).await.unwrap(), sample.history.states[&Lsn(0x110)]);

    // Under any name, and the diff after it, too: the addresses tell.
    let mut manifest = oldest(&whole);
    for (place, from, to) in
        [(0, "snapshot-0_100", "snapshot-inherited"), (1, "diff-0_100-0_110", "diff-inherited-0_110")]
    {
        let name = |stem: &str| format!("epoch=1/{stem}.jsonl");
        sample.write(&name(to), &sample.read(&name(from)));
        std::fs::remove_file(sample.path().join(name(from))).unwrap();
        manifest["artifacts"][place]["formats"]["jsonl"]["uri"] = sample.uri(&name(to)).into();
    }
    manifest["artifacts"][1]["from_position"] = json!("");
    sample.set_manifest(&manifest);
    assert_eq!(sample.faults().await, Vec::<String>::new());
    assert_eq!(sample.rebuilt(At::Latest).await.unwrap(), sample.history.states[&Lsn(0x150)]);

    // Nothing but the base.
    manifest["artifacts"].as_array_mut().unwrap().truncate(1);
    manifest["head_position"] = json!("");
    sample.set_manifest(&manifest);
    let archive = sample.open().await.unwrap();
    assert_eq!(archive.boundary(At::Latest).unwrap().position, None);
    assert_eq!(sample.rebuilt(At::Latest).await.unwrap(), sample.history.states[&BASE]);
}

/// An update from a row of another key is what it says.
#[tokio::test(start_paused = true)]
async fn a_key_that_was_changed_leaves_its_place() {
    let sample = another("jsonl").await;
    let (object, _) = sample.objects().pop().unwrap();
    let row = |id: i64, body: &str| json!({ "id": id, "body": body });
    let lines = [
        // One that moves to where another one was, and one that is made where it stood.
        json!({ "action": "INSERT", "key": "0", "new": row(0, "anew") }),
        json!({ "action": "UPDATE", "key": "1", "old": row(0, "first"), "new": row(1, "moved") }),
        json!({ "action": "UPDATE", "key": "3", "old": { "id": 2 }, "new": row(3, "moved") }),
        json!({ "action": "DELETE", "key": "4", "old": { "id": 4 } }),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    sample.write(&object, text.as_bytes());
    let mut manifest = sample.manifest();
    let last = manifest["artifacts"].as_array_mut().unwrap().last_mut().unwrap();
    last["change_count"] = json!(lines.len());
    last["formats"]["jsonl"]["size_bytes"] = json!(text.len());
    sample.set_manifest(&manifest);
    let rebuilt =
        sample.open().await.unwrap().rebuild(At::Latest, &laredo_archive::ReadProgress::default()).await.unwrap();
    let rows = shown(&rebuilt.table);
    let body = |id: i64| rows.iter().find(|row| row["id"] == id).map(|row| row["body"].as_str().unwrap());
    let expected = [Some("anew"), Some("moved"), None, Some("moved"), None];
    assert_eq!([0, 1, 2, 3, 4].map(body), expected);
}

/// Nobody knows what their types are made of: their values stay what JSON says of them.
#[tokio::test(start_paused = true)]
async fn user_defined_types_are_what_json_says() {
    let sample = another("jsonl").await;
    let mut manifest = sample.manifest();
    for type_oid in [json!(16_400), json!(0)] {
        manifest["columns"][1]["Type"] = json!("mood");
        manifest["columns"][1]["TypeOID"] = type_oid;
        sample.set_manifest(&manifest);
        let archive = sample.open().await.unwrap();
        let rebuilt = archive.rebuild(At::Latest, &laredo_archive::ReadProgress::default()).await.unwrap();
        let row = shown(&rebuilt.table).into_iter().find(|row| row["id"] == 6).unwrap();
        assert_eq!(row["body"], "changed 6");
    }
}

/// An archive of ours that an older reader wrote on: what it does not know is left aside.
#[tokio::test(start_paused = true)]
async fn keys_that_nobody_knows_are_left_aside() {
    let sample = Sample::written(&["jsonl"]).await;
    let mut manifest = sample.manifest();
    manifest["more"] = json!({ "x": 1 });
    manifest["artifacts"][1]["more"] = json!([1]);
    manifest["artifacts"][1]["formats"]["jsonl"]["more"] = json!(null);
    sample.set_manifest(&manifest);
    every_boundary_is_right(&sample).await;
    assert!(sample.path().join(MANIFEST).exists());
}
