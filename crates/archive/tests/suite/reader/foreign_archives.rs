//! Archives of other programs that the format allows. They lack laredo's additions. Their diffs are
//! in any order, with each TRUNCATE first. They may have a base without a position, or a base at
//! every restart.

use laredo_archive::{ArchivePoint, ReadProgress};
use serde_json::{Map, Value, json};

use crate::reader::sample::{SampleArchive, shown};

/// The number of artifacts in the sample's first epoch: a base and the diffs after it.
const FIRST_EPOCH: usize = 6;
/// The number of changes in the longest diff, so that each change comes first once.
const TURNS: usize = 25;

/// Removes everything that a reader may ignore.
pub(crate) fn without_additions(sample: &SampleArchive) {
    let mut manifest = sample.manifest();
    let keys = manifest.as_object_mut().unwrap();
    keys.retain(|key, _| !["writer", "source"].contains(&key.as_str()));
    for artifact in manifest["artifacts"].as_array_mut().unwrap() {
        for key in ["schema", "checksum"] {
            artifact.as_object_mut().unwrap().remove(key);
        }
        let formats: &mut Map<String, Value> = artifact["formats"].as_object_mut().unwrap();
        for stored in formats.values_mut() {
            stored.as_object_mut().unwrap().retain(|key, _| !["sha256", "unpacked_bytes"].contains(&key.as_str()));
        }
    }
    sample.set_manifest(&manifest);
}

/// Checks that the archive is valid, and has the table's rows at each of its boundaries.
pub(crate) async fn is_right(sample: &SampleArchive) {
    assert_eq!(sample.faults().await, Vec::<String>::new());
    for position in sample.objects().into_iter().map(|(_, end)| end) {
        let rebuilt = sample.rebuilt(ArchivePoint::Position(position)).await.unwrap();
        assert_eq!(rebuilt, sample.history.states[&position], "at {position}");
    }
    assert_eq!(sample.rebuilt(ArchivePoint::Latest).await.unwrap(), sample.history.states[&sample.history.position]);
}

#[tokio::test(start_paused = true)]
async fn additions_may_be_missing_and_others_may_be_there() {
    for format in ["jsonl", "protobuf"] {
        let sample = SampleArchive::written(&[format]).await;
        without_additions(&sample);
        is_right(&sample).await;
        let mut manifest = sample.manifest();
        manifest["of_somebody_else"] = json!({ "x": 1 });
        manifest["artifacts"][1]["of_somebody_else"] = json!([1]);
        manifest["artifacts"][1]["formats"][format]["of_somebody_else"] = json!(null);
        sample.set_manifest(&manifest);
        is_right(&sample).await;
    }
}

/// Splits a diff into its changes: lines, or length-prefixed messages.
fn changes(format: &str, mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut changes = Vec::new();
    while !bytes.is_empty() {
        let length = match format {
            "jsonl" => bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1,
            _ => {
                let mut after = bytes;
                let message = prost::decode_length_delimiter(&mut after).unwrap();
                bytes.len() - after.len() + message
            }
        };
        let (change, rest) = bytes.split_at(length);
        changes.push(change.to_vec());
        bytes = rest;
    }
    changes
}

#[tokio::test(start_paused = true)]
async fn a_diff_may_be_in_any_order() {
    for format in ["jsonl", "protobuf"] {
        let sample = SampleArchive::written(&[format]).await;
        without_additions(&sample);
        let mut late_truncates = 0;
        for turn in 0..TURNS {
            for (object, _) in sample.objects().into_iter().filter(|(object, _)| object.contains("/diff-")) {
                let mut changes = changes(format, &sample.read(&object));
                match turn {
                    0 => changes.reverse(),
                    _ => changes.rotate_left(1),
                }
                let is_truncate = |change: &Vec<u8>| String::from_utf8_lossy(change).contains("TRUNCATE");
                late_truncates += usize::from(changes.iter().skip(1).any(is_truncate));
                sample.write(&object, &changes.concat());
            }
            is_right(&sample).await;
        }
        assert!(late_truncates > 0, "some diff begins with what its TRUNCATE does not concern");
    }
}

/// Returns an archive that begins with a base without a position.
async fn inherited() -> (SampleArchive, Value) {
    let sample = SampleArchive::written(&["jsonl"]).await;
    without_additions(&sample);
    let mut manifest = sample.manifest();
    let artifacts = manifest["artifacts"].as_array_mut().unwrap();
    artifacts.truncate(FIRST_EPOCH);
    let head = artifacts[FIRST_EPOCH - 1]["to_position"].clone();
    artifacts[0]["to_position"] = json!("");
    (manifest["epoch"], manifest["head_position"]) = (json!(1), head);
    (sample, manifest)
}

async fn is_inherited(sample: &SampleArchive, manifest: &Value) {
    sample.set_manifest(manifest);
    assert_eq!(sample.faults().await, Vec::<String>::new());
    let states: Vec<_> = sample.history.states.iter().take(FIRST_EPOCH).collect();
    for (position, state) in states.iter().skip(1) {
        assert_eq!(sample.rebuilt(ArchivePoint::Position(**position)).await.unwrap(), **state, "at {position}");
    }
    assert_eq!(sample.rebuilt(ArchivePoint::Latest).await.unwrap(), *states[FIRST_EPOCH - 1].1);
}

#[tokio::test(start_paused = true)]
async fn an_inherited_base_may_have_no_position() {
    let (sample, manifest) = inherited().await;
    is_inherited(&sample, &manifest).await;
}

