use super::*;

fn artifact(kind: Kind, epoch: u64, from: Option<u64>, to: u64) -> Artifact {
    let stored = Stored { uri: "u".to_owned(), size_bytes: 1, sha256: None };
    Artifact {
        row_count: u64::from(kind == Kind::Snapshot),
        change_count: u64::from(kind == Kind::Diff),
        formats: BTreeMap::from([("jsonl".to_owned(), stored)]),
        ..Artifact::new(kind, epoch, from.map(Lsn), Lsn(to), "2026-01-02T03:04:05Z")
    }
}

fn manifest(artifacts: Vec<Artifact>) -> Manifest {
    let last = artifacts.last();
    Manifest {
        epoch: last.map_or(0, |last| last.epoch),
        head_position: last.and_then(|last| last.to_position),
        artifacts,
        ..Manifest::empty("public.t", "2026-01-02T03:04:05Z")
    }
}

#[test]
fn a_chain_without_gaps_is_whole() {
    use Kind::{Diff, Snapshot};
    let whole = vec![
        artifact(Snapshot, 1, None, 10),
        artifact(Diff, 1, Some(10), 20),
        artifact(Snapshot, 2, None, 20),
        artifact(Diff, 2, Some(20), 30),
    ];
    assert_eq!(manifest(whole.clone()).check(), Ok(()));
    assert_eq!(manifest(Vec::new()).check(), Ok(()));
    let with = |index: usize, other: Artifact| {
        let mut artifacts = whole.clone();
        artifacts[index] = other;
        manifest(artifacts).check()
    };
    assert_eq!(with(0, artifact(Diff, 1, Some(5), 10)), Err(Broken::Opening(1)));
    assert_eq!(with(1, artifact(Snapshot, 1, None, 20)), Err(Broken::Opening(1)));
    assert_eq!(with(2, artifact(Snapshot, 0, None, 20)), Err(Broken::Epochs(0)));
    assert!(matches!(with(1, artifact(Diff, 1, Some(11), 20)), Err(Broken::Gap { .. })));
    assert!(matches!(with(3, artifact(Diff, 2, Some(20), 20)), Err(Broken::Order { .. })));
    assert!(matches!(with(3, Artifact { formats: BTreeMap::new(), ..whole[3].clone() }), Err(Broken::NoObject { .. })));
    let mut behind = manifest(whole.clone());
    behind.head_position = Some(Lsn(20));
    assert_eq!(behind.check(), Err(Broken::Head("head_position")));
    assert!(behind.to_json().is_err(), "what breaks a rule is never written");
}

#[test]
fn a_chain_ends_at_the_newest_boundary_before_a_position() {
    use Kind::{Diff, Snapshot};
    let manifest = manifest(vec![
        artifact(Snapshot, 1, None, 10),
        artifact(Diff, 1, Some(10), 20),
        artifact(Snapshot, 2, None, 20),
        artifact(Diff, 2, Some(20), 30),
    ]);
    let ends = |at: Option<u64>| {
        manifest.chain(at.map(Lsn)).iter().map(|a| (a.epoch, a.to_position.unwrap().0)).collect::<Vec<_>>()
    };
    assert_eq!(ends(None), [(2, 20), (2, 30)]);
    assert_eq!(ends(Some(29)), [(2, 20)]);
    assert_eq!(ends(Some(19)), [(1, 10)]);
    assert_eq!(ends(Some(9)), []);
    let kept = |count| manifest.clone().keeping_epochs(count).artifacts.len();
    assert_eq!([kept(0), kept(1), kept(2), kept(3)], [2, 2, 4, 4], "the newest epoch stays whatever is asked for");
}

