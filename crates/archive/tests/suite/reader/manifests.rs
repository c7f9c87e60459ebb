//! Manifests that cannot be trusted.

use laredo_archive::{ArchivePoint, ArchiveReadError, MANIFEST_NAME, MANIFEST_NUMBER_MAX, WriterError};
use serde_json::{Value, json};

use crate::reader::sample::SampleArchive;
use crate::scene::{begin, changed, local, options};

/// Checks that the manifest is refused, with these words in the reason.
async fn is_refused(sample: &SampleArchive, words: &str) {
    let error = sample.open().await.expect_err(words);
    let said = error.to_string();
    assert!(
        error.is_damage() && said.starts_with(&sample.uri(MANIFEST_NAME)) && said.contains(words),
        "{words:?}: {said}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_is_torn_anywhere_is_refused() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let bytes = sample.read(MANIFEST_NAME);
    for length in 0..bytes.len() {
        sample.write(MANIFEST_NAME, &bytes[..length]);
        is_refused(&sample, "the manifest cannot be read: ").await;
    }
    sample.write(MANIFEST_NAME, &[&bytes[..], b"}"].concat());
    is_refused(&sample, "trailing characters").await;
    sample.write(MANIFEST_NAME, b"\xff\xfe");
    is_refused(&sample, "the manifest cannot be read: ").await;
    sample.write(MANIFEST_NAME, "[".repeat(100_000).as_bytes());
    is_refused(&sample, "the manifest cannot be read: ").await;
}

#[tokio::test(start_paused = true)]
async fn each_rule_that_is_broken_is_said() {
    type ManifestJsonEdit = fn(&mut Value);
    let deeds: &[(ManifestJsonEdit, &str)] = &[
        (|m| m["manifest_version"] = json!(2), "is of version 2, and this laredo knows version 1"),
        (|m| m["manifest_version"] = json!(0), "is of version 0"),
        (|m| m["manifest_version"] = json!("1"), "cannot be read"),
        (|m| drop(m.as_object_mut().unwrap().remove("manifest_version")), "missing field `manifest_version`"),
        (|m| m["table"] = json!("public.others"), "of table public.others, not of public.things; check the prefix"),
        (|m| m["artifacts"][1]["kind"] = json!("rows"), "cannot be read"),
        (|m| m["artifacts"][1]["kind"] = json!("snapshot"), "epoch 1 does not begin with its only snapshot"),
        (|m| m["artifacts"][0]["kind"] = json!("diff"), "epoch 1 does not begin with its only snapshot"),
        (|m| drop(m["artifacts"].as_array_mut().unwrap().remove(0)), "epoch 1 does not begin with its only snapshot"),
        (
            |m| drop(m["artifacts"].as_array_mut().unwrap().remove(2)),
            "begins at 0/120, and the artifact before it ends at 0/110",
        ),
        (|m| m["artifacts"].as_array_mut().unwrap().swap(1, 2), "the artifact before it ends at 0/100"),
        (|m| m["artifacts"].as_array_mut().unwrap().rotate_left(6), "epoch 1 comes after a later one"),
        (|m| m["artifacts"][2]["from_position"] = Value::Null, "begins at nowhere"),
        (|m| m["artifacts"][5]["to_position"] = json!("0/140"), "0/140 does not come after 0/140"),
        (|m| m["artifacts"][5]["to_position"] = json!("0/90"), "0/90 does not come after 0/140"),
        (|m| m["artifacts"][5]["to_position"] = Value::Null, "nowhere does not come after 0/140"),
        (|m| m["artifacts"][5]["to_position"] = json!("0/X"), "cannot be read: 0/X"),
        (|m| drop(m["artifacts"].as_array_mut().unwrap().pop()), "its head_position is not that of its last artifact"),
        (|m| m["head_position"] = Value::Null, "its head_position is not"),
        (|m| m["artifacts"] = json!([]), "its head_position is not"),
        (|m| m["epoch"] = json!(1), "its epoch is not that of its last artifact"),
        (|m| m["artifacts"][3]["formats"] = json!({}), "that ends at 0/130 has no object"),
        (|m| m["artifacts"][3]["formats"]["jsonl"]["size_bytes"] = json!(-1), "cannot be read"),
    ];
    let sample = SampleArchive::written(&["jsonl"]).await;
    let whole = sample.manifest();
    for (deed, words) in deeds {
        let mut manifest = whole.clone();
        deed(&mut manifest);
        assert_ne!(manifest, whole, "{words}");
        sample.set_manifest(&manifest);
        is_refused(&sample, words).await;
    }
}

/// A base in another program's archive may lack its end. The next diff must still lead to a
/// position.
#[tokio::test(start_paused = true)]
async fn a_diff_after_a_base_without_an_end_leads_on() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let mut manifest = sample.manifest();
    manifest["artifacts"][0]["to_position"] = json!("");
    for (to, words) in
        [(Value::Null, "nowhere does not come after 0/100"), (json!("0/100"), "0/100 does not come after 0/100")]
    {
        manifest["artifacts"][1]["to_position"] = to;
        sample.set_manifest(&manifest);
        is_refused(&sample, words).await;
    }
}

