use super::*;

fn artifact(kind: ArtifactKind, epoch: u64, from: Option<u64>, to: u64) -> Artifact {
    let stored = ArtifactObject { uri: "u".to_owned(), size_bytes: 1, sha256: None, unpacked_bytes: None };
    Artifact {
        row_count: u64::from(kind == ArtifactKind::Snapshot),
        change_count: u64::from(kind == ArtifactKind::Diff),
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
    use ArtifactKind::{Diff, Snapshot};
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
    assert_eq!(with(0, artifact(Diff, 1, Some(5), 10)), Err(ManifestViolation::Opening(1)));
    assert_eq!(with(1, artifact(Snapshot, 1, None, 20)), Err(ManifestViolation::Opening(1)));
    assert_eq!(with(2, artifact(Snapshot, 0, None, 20)), Err(ManifestViolation::Epochs(0)));
    assert!(matches!(with(1, artifact(Diff, 1, Some(11), 20)), Err(ManifestViolation::Gap { .. })));
    assert!(matches!(with(3, artifact(Diff, 2, Some(20), 20)), Err(ManifestViolation::Order { .. })));
    assert!(matches!(
        with(3, Artifact { formats: BTreeMap::new(), ..whole[3].clone() }),
        Err(ManifestViolation::NoObject { .. })
    ));
    let mut behind = manifest(whole.clone());
    behind.head_position = Some(Lsn(20));
    assert_eq!(behind.check(), Err(ManifestViolation::Head("head_position")));
    assert!(behind.to_json().is_err(), "what breaks a rule is never written");
}

#[test]
fn a_chain_ends_at_the_newest_boundary_before_a_position() {
    use ArtifactKind::{Diff, Snapshot};
    let manifest = manifest(vec![
        artifact(Snapshot, 1, None, 10),
        artifact(Diff, 1, Some(10), 20),
        artifact(Snapshot, 2, None, 20),
        artifact(Diff, 2, Some(20), 30),
    ]);
    let ends = |at: Option<u64>| {
        let chain = match at {
            None => manifest.chain(),
            Some(at) => manifest.locate(Lsn(at)).map_or(&[][..], |number| manifest.chain_to(number)),
        };
        chain.iter().map(|a| (a.epoch, a.to_position.unwrap().0)).collect::<Vec<_>>()
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
        Manifest::empty("public.t", "").with_snapshot(artifact(ArtifactKind::Snapshot, 1, None, 0x0019_F000), &schema);
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
    assert_eq!(Manifest::parse(&bytes, Some("public.t")).unwrap().schema(1, &[]).unwrap(), Some(schema));
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
    assert_eq!(manifest.chain().len(), 2);
    assert_eq!(manifest.schema(2, &[]).unwrap().unwrap().key().columns(), [0]);
}

#[test]
fn an_object_s_name_follows_from_the_positions() {
    let jsonl: ArtifactFormat = "jsonl".parse().unwrap();
    let diff = artifact(ArtifactKind::Diff, 3, Some(0x10), 0x20);
    assert_eq!(diff.object(jsonl).as_deref(), Some("epoch=3/diff-0_10-0_20.jsonl"));
    assert_eq!(diff.object("protobuf".parse().unwrap()), None);
    let here =
        manifest(vec![artifact(ArtifactKind::Snapshot, 1, None, 10)]).located(|object| format!("s3://b/{object}"));
    assert_eq!(here.artifacts[0].formats["jsonl"].uri, "s3://b/epoch=1/snapshot-0_A.jsonl");
    let inherited = ArtifactObject {
        uri: "s3://b/t/epoch=1/snapshot-.jsonl".to_owned(),
        size_bytes: 1,
        sha256: None,
        unpacked_bytes: None,
    };
    let formats = BTreeMap::from([("jsonl".to_owned(), inherited)]);
    let base = Artifact { to_position: None, formats, ..artifact(ArtifactKind::Snapshot, 1, None, 10) };
    assert_eq!(base.object(jsonl).as_deref(), Some("epoch=1/snapshot-.jsonl"));
}

/// Returns a manifest whose positions another writer spells with eight digits or in lower case.
fn spelled_otherwise() -> &'static str {
    r#"{"manifest_version": 1, "table": "public.t", "epoch": 2, "updated_at": "x", "head_position": "0/0019F010",
        "artifacts": [
          {"kind": "snapshot", "epoch": 1, "from_position": null, "to_position": "a/b", "created_at": "x", "row_count": 1,
           "formats": {"jsonl": {"uri": "u", "size_bytes": 3}}},
          {"kind": "snapshot", "epoch": 2, "to_position": "0/0019F000", "created_at": "x", "row_count": 1,
           "formats": {"jsonl": {"uri": "u", "size_bytes": 3}}},
          {"kind": "diff", "epoch": 2, "from_position": "0/0019F000", "to_position": "0/0019F010", "created_at": "x", "change_count": 1,
           "formats": {"jsonl": {"uri": "u", "size_bytes": 3}, "protobuf": {"uri": "v", "size_bytes": 4}}}],
        "columns": null}"#
}

