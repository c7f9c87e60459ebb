//! Archives of other programs that differ from laredo's: positions that are padded with zeros,
//! manifests without columns, and numbers instead of text.

use std::collections::BTreeMap;
use std::time::Duration;

use laredo_archive::{Archive, ArchivePoint, ArchiveReadError, ReadProgress, RebuiltTable};
use laredo_core::Lsn;
use serde_json::{Map, Value, json};

use crate::reader::foreign_archives::{is_right, without_additions};
use crate::reader::sample::{SampleArchive, shown};
use crate::scene::{self, TABLE, begin, local};

/// Writes a position of a manifest with eight digits.
fn padded(position: &Value) -> Value {
    match position.as_str().and_then(|text| text.parse::<Lsn>().ok()) {
        Some(Lsn(position)) => format!("{:X}/{:08X}", position >> 32, position & 0xFFFF_FFFF).into(),
        None => position.clone(),
    }
}

/// Rewrites all positions of the sample with `spelled`, in the manifest and in the names of the
/// objects.
fn spell(sample: &SampleArchive, spelled: impl Fn(&Value) -> Value) {
    let (mut manifest, mut names) = (sample.manifest(), BTreeMap::new());
    manifest["head_position"] = spelled(&manifest["head_position"]);
    for artifact in manifest["artifacts"].as_array_mut().unwrap() {
        let (from, to) = (artifact["from_position"].clone(), artifact["to_position"].clone());
        for (name, old) in [("from_position", from), ("to_position", to)] {
            let new = spelled(&old);
            if let (Some(old), Some(new)) = (old.as_str(), new.as_str()) {
                names.insert(old.replace('/', "_"), new.replace('/', "_"));
            }
            artifact[name] = new;
        }
    }
    for (object, _) in sample.objects() {
        let (file, extension) = object.split_once('.').unwrap();
        let parts: Vec<&str> = file.split('-').map(|part| names.get(part).map_or(part, String::as_str)).collect();
        let renamed = format!("{}.{extension}", parts.join("-"));
        assert_ne!(renamed, object);
        std::fs::rename(sample.path().join(&object), sample.path().join(renamed)).unwrap();
    }
    sample.set_manifest(&manifest);
}

#[tokio::test(start_paused = true)]
async fn objects_are_found_however_positions_are_spelled() {
    let lower = |position: &Value| position.as_str().map_or(Value::Null, |text| text.replace("0/1", "0/001").into());
    for (formats, spelled) in [
        (&["jsonl"][..], &padded as &dyn Fn(&Value) -> Value),
        (&["protobuf.zst", "jsonl"], &padded),
        (&["jsonl"], &lower),
    ] {
        let sample = SampleArchive::written(formats).await;
        without_additions(&sample);
        spell(&sample, spelled);
        is_right(&sample).await;
    }
}

