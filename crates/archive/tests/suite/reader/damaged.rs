//! Objects that differ from what was written.

use laredo_archive::{ArchivePoint, ArchiveReadError, MANIFEST_NAME};

use crate::reader::sample::SampleArchive;

const FORMATS: [&str; 4] = ["jsonl", "protobuf", "jsonl.zst", "protobuf.zst"];

/// Checks that a damaged object is reported, with these words, by every read that needs it. All
/// other reads must succeed.
async fn is_named(sample: &SampleArchive, object: &str, words: &str) {
    // The path is also the end of a URI.
    let path = sample.path().join(object).display().to_string();
    let faults = sample.faults().await;
    let [fault] = faults.as_slice() else { panic!("{object}: {faults:#?}") };
    assert!(fault.contains(&path) && fault.contains(words), "{words:?} {object}: {fault}");
    let objects = sample.objects();
    let place = objects.iter().position(|(name, _)| name == object).unwrap();
    for (other, (name, end)) in objects.iter().enumerate() {
        let is_needed = other >= place && name.split('/').next() == object.split('/').next();
        // The second base ends where the diff before it ends, and is used in its place.
        let newest = objects.iter().rposition(|(_, at)| at == end).unwrap();
        if newest != other {
            continue;
        }
        match sample.rebuilt(ArchivePoint::Position(*end)).await {
            Ok(rows) => {
                assert!(!is_needed, "{object} is bad, and {end} was rebuilt from it");
                assert_eq!(rows, sample.history.states[end]);
            }
            Err(error) => {
                let said = error.to_string();
                assert!(is_needed, "{object} is bad, and {end} does without it: {said}");
                assert!(
                    error.is_damage() && said.contains(&path) && said.contains(words),
                    "{words:?} {object}: {said}"
                );
            }
        }
    }
}

/// Returns damaged forms of a file, each with words of the expected error.
fn deeds(bytes: &[u8]) -> Vec<(Vec<u8>, &'static str)> {
    let size = "bytes, and the manifest says";
    let cut = |length: usize| (bytes[..length].to_vec(), size);
    let mut deeds = vec![cut(bytes.len() - 1), cut(bytes.len() / 2), cut(1), cut(0)];
    deeds.push(([bytes, b"\n"].concat(), size));
    deeds.push(([bytes, bytes].concat(), size));
    deeds.push(([b"\0", bytes].concat(), size));
    let mut swapped = bytes.to_vec();
    swapped.reverse();
    deeds.push((swapped, "was altered"));
    deeds.push((vec![b'x'; bytes.len()], "was altered"));
    deeds
}

