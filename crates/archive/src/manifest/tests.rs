use super::*;

fn artifact(kind: Kind, epoch: u64, from: Option<u64>, to: u64) -> Artifact {
    let stored = Stored { uri: "u".to_owned(), size_bytes: 1, sha256: None };
    Artifact {
        kind,
        epoch,
        from_position: from.map(Lsn),
        to_position: Some(Lsn(to)),
        created_at: "2026-01-02T03:04:05Z".to_owned(),
        row_count: u64::from(kind == Kind::Snapshot),
        change_count: u64::from(kind == Kind::Diff),
        formats: BTreeMap::from([("jsonl".to_owned(), stored)]),
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
    assert_eq!(manifest.without_epochs_before(2).artifacts.len(), 2);
    assert_eq!(manifest.without_epochs_before(9).artifacts.len(), 2, "the newest epoch stays");
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
    let json: serde_json::Value = serde_json::from_slice(&written.unwrap().to_json().unwrap()).unwrap();
    assert_eq!(json["head_position"], "0/19F000");
    let expected = serde_json::json!({"kind": "snapshot", "epoch": 1, "from_position": null, "to_position": "0/19F000",
        "created_at": "2026-01-02T03:04:05Z", "row_count": 1, "formats": {"jsonl": {"uri": "u", "size_bytes": 1}}});
    assert_eq!(json["artifacts"][0], expected);
    let expected = serde_json::json!({"Name": "id", "Type": "bigint", "Nullable": false, "PrimaryKey": true, "OrdinalPosition": 1,
        "PrimaryKeyOrdinal": 1, "DefaultValue": null, "MaxLength": null, "TypeOID": 20});
    assert_eq!(json["columns"][0], expected);
    let bytes = serde_json::to_vec(&json).unwrap();
    assert_eq!(Manifest::parse(&bytes, Some("public.t")).unwrap().schema().unwrap(), schema);
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
    assert_eq!(manifest.schema().unwrap().key().columns(), [0]);
}