/// Laredo's writer takes over such an archive, continues it, and collects objects that no manifest
/// names.
#[tokio::test(start_paused = true)]
async fn a_writer_leaves_what_it_took_over_where_it_is() {
    let mut sample = SampleArchive::written(&["jsonl"]).await;
    without_additions(&sample);
    spell(&sample, padded);
    let staging = tempfile::tempdir().unwrap();
    let mut options = scene::options("another");
    options.grace = Duration::from_secs(1);
    // None of the epochs is sealed.
    options.manifest_epochs = 100;
    let running = begin(options, vec![local(&sample.path())], staging.path(), &sample.history).await.unwrap();
    for number in [20, 21, 25] {
        running.send_transaction(sample.history.something(number));
        running.head(sample.history.position).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    running.stop().await;
    let manifest = sample.manifest();
    assert_eq!(manifest["artifacts"][1]["from_position"], "0/00000100");
    assert!(manifest["artifacts"].as_array().unwrap().len() > 8, "{manifest}");
    assert_eq!(sample.faults().await, Vec::<String>::new());
    for artifact in manifest["artifacts"].as_array().unwrap() {
        let position = artifact["to_position"].as_str().unwrap().parse().unwrap();
        let rebuilt = sample.rebuilt(ArchivePoint::Position(position)).await.unwrap();
        assert_eq!(rebuilt, sample.history.states[&position], "at {position}");
    }
}

fn without_columns(sample: &SampleArchive, columns: Option<Value>) {
    without_additions(sample);
    let mut manifest = sample.manifest();
    match columns {
        Some(columns) => manifest["columns"] = columns,
        None => drop(manifest.as_object_mut().unwrap().remove("columns")),
    }
    sample.set_manifest(&manifest);
}

async fn rebuilt(archive: &Archive, at: ArchivePoint) -> Result<RebuiltTable, ArchiveReadError> {
    archive.rebuild(at, &ReadProgress::default()).await
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_archive_without_columns_is_read_by_the_key_that_is_named() {
    for (format, columns) in
        [("jsonl", None), ("protobuf.zst", None), ("jsonl", Some(json!(null))), ("jsonl", Some(json!([])))]
    {
        let sample = SampleArchive::written(&[format]).await;
        let expected: BTreeMap<Lsn, Vec<Map<String, Value>>> = {
            let archive = sample.open().await.unwrap();
            let mut expected = BTreeMap::new();
            for (_, end) in sample.objects() {
                expected.insert(end, shown(&rebuilt(&archive, ArchivePoint::Position(end)).await.unwrap().table));
            }
            expected
        };
        without_columns(&sample, columns);
        let archive = sample.open().await.unwrap();
        let refusal = rebuilt(&archive, ArchivePoint::Latest).await.unwrap_err();
        assert!(matches!(&refusal, ArchiveReadError::NoColumns { at } if at.ends_with("manifest.json")), "{refusal}");
        assert!(refusal.to_string().contains("--key-fields") && !refusal.is_damage(), "{refusal}");

        let archive = archive.with_key(names(&["id"]));
        for (end, rows) in expected {
            assert_eq!(
                shown(&rebuilt(&archive, ArchivePoint::Position(end)).await.unwrap().table),
                rows,
                "{format} at {end}"
            );
        }
        let mut faults = Vec::new();
        archive.verify(&ReadProgress::default(), |damage| faults.push(damage.to_string())).await;
        assert_eq!(faults, Vec::<String>::new());
        assert!(!archive.has_columns(1).unwrap());

        let wrong =
            rebuilt(&sample.open().await.unwrap().with_key(names(&["nope"])), ArchivePoint::Latest).await.unwrap_err();
        assert!(wrong.to_string().contains("the row lacks the column `nope`"), "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn lines_are_shown_without_a_key() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let objects = sample.objects();
    without_columns(&sample, None);
    let archive = sample.open().await.unwrap();
    for (object, _) in objects {
        let lines = archive.lines_of(&object, &ReadProgress::default()).await.unwrap();
        let (lines, bytes) = (String::from_utf8(lines).unwrap(), String::from_utf8(sample.read(&object)).unwrap());
        let parsed = |text: &str| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
        assert_eq!(parsed(&lines), parsed(&bytes), "{object}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_manifest_contradicts_is_refused() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    for key in [&["body"][..], &["id", "body"]] {
        let archive = sample.open().await.unwrap().with_key(names(key));
        let refusal = rebuilt(&archive, ArchivePoint::Latest).await.unwrap_err();
        assert!(refusal.to_string().contains("its key is (id); leave --key-fields out"), "{refusal}");
    }
    let archive = sample.open().await.unwrap().with_key(names(&["id"]));
    assert!(rebuilt(&archive, ArchivePoint::Latest).await.is_ok());
}

/// An archive with one snapshot of these lines.
struct SingleSnapshotArchive(tempfile::TempDir);

impl SingleSnapshotArchive {
    fn write(columns: &Value, format: &str, extension: &str, bytes: &[u8]) -> SingleSnapshotArchive {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("epoch=1")).unwrap();
        let object = folder.path().join(format!("epoch=1/snapshot-0_0019F000.{extension}"));
        std::fs::write(&object, bytes).unwrap();
        let at = "2026-05-04T10:12:40Z";
        let manifest = json!({
            "manifest_version": 1, "table": TABLE, "epoch": 1, "updated_at": at, "head_position": "0/0019F000", "columns": columns,
            "artifacts": [{ "kind": "snapshot", "epoch": 1, "from_position": null, "to_position": "0/0019F000", "created_at": at,
                "formats": { format: { "uri": object.to_str().unwrap(), "size_bytes": bytes.len() } } }],
        });
        std::fs::write(folder.path().join("manifest.json"), manifest.to_string()).unwrap();
        SingleSnapshotArchive(folder)
    }

    async fn rows(&self, key: &[&str]) -> Result<Vec<Map<String, Value>>, ArchiveReadError> {
        let archive = Archive::open(local(self.0.path()), None).await.unwrap().with_key(names(key));
        Ok(shown(&rebuilt(&archive, ArchivePoint::Latest).await?.table))
    }
}

fn columns(n: &str, type_oid: u32) -> Value {
    let column = |name: &str, r#type: &str, type_oid: u32, key: bool| {
        json!({ "Name": name, "Type": r#type, "Nullable": !key, "PrimaryKey": key, "OrdinalPosition": 1, "PrimaryKeyOrdinal": i32::from(key),
            "DefaultValue": null, "MaxLength": 0, "TypeOID": type_oid })
    };
    json!([column("id", "int8", type_oid.min(20), true), column("n", n, type_oid, false)])
}

#[tokio::test(start_paused = true)]
async fn numbers_keep_their_digits() {
    let literals = ["12345678901234567890.123", "1.50", "-0.10", "1e3", "1.25e-2", "3", "null", "\"NaN\"", "\"7.00\""];
    let lines: String = (1..).zip(literals).map(|(id, n)| format!("{{\"id\":{id},\"n\":{n}}}\n")).collect();
    let numeric = [
        json!("12345678901234567890.123"),
        json!("1.50"),
        json!("-0.10"),
        json!("1000"),
        json!("0.0125"),
        json!("3"),
        json!(null),
        json!("NaN"),
        json!("7.00"),
    ];
    let mut unknown = numeric.clone();
    (unknown[3], unknown[4], unknown[5]) = (json!(1000), json!(0.0125), json!(3));
    for (columns, key, expected) in [
        (columns("numeric", 0), &[][..], &numeric),
        (columns("numeric(40,3)", 1700), &[], &numeric),
        (columns("somebodys", 20_000), &[], &unknown),
        (Value::Null, &["id"], &unknown),
    ] {
        let rows = SingleSnapshotArchive::write(&columns, "jsonl", "jsonl", lines.as_bytes()).rows(key).await.unwrap();
        let found: Vec<Value> = rows.into_iter().map(|row| row["n"].clone()).collect();
        assert_eq!(found, *expected, "{columns}");
    }
    let arrays =
        "{\"id\":1,\"n\":[1.50,null,[12345678901234567890.123]]}\n{\"id\":2,\"n\":[12345678901234567890.10]}\n";
    let rows =
        SingleSnapshotArchive::write(&Value::Null, "jsonl", "jsonl", arrays.as_bytes()).rows(&["id"]).await.unwrap();
    assert_eq!(rows[0]["n"], json!(["1.50", null, ["12345678901234567890.123"]]));
    let flat = "{\"id\":2,\"n\":[12345678901234567890.10,1e2]}\n";
    for columns in [columns("numeric[]", 0), columns("numeric[]", 1231)] {
        let rows = SingleSnapshotArchive::write(&columns, "jsonl", "jsonl", flat.as_bytes()).rows(&[]).await.unwrap();
        assert_eq!(rows[0]["n"], json!(["12345678901234567890.10", "100"]), "{columns}");
    }
    let large = "{\"id\":9007199254740993,\"n\":1}\n{\"id\":9007199254740992,\"n\":2}\n";
    let rows = SingleSnapshotArchive::write(&columns("bigint", 20), "jsonl", "jsonl", large.as_bytes())
        .rows(&[])
        .await
        .unwrap();
    assert_eq!(rows.len(), 2, "keys that no double tells apart are two: {rows:?}");
}

/// Returns a protobuf row with `id` and a number.
fn message(id: f64, n: f64) -> Vec<u8> {
    use prost::Message as _;
    use prost_types::value::Kind;
    let number = |number| prost_types::Value { kind: Some(Kind::NumberValue(number)) };
    let fields = BTreeMap::from([("id".to_owned(), number(id)), ("n".to_owned(), number(n))]);
    let row = prost_types::Struct { fields }.encode_length_delimited_to_vec();
    let message = [&[0x0A][..], &row].concat();
    [&[u8::try_from(message.len()).unwrap()][..], &message].concat()
}

#[tokio::test(start_paused = true)]
async fn a_numeric_that_a_double_may_have_rounded_is_refused() {
    let exact =
        [message(1.0, 1.5), message(2.0, -0.1), message(3.0, 123_456_789_012_345.0), message(4.0, 1e300)].concat();
    for columns in [columns("numeric", 0), columns("numeric", 1700)] {
        let rows = SingleSnapshotArchive::write(&columns, "protobuf", "pb", &exact).rows(&[]).await.unwrap();
        let found: Vec<&str> = rows.iter().map(|row| row["n"].as_str().unwrap()).collect();
        assert_eq!(found[..3], ["1.5", "-0.1", "123456789012345"]);
        assert_eq!(found[3], format!("1{}", "0".repeat(300)));
        for rounded in [12_345_678_901_234_567_000.0, 0.1 + 0.2, 1.0 / 3.0] {
            let bytes = [exact.as_slice(), &message(5.0, rounded)].concat();
            let refusal = SingleSnapshotArchive::write(&columns, "protobuf", "pb", &bytes)
                .rows(&[])
                .await
                .unwrap_err()
                .to_string();
            assert!(refusal.contains("entry 5: `n` is a numeric that was written as a double"), "{refusal}");
            assert!(refusal.contains("snapshot-0_0019F000.pb"), "{refusal}");
        }
    }
}