#[test]
fn objects_are_named_as_the_manifest_spells_their_positions() {
    let manifest = Manifest::parse(spelled_otherwise().as_bytes(), None).unwrap();
    let names: Vec<String> =
        manifest.artifacts.iter().map(|artifact| artifact.object(ArtifactFormat::JSONL).unwrap()).collect();
    let expected =
        ["epoch=1/snapshot-a_b.jsonl", "epoch=2/snapshot-0_0019F000.jsonl", "epoch=2/diff-0_0019F000-0_0019F010.jsonl"];
    assert_eq!(names, expected);
    assert_eq!(manifest.head_position, Some(Lsn(0x0019_F010)));
    assert_eq!(
        manifest.chain_to(manifest.locate(Lsn(0x0019_F000)).unwrap()).len(),
        1,
        "a position is a number however it is spelled"
    );
    let here = manifest.located(|object| format!("file:///{object}"));
    assert_eq!(here.artifacts[2].formats["protobuf"].uri, "file:///epoch=2/diff-0_0019F000-0_0019F010.pb");
}

#[test]
fn a_manifest_that_is_written_again_keeps_its_spellings() {
    let manifest = Manifest::parse(spelled_otherwise().as_bytes(), None).unwrap();
    let positions = |bytes: &[u8]| -> Vec<serde_json::Value> {
        let json: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        let of = |artifact: &serde_json::Value| [artifact["from_position"].clone(), artifact["to_position"].clone()];
        let artifacts = json["artifacts"].as_array().unwrap().iter().flat_map(of);
        artifacts.chain([json["head_position"].clone()]).collect()
    };
    let written = manifest.to_json().unwrap();
    assert_eq!(positions(&written), positions(spelled_otherwise().as_bytes()));
    assert_eq!(Manifest::parse(&written, None).unwrap(), manifest);
    // A later epoch of a laredo writer has PostgreSQL's spelling, and leaves the others unchanged.
    let schema = columns::untyped(["id".to_owned()], &["id".to_owned()]).unwrap();
    let next = manifest.with_snapshot(artifact(ArtifactKind::Snapshot, 3, None, 0x001A_0000), &schema).unwrap();
    let written = positions(&next.to_json().unwrap());
    assert_eq!(written[..6], positions(spelled_otherwise().as_bytes())[..6]);
    assert_eq!(written[6..], [serde_json::Value::Null, "0/1A0000".into(), "0/1A0000".into()]);
}

fn entry(name: &str, r#type: &str, type_oid: u32, key: u32) -> ColumnEntry {
    ColumnEntry {
        name: name.to_owned(),
        r#type: r#type.to_owned(),
        nullable: key == 0,
        primary_key: key > 0,
        ordinal_position: 1,
        primary_key_ordinal: key,
        default_value: None,
        max_length: None,
        type_oid,
    }
}

#[test]
fn a_key_is_named_where_the_manifest_does_not() {
    let of = |entries: &[ColumnEntry], key: &[&str]| {
        let manifest =
            Manifest { columns: entries.to_vec(), ..manifest(vec![artifact(ArtifactKind::Snapshot, 1, None, 10)]) };
        let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
        manifest.schema(1, &key).map(|schema| schema.map(|schema| schema.key().columns().to_vec()))
    };
    let unkeyed = [entry("a", "integer", 23, 0), entry("b", "text", 25, 0)];
    let keyed = [entry("a", "integer", 23, 2), entry("b", "text", 25, 1)];
    assert_eq!(of(&[], &[]), Ok(None));
    assert_eq!(of(&[], &["a"]), Ok(None));
    assert!(of(&unkeyed, &[]).unwrap_err().to_string().contains("--key-fields"));
    assert_eq!(of(&unkeyed, &["b", "a"]), Ok(Some(vec![1, 0])));
    assert!(of(&unkeyed, &["c"]).unwrap_err().to_string().contains("names c"));
    assert_eq!(of(&keyed, &[]), Ok(Some(vec![1, 0])));
    assert_eq!(of(&keyed, &["b", "a"]), Ok(Some(vec![1, 0])));
    for other in [&["a", "b"][..], &["b"], &["a", "b", "a"]] {
        assert!(of(&keyed, other).unwrap_err().to_string().contains("its key is (b, a)"), "{other:?}");
    }
}