/// Object names are made of positions. If a position is empty, only the URI gives the name of the
/// object.
#[tokio::test(start_paused = true)]
async fn where_a_position_is_empty_the_address_names_the_object() {
    let (sample, mut manifest) = inherited().await;
    manifest["artifacts"][1]["from_position"] = json!("");
    for (number, name) in ["epoch=1/snapshot-of-before.jsonl", "epoch=1/diff-after-that.jsonl"].into_iter().enumerate()
    {
        let (old, _) = &sample.objects()[number];
        sample.write(name, &sample.read(old));
        std::fs::remove_file(sample.path().join(old)).unwrap();
        manifest["artifacts"][number]["formats"]["jsonl"]["uri"] = sample.uri(name).into();
    }
    is_inherited(&sample, &manifest).await;
}

#[tokio::test(start_paused = true)]
async fn a_base_without_a_position_may_be_all_there_is() {
    let (sample, mut manifest) = inherited().await;
    manifest["artifacts"].as_array_mut().unwrap().truncate(1);
    manifest["head_position"] = json!("");
    sample.set_manifest(&manifest);
    assert_eq!(sample.faults().await, Vec::<String>::new());
    assert_eq!(sample.open().await.unwrap().boundary(ArchivePoint::Latest).unwrap().position, None);
    let first = sample.history.states.values().next().unwrap();
    assert_eq!(sample.rebuilt(ArchivePoint::Latest).await.unwrap(), *first);
}

/// Epochs that begin where the previous one ends, some of which contain only their base.
#[tokio::test(start_paused = true)]
async fn a_base_may_be_written_at_every_restart() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    without_additions(&sample);
    let mut manifest = sample.manifest();
    let artifacts = manifest["artifacts"].as_array_mut().unwrap();
    let second = artifacts[FIRST_EPOCH].clone();
    assert_eq!((&second["kind"], &second["epoch"]), (&json!("snapshot"), &json!(2)));
    assert_eq!(
        second["to_position"],
        artifacts[FIRST_EPOCH - 1]["to_position"],
        "it was written where the first epoch ended"
    );
    // Two more restarts, with nothing written in between.
    artifacts.insert(FIRST_EPOCH, second.clone());
    artifacts.insert(FIRST_EPOCH, second);
    for (artifact, epoch) in artifacts.iter_mut().skip(FIRST_EPOCH).zip([2, 3, 4, 4, 4]) {
        let uri = artifact["formats"]["jsonl"]["uri"].as_str().unwrap().to_owned();
        let name = uri.rsplit_once('/').unwrap().1;
        let new = format!("epoch={epoch}/{name}");
        std::fs::create_dir_all(sample.path().join(format!("epoch={epoch}"))).unwrap();
        sample.write(&new, &sample.read(&format!("epoch=2/{name}")));
        artifact["epoch"] = json!(epoch);
        artifact["formats"]["jsonl"]["uri"] = sample.uri(&new).into();
    }
    manifest["epoch"] = json!(4);
    sample.set_manifest(&manifest);
    is_right(&sample).await;
}

/// A changed key is normally a DELETE and an INSERT. An UPDATE that changes the key also removes
/// the old row.
#[tokio::test(start_paused = true)]
async fn an_update_that_changes_the_key_leaves_nothing_behind() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    without_additions(&sample);
    let row = |id: i64, body: &str| json!({ "id": id, "body": body });
    let diff = [
        json!({ "action": "INSERT", "key": "0", "new": row(0, "in the place that became free") }),
        json!({ "action": "UPDATE", "key": "1", "old": row(0, "first"), "new": row(1, "in an occupied place") }),
        json!({ "action": "UPDATE", "key": "3", "old": { "id": 2 }, "new": row(3, "the old row's key alone") }),
    ];
    let (object, _) = sample.objects().pop().unwrap();
    let lines: String = diff.iter().map(|change| format!("{change}\n")).collect();
    sample.write(&object, lines.as_bytes());
    let mut manifest = sample.manifest();
    let last = manifest["artifacts"].as_array_mut().unwrap().last_mut().unwrap();
    last["change_count"] = diff.len().into();
    last["formats"]["jsonl"]["size_bytes"] = lines.len().into();
    sample.set_manifest(&manifest);
    let rebuilt = sample.open().await.unwrap().rebuild(ArchivePoint::Latest, &ReadProgress::default()).await.unwrap();
    let rows = shown(&rebuilt.table);
    let bodies =
        [0, 1, 2, 3].map(|id| rows.iter().find(|row| row["id"] == id).map(|row| row["body"].as_str().unwrap()));
    let [free, occupied, alone] = ["in the place that became free", "in an occupied place", "the old row's key alone"];
    assert_eq!(bodies, [Some(free), Some(occupied), None, Some(alone)]);
}

/// A manifest's columns may name unknown types of another database. Their values stay as JSON has
/// them.
#[tokio::test(start_paused = true)]
async fn values_of_unknown_types_are_what_json_says() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    without_additions(&sample);
    let mut manifest = sample.manifest();
    manifest["columns"][1]["Type"] = json!("mood");
    manifest["columns"][1]["TypeOID"] = json!(16_400);
    sample.set_manifest(&manifest);
    let rebuilt = sample.open().await.unwrap().rebuild(ArchivePoint::Latest, &ReadProgress::default()).await.unwrap();
    let row = shown(&rebuilt.table).into_iter().find(|row| row["id"] == 6).unwrap();
    assert_eq!(row["body"], "changed 6");
}