#[tokio::test(start_paused = true)]
async fn columns_that_are_none_of_a_table_are_said() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let whole = sample.manifest();
    let lacking = |manifest: &mut Value| {
        for artifact in manifest["artifacts"].as_array_mut().unwrap() {
            artifact.as_object_mut().unwrap().remove("schema");
        }
    };
    type Deed<'a> = Box<dyn Fn(&mut Value) + 'a>;
    let deeds: Vec<(Deed<'_>, &str)> = vec![
        (
            Box::new(|m| {
                lacking(m);
                m["columns"][0]["PrimaryKey"] = json!(false);
            }),
            "none of them is part of a primary key",
        ),
        (
            Box::new(|m| m["artifacts"][6]["schema"]["key"] = json!(["nobody"])),
            "the key names nobody, which is not one of them",
        ),
    ];
    for (deed, words) in deeds {
        let mut manifest = whole.clone();
        deed(&mut manifest);
        sample.set_manifest(&manifest);
        let error = sample.rebuilt(ArchivePoint::Latest).await.unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, ArchiveReadError::Columns { .. }) && error.is_damage(), "{said}");
        assert!(said.starts_with(&sample.uri(MANIFEST_NAME)) && said.contains(words), "{words:?}: {said}");
        assert!(!sample.faults().await.is_empty(), "{words}");
    }
}

/// If another writer omitted the position of a base, its URI gives the object's name. The name must
/// stay inside the archive.
#[tokio::test(start_paused = true)]
async fn an_address_that_leads_elsewhere_is_not_followed() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let mut manifest = sample.manifest();
    manifest["artifacts"].as_array_mut().unwrap().truncate(1);
    manifest["epoch"] = json!(1);
    manifest["head_position"] = json!("");
    manifest["artifacts"][0]["to_position"] = json!("");
    sample.set_manifest(&manifest);
    assert_eq!(sample.rebuilt(ArchivePoint::Latest).await.unwrap(), sample.history.states[&laredo_core::Lsn(0x100)]);
    for uri in ["", "/etc/passwd", "epoch=1/../manifest.json", "x/epoch=1/snapshot-0/../../../manifest.json", "epoch=1"]
    {
        manifest["artifacts"][0]["formats"]["jsonl"]["uri"] = json!(uri);
        sample.set_manifest(&manifest);
        let error = sample.rebuilt(ArchivePoint::Latest).await.unwrap_err();
        let said = error.to_string();
        assert!(
            said.starts_with(&sample.uri(MANIFEST_NAME)) && said.contains("is not an object of an epoch"),
            "{uri}: {said}"
        );
        assert_eq!(sample.faults().await, [said]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_no_other_may_follow_is_refused() {
    for epoch in [u64::MAX, u64::MAX - 1, MANIFEST_NUMBER_MAX + 1] {
        let sample = SampleArchive::written(&["jsonl"]).await;
        sample.renumber(epoch);
        is_refused(&sample, &format!("its epoch {epoch} is larger than 9007199254740991; put back")).await;
        let staging = tempfile::tempdir().unwrap();
        let writer = begin(options("w2"), vec![local(&sample.path())], staging.path(), &sample.history).await;
        let error = writer.err().expect("the writer refuses it, too");
        assert!(matches!(&error, WriterError::Manifest { .. }), "{error}");
        assert!(error.to_string().contains(&format!("its epoch {epoch} is larger")), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_epoch_is_read_and_continued_but_none_follows_it() {
    let mut sample = SampleArchive::written(&["jsonl"]).await;
    sample.renumber(MANIFEST_NUMBER_MAX);
    assert_eq!(sample.faults().await, Vec::<String>::new());
    let (place, staging) = (local(&sample.path()), tempfile::tempdir().unwrap());
    // Other formats would begin an epoch.
    let same = changed(options("w2"), |options| options.diff_formats.clone_from(&options.snapshot_formats));
    let writer = begin(same, vec![place], staging.path(), &sample.history).await.unwrap();
    writer.send_transaction(sample.history.something(11));
    writer.head(sample.history.position).await;
    assert_eq!(sample.faults().await, Vec::<String>::new());
    writer.handle.snapshot().await.unwrap_err();
    let error = writer.ended().await.unwrap_err();
    let words =
        "the next manifest was not written: the manifest breaks a rule: its next epoch 9007199254740992 is larger";
    assert!(error.to_string().starts_with(words), "{error}");
    assert!(!sample.path().join(format!("epoch={}", MANIFEST_NUMBER_MAX + 1)).exists(), "no object is written for it");
}

#[tokio::test(start_paused = true)]
async fn sizes_and_counts_of_any_size_are_added() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let mut manifest = sample.manifest();
    for artifact in manifest["artifacts"].as_array_mut().unwrap() {
        let count = if artifact["kind"] == "diff" { "change_count" } else { "row_count" };
        artifact[count] = u64::MAX.into();
        artifact["formats"]["jsonl"]["size_bytes"] = u64::MAX.into();
    }
    sample.set_manifest(&manifest);
    let archive = sample.open().await.unwrap();
    assert_eq!((archive.bytes(), archive.boundary(ArchivePoint::Latest).unwrap().bytes), (u64::MAX, u64::MAX));
    assert_eq!(sample.faults().await.len(), manifest["artifacts"].as_array().unwrap().len());
    // The writer cannot read the rows, so it begins an epoch.
    let (place, staging) = (local(&sample.path()), tempfile::tempdir().unwrap());
    let writer = begin(options("w2"), vec![place], staging.path(), &sample.history).await.unwrap();
    for _ in 0..100 {
        if writer.handle.status().epoch != 3 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
    assert_eq!(writer.handle.status().epoch, 3);
    writer.stop().await;
}

/// Another program may count epochs from 0.
#[tokio::test(start_paused = true)]
async fn an_archive_may_begin_with_epoch_0() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let mut manifest = sample.manifest();
    for artifact in manifest["artifacts"].as_array_mut().unwrap() {
        artifact.as_object_mut().unwrap().remove("history");
        if artifact["epoch"] == 1 {
            artifact["epoch"] = 0.into();
        }
    }
    sample.set_manifest(&manifest);
    std::fs::rename(sample.path().join("epoch=1"), sample.path().join("epoch=0")).unwrap();
    assert_eq!(sample.faults().await, Vec::<String>::new());
}