#[test]
fn a_numeric_is_known_by_its_name() {
    for (name, oid, expected) in [
        ("numeric", 0, 1700),
        ("NUMERIC(12,2)", 0, 1700),
        ("decimal", 0, 1700),
        ("numeric[]", 0, 1231),
        ("numeric(12,2)[]", 0, 1231),
        ("numeric", 1700, 1700),
        ("numeric_of_ours", 0, 114),
        ("numeric", 20_000, 114),
        ("bigint", 0, 114),
        ("bigint", 20, 20),
    ] {
        let schema = columns::schema_of(&[entry("id", "integer", 23, 1), entry("n", name, oid, 0)], &[]).unwrap();
        assert_eq!(schema.columns()[1].type_oid, expected, "{name} {oid}");
    }
}

#[test]
fn a_number_that_no_other_may_follow_is_refused() {
    let whole = manifest(vec![artifact(ArtifactKind::Snapshot, 1, None, 10)]);
    let link = |first_epoch, last_epoch| SealedLink {
        uri: "epoch=1/sealed-1-1-0.json".to_owned(),
        size_bytes: 1,
        sha256: String::new(),
        first_epoch,
        last_epoch,
        artifacts: 1,
    };
    let with_fence = |fence| Manifest { writer: Some(WriterId { id: "w".to_owned(), fence }), ..whole.clone() };
    for (number, is_right) in
        [(MANIFEST_NUMBER_MAX, true), (MANIFEST_NUMBER_MAX + 1, false), (u64::MAX - 1, false), (u64::MAX, false)]
    {
        for (name, manifest) in [
            ("epoch", manifest(vec![artifact(ArtifactKind::Snapshot, number, None, 10)])),
            ("epoch", Manifest { epoch: number, ..manifest(Vec::new()) }),
            ("oldest_epoch", Manifest { oldest_epoch: Some(number), ..whole.clone() }),
            ("writer's fence", with_fence(number)),
            ("sealed epoch", Manifest { sealed: Some(link(1, number)), ..whole.clone() }),
            ("sealed epoch", Manifest { sealed: Some(link(number, 1)), ..whole.clone() }),
        ] {
            let text = serde_json::to_vec(&manifest).unwrap();
            match Manifest::parse(&text, None) {
                Ok(_) => assert!(is_right, "{name} {number}"),
                Err(ManifestError::Broken(violation)) => {
                    assert_eq!((violation, is_right), (ManifestViolation::TooLarge { name, number }, false));
                }
                Err(error) => panic!("{name} {number}: {error}"),
            }
        }
        let artifacts = vec![artifact(ArtifactKind::Snapshot, number, None, 10)];
        let earlier = SealedManifest::new("public.t", whole.artifacts.clone(), Some(link(number, number)));
        for (sealed, described) in [
            (SealedManifest::new("public.t", artifacts, None), link(number, number)),
            // A link may claim other epochs than those that the object names.
            (earlier, link(1, 1)),
        ] {
            let parsed = SealedManifest::parse(&sealed.to_json().unwrap(), &described, "public.t");
            match parsed {
                Ok(_) | Err(ManifestError::Broken(ManifestViolation::Sealed(_))) => {
                    assert!(is_right, "sealed {number}")
                }
                Err(ManifestError::Broken(ManifestViolation::TooLarge { .. })) => assert!(!is_right, "sealed {number}"),
                Err(error) => panic!("sealed {number}: {error}"),
            }
        }
    }
    assert_eq!(next_number("epoch", MANIFEST_NUMBER_MAX - 1), Ok(MANIFEST_NUMBER_MAX));
    for last in [MANIFEST_NUMBER_MAX, u64::MAX] {
        assert!(matches!(next_number("epoch", last), Err(ManifestViolation::TooLarge { .. })), "{last}");
    }
}
