//! The manifest states the size of an object's contents before compression, and the reader checks
//! it.

use serde_json::Value;

use crate::reader::sample::SampleArchive;

const FORMATS: [&str; 4] = ["jsonl", "jsonl.zst", "protobuf", "protobuf.zst"];

fn contents(format: &str, object: &[u8]) -> Vec<u8> {
    if format.ends_with("zst") { zstd::decode_all(object).unwrap() } else { object.to_vec() }
}

#[tokio::test(start_paused = true)]
async fn the_manifest_states_the_size_of_all_contents() {
    let sample = SampleArchive::written(&FORMATS).await;
    let manifest = sample.manifest();
    let mut checked = 0;
    for artifact in manifest["artifacts"].as_array().unwrap() {
        for (format, stored) in artifact["formats"].as_object().unwrap() {
            let uri = stored["uri"].as_str().unwrap();
            let object = sample.read(&uri[uri.find("epoch=").unwrap()..]);
            assert_eq!(stored["unpacked_bytes"], contents(format, &object).len(), "{uri}");
            checked += 1;
        }
    }
    assert_eq!(checked, 9 * FORMATS.len());
}

#[tokio::test(start_paused = true)]
async fn another_size_than_that_of_the_contents_is_a_fault_of_the_object() {
    for format in FORMATS {
        let sample = SampleArchive::written(&[format]).await;
        let whole = sample.manifest();
        for (place, (object, _)) in sample.objects().into_iter().enumerate() {
            let right = whole["artifacts"][place]["formats"][format]["unpacked_bytes"].as_u64().unwrap();
            for wrong in [0, right.saturating_sub(1), right + 1, u64::MAX].into_iter().filter(|wrong| *wrong != right) {
                let mut manifest = whole.clone();
                manifest["artifacts"][place]["formats"][format]["unpacked_bytes"] = wrong.into();
                sample.set_manifest(&manifest);
                let faults = sample.faults().await;
                let named =
                    |fault: &String| fault.starts_with(&sample.uri(&object)) && fault.contains(&wrong.to_string());
                assert!(faults.iter().any(named), "{object} {wrong}: {faults:#?}");
            }
            // Without the key, as other programs write it, nothing is missing.
            let mut manifest = whole.clone();
            let stored = manifest["artifacts"][place]["formats"][format].as_object_mut().unwrap();
            assert_ne!(stored.remove("unpacked_bytes"), None::<Value>);
            sample.set_manifest(&manifest);
            assert_eq!(sample.faults().await, Vec::<String>::new());
        }
    }
}