#[tokio::test(start_paused = true)]
async fn an_object_that_was_cut_lengthened_replaced_or_removed_is_named() {
    for format in FORMATS {
        let sample = SampleArchive::written(&[format]).await;
        for (object, _) in sample.objects() {
            let bytes = sample.read(&object);
            for (other, words) in deeds(&bytes) {
                sample.write(&object, &other);
                is_named(&sample, &object, words).await;
            }
            std::fs::remove_file(sample.path().join(&object)).unwrap();
            is_named(&sample, &object, "does not exist").await;
            sample.write(&object, &bytes);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_byte_that_was_altered_is_found_wherever_it_is() {
    for format in FORMATS {
        let sample = SampleArchive::written(&[format]).await;
        for (object, _) in sample.objects() {
            let bytes = sample.read(&object);
            // Every byte at both ends, which have headers, lengths and checksums, and every seventh
            // byte between.
            let places = (0..bytes.len()).filter(|place| *place < 24 || place + 24 >= bytes.len() || place % 7 == 0);
            for place in places {
                let mut other = bytes.clone();
                other[place] ^= 1 << (place % 8);
                sample.write(&object, &other);
                let faults = sample.faults().await;
                assert_eq!(faults.len(), 1, "{object}, byte {place}");
                let said = format!("{} was altered", sample.uri(&object));
                assert!(faults[0].starts_with(&said), "byte {place}: {}", faults[0]);
            }
            is_named(&sample, &object, "was altered").await;
            sample.write(&object, &bytes);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lines_in_another_order_and_exchanged_objects_are_found() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let objects = sample.objects();
    let many = objects.iter().map(|(object, _)| (object, sample.read(object)));
    let (object, bytes) = many.max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    lines.swap(0, 3);
    sample.write(object, &lines.concat());
    is_named(&sample, object, "was altered").await;
    sample.write(object, &bytes);

    let same = |(object, _): &(String, _)| sample.read(object);
    let pairs =
        objects.iter().enumerate().flat_map(|(place, one)| objects[place + 1..].iter().map(move |two| (one, two)));
    let mut found = 0;
    for (one, two) in pairs {
        let (first, second) = (same(one), same(two));
        sample.write(&one.0, &second);
        sample.write(&two.0, &first);
        let faults = sample.faults().await;
        assert_eq!(faults.len(), 2, "{faults:#?}");
        let words = if first.len() == second.len() { "was altered" } else { "bytes, and the manifest says" };
        for (fault, object) in faults.iter().zip([&one.0, &two.0]) {
            assert!(fault.starts_with(&format!("{} ", sample.uri(object))) && fault.contains(words), "{fault}");
        }
        let is_new = |object: &str| object.starts_with("epoch=2");
        assert_eq!(sample.rebuilt(ArchivePoint::Latest).await.is_err(), is_new(&one.0) || is_new(&two.0));
        sample.write(&one.0, &first);
        sample.write(&two.0, &second);
        found += 1;
    }
    assert_eq!(found, objects.len() * (objects.len() - 1) / 2);
}

/// Without checksums, faults show only in the size, the form and the number of entries.
#[tokio::test(start_paused = true)]
async fn without_checksums_the_entry_is_named() {
    for format in FORMATS {
        let sample = SampleArchive::written(&[format]).await;
        let mut manifest = sample.manifest();
        for artifact in manifest["artifacts"].as_array_mut().unwrap() {
            artifact["formats"][format].as_object_mut().unwrap().remove("sha256");
        }
        sample.set_manifest(&manifest);
        let (object, _) = sample.objects().pop().unwrap();
        let bytes = sample.read(&object);
        sample.write(&object, &vec![b'x'; bytes.len()]);
        let expected = if format.ends_with("zst") { "Unknown frame descriptor" } else { "entry 1: " };
        is_named(&sample, &object, expected).await;
        for place in 0..bytes.len() {
            let mut other = bytes.clone();
            other[place] ^= 1;
            sample.write(&object, &other);
            // A changed letter in a text cannot be noticed.
            drop(sample.rebuilt(ArchivePoint::Latest).await);
        }
        sample.write(&object, &bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_none_of_the_table_is_named() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let objects = sample.objects();
    let (diff, snapshot) = (&objects[1].0, &objects[0].0);
    let row = r#"{"id":1,"body":"first"}"#;
    for (object, lines, words) in [
        (diff, r#"{"action":"INSERT","key":"1"}"#.to_owned(), "entry 1: the action `INSERT` does not match"),
        (diff, format!(r#"{{"action":"DELETE","key":"1","new":{row}}}"#), "entry 1: the action `DELETE`"),
        (diff, format!(r#"{{"action":"MERGE","key":"1","new":{row}}}"#), "entry 1: the action `MERGE`"),
        (
            diff,
            r#"{"action":"DELETE","key":"1","old":{"body":"first"}}"#.to_owned(),
            "entry 1: the row lacks the column `id`",
        ),
        (
            diff,
            r#"{"action":"INSERT","key":"1","new":{"body":"first"}}"#.to_owned(),
            "entry 1: the row lacks the column `id`",
        ),
        (diff, row.to_owned(), "entry 1: missing field `action`"),
        (snapshot, format!("{row}\n{}", r#"{"id":"2","body":"first"}"#), "entry 2: column `id`"),
        (snapshot, format!("{row}\n{}", r#"{"id":2,"body":"first","more":1}"#), "entry 2: column `more`"),
        (snapshot, format!("{row}\n{}", r#"{"id":3000000000,"body":"first"}"#), "entry 2: column `id`"),
        (snapshot, format!("{row}\n{row}"), "has 1 entries of different keys, and the manifest says 2"),
        (snapshot, format!("{row}\n[1]"), "entry 2: "),
        (snapshot, format!("{row}\n\n"), "entry 2: "),
        (snapshot, format!("{row}\n{row} {row}"), "entry 2: trailing characters"),
    ] {
        let bytes = sample.read(object);
        let text = format!("{lines}\n");
        sample.write(object, text.as_bytes());
        let mut manifest = sample.manifest();
        let whole = manifest.clone();
        let place = objects.iter().position(|(name, _)| name == object).unwrap();
        let artifact = &mut manifest["artifacts"][place];
        let count = if place == 0 { "row_count" } else { "change_count" };
        artifact[count] = text.lines().count().into();
        artifact["formats"]["jsonl"]["size_bytes"] = text.len().into();
        for key in ["sha256", "unpacked_bytes"] {
            artifact["formats"]["jsonl"].as_object_mut().unwrap().remove(key);
        }
        sample.set_manifest(&manifest);
        is_named(&sample, object, words).await;
        sample.set_manifest(&whole);
        sample.write(object, &bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn another_number_of_entries_than_the_manifest_says_is_found() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let whole = sample.manifest();
    for (place, (object, _)) in sample.objects().into_iter().enumerate() {
        for count in [0, 1000] {
            let mut manifest = whole.clone();
            for kind in ["row_count", "change_count"] {
                if manifest["artifacts"][place].get(kind).is_some() {
                    manifest["artifacts"][place][kind] = count.into();
                }
            }
            sample.set_manifest(&manifest);
            is_named(&sample, &object, &format!("and the manifest says {count}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_format_is_named_and_a_known_one_of_several_is_read() {
    let sample = SampleArchive::written(&["jsonl", "protobuf"]).await;
    let mut manifest = sample.manifest();
    let formats = manifest["artifacts"][7]["formats"].as_object_mut().unwrap();
    let stored = formats.remove("jsonl").unwrap();
    formats.insert("avro".to_owned(), stored);
    sample.set_manifest(&manifest);
    assert_eq!(sample.rebuilt(ArchivePoint::Latest).await.unwrap(), sample.history.states[&sample.history.position]);
    manifest["artifacts"][7]["formats"].as_object_mut().unwrap().remove("protobuf");
    sample.set_manifest(&manifest);
    let error = sample.rebuilt(ArchivePoint::Latest).await.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("in no format that this laredo reads"), "{error}");
    assert_eq!(sample.faults().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_no_archive() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    std::fs::remove_file(sample.path().join(MANIFEST_NAME)).unwrap();
    let error = sample.open().await.unwrap_err();
    assert!(matches!(&error, ArchiveReadError::NoManifest { at } if *at == sample.uri(MANIFEST_NAME)), "{error}");
    assert!(!error.is_damage());
}