#[test]
fn its_words_are_those_of_the_contract() {
    let schema = Schema::new(
        vec![laredo_core::Column {
            name: "id".to_owned(),
            type_oid: 20,
            type_modifier: -1,
            type_name: "bigint".to_owned(),
            not_null: true,
            is_text: false,
        }],
        laredo_core::KeyColumns::new([0]),
        BTreeMap::new(),
    );
    let written =
        Manifest::empty("public.t", "").with_snapshot(artifact(Kind::Snapshot, 1, None, 0x0019_F000), &schema);
    let mut json: serde_json::Value = serde_json::from_slice(&written.unwrap().to_json().unwrap()).unwrap();
    let bytes = serde_json::to_vec(&json).unwrap();
    json["artifacts"][0].as_object_mut().unwrap().remove("schema");
    assert_eq!(json["head_position"], "0/19F000");
    let expected = serde_json::json!({"kind": "snapshot", "epoch": 1, "from_position": null, "to_position": "0/19F000",
        "created_at": "2026-01-02T03:04:05Z", "row_count": 1, "formats": {"jsonl": {"uri": "u", "size_bytes": 1}}});
    assert_eq!(json["artifacts"][0], expected);
    let expected = serde_json::json!({"Name": "id", "Type": "bigint", "Nullable": false, "PrimaryKey": true, "OrdinalPosition": 1,
        "PrimaryKeyOrdinal": 1, "DefaultValue": null, "MaxLength": null, "TypeOID": 20});
    assert_eq!(json["columns"][0], expected);
    assert_eq!(Manifest::parse(&bytes, Some("public.t")).unwrap().schema(1).unwrap(), schema);
    assert!(matches!(Manifest::parse(&bytes, Some("public.u")), Err(ManifestError::Table { .. })));
    assert!(matches!(Manifest::parse(b"{\"manifest_version\": 2}", None), Err(ManifestError::Version(2))));
}

#[test]
fn an_archive_of_another_writer_is_read() {
    let text = r#"{"manifest_version": 1, "table": "public.users", "epoch": 2, "updated_at": "2026-01-02T03:04:05Z", "head_position": "0/20",
        "artifacts": [
          {"kind": "snapshot", "epoch": 2, "from_position": null, "to_position": "", "created_at": "x", "formats": {"jsonl": {"uri": "u", "size_bytes": 3}}},
          {"kind": "diff", "epoch": 2, "from_position": "0/10", "to_position": "0/20", "created_at": "x", "change_count": 1,
           "formats": {"jsonl": {"uri": "u", "size_bytes": 3}}}],
        "columns": [{"Name": "id", "Type": "bigint", "Nullable": false, "PrimaryKey": true, "OrdinalPosition": 1, "PrimaryKeyOrdinal": 1, "TypeOID": 20}]}"#;
    let manifest = Manifest::parse(text.as_bytes(), Some("public.users")).unwrap();
    assert_eq!(manifest.artifacts[0].to_position, None);
    assert_eq!(manifest.chain(None).len(), 2);
    assert_eq!(manifest.schema(2).unwrap().key().columns(), [0]);
}

#[test]
fn an_object_s_name_follows_from_the_positions() {
    let jsonl: crate::format::Format = "jsonl".parse().unwrap();
    let diff = artifact(Kind::Diff, 3, Some(0x10), 0x20);
    assert_eq!(diff.object(jsonl).as_deref(), Some("epoch=3/diff-0_10-0_20.jsonl"));
    assert_eq!(diff.object("protobuf".parse().unwrap()), None);
    let here = manifest(vec![artifact(Kind::Snapshot, 1, None, 10)]).located(|object| format!("s3://b/{object}"));
    assert_eq!(here.artifacts[0].formats["jsonl"].uri, "s3://b/epoch=1/snapshot-0_A.jsonl");
    let inherited = Stored { uri: "s3://b/t/epoch=1/snapshot-.jsonl".to_owned(), size_bytes: 1, sha256: None };
    let formats = BTreeMap::from([("jsonl".to_owned(), inherited)]);
    let base = Artifact { to_position: None, formats, ..artifact(Kind::Snapshot, 1, None, 10) };
    assert_eq!(base.object(jsonl).as_deref(), Some("epoch=1/snapshot-.jsonl"));
}
