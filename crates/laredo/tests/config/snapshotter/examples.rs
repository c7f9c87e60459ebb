//! Printed examples load as printed, and mean what the page says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use laredo::config::SnapshotterConfig;
use laredo::config::snapshotter::{
    ArchivedTableConfig, AwsConfig, DestinationConfig, EventConfig, EventTarget, IdentityConfig, S3Config,
    SnapshotterTlsConfig,
};
use laredo_archive::{ArtifactFormat, RebaseThresholds, S3Encryption};

use super::{MINIMAL, load};
use crate::{ConfigFolder, fixture};

fn load_file(file: &Path) -> SnapshotterConfig {
    let folder = ConfigFolder::new(&[]);
    SnapshotterConfig::load(&folder.loader().file(file))
        .unwrap_or_else(|report| panic!("{}\n{}", file.display(), report.render(false)))
}

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/snapshotter");
    let entries = std::fs::read_dir(folder).expect("the examples");
    let files = entries.map(|entry| entry.expect("an example").path());
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|e| e == "conf")).collect();
    files.sort();
    files
}

fn formats(ids: &[&str]) -> Vec<ArtifactFormat> {
    ids.iter().map(|id| id.parse().expect("a format")).collect()
}

fn local(path: &str) -> DestinationConfig {
    DestinationConfig::Local { path: path.into() }
}

fn s3(bucket: &str, prefix: &str, credentials: &str) -> DestinationConfig {
    let aws = AwsConfig { credentials: Some(credentials.to_owned()), ..AwsConfig::default() };
    let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
    DestinationConfig::S3(S3Config { bucket, prefix, force_path_style: false, encryption: None, aws })
}

#[test]
fn the_minimal_configuration_loads_as_printed() {
    let config = load_file(&fixture("snapshotter-minimal.conf"));
    assert_eq!((config.http.port, config.tables.len()), (8080, 1));
    let ArchivedTableConfig { source, diff, thresholds, formats: both, destinations, .. } = &config.tables[0];
    assert_eq!(source.server, "http://localhost:4001");
    assert_eq!((source.schema.as_str(), source.table.as_str()), ("public", "test_users"));
    assert_eq!(diff.interval, Duration::from_secs(5));
    let expected = RebaseThresholds {
        min_interval: Some(Duration::from_secs(30)),
        max_interval: Some(Duration::from_secs(600)),
        max_churn_records: Some(1000),
        ..RebaseThresholds::default()
    };
    assert_eq!(*thresholds, expected);
    assert_eq!((&both.snapshot, &both.diff), (&formats(&["jsonl"]), &formats(&["jsonl"])));
    assert_eq!(destinations, &[local("./.laredo-archive")]);
    assert_eq!(config.warnings(), [""; 0]);
}

#[test]
fn several_tables_load_as_printed() {
    let config = load_file(&fixture("snapshotter-tables.conf"));
    let [users, orders] = &config.tables[..] else { panic!("{:?}", config.tables) };
    assert_eq!((users.source.table.as_str(), orders.source.table.as_str()), ("users", "orders"));
    assert_eq!(users.destinations, [s3("b", "users/", "s3w")]);
    assert_eq!(users.formats.snapshot, formats(&["jsonl", "protobuf"]));
    assert_eq!(users.formats.diff, formats(&["protobuf"]));
    assert_eq!(orders.destinations, [local("/var/lib/laredo/orders")]);
    assert_eq!(config.credentials.len(), 1);
    assert_eq!(config.warnings(), [""; 0]);
}

#[test]
fn credentials_load_as_printed() {
    let config = load_file(&fixture("snapshotter-credentials-inside.conf"));
    let hocon = config.to_hocon();
    for expected in [
        "type = ambient",
        "type = assume_role",
        "role_arn = \"arn:aws:iam::222233334444:role/laredo-events-pub\"",
        "external_id = \"laredo\"",
    ] {
        assert!(hocon.contains(expected), "{expected} is not in\n{hocon}");
    }
    let topic_arn = "arn:aws:sns:eu-west-1:222233334444:users".to_owned();
    let aws = AwsConfig { credentials: Some("pub".to_owned()), ..AwsConfig::default() };
    assert_eq!(config.tables[0].events, [EventConfig { target: EventTarget::Sns { topic_arn }, aws }]);
}

#[test]
fn the_examples_load_without_a_warning() {
    let examples = examples();
    assert_eq!(examples.len(), 3);
    for example in &examples {
        assert_eq!(load_file(example).warnings(), [""; 0], "{}", example.display());
    }
}

#[test]
fn the_examples_of_the_page_are_those_that_are_printed() {
    for (example, printed) in
        [("minimal.conf", "snapshotter-minimal.conf"), ("multiple-tables.conf", "snapshotter-tables.conf")]
    {
        let examples = examples();
        let example = examples.iter().find(|file| file.ends_with(example)).expect("an example");
        assert_eq!(load_file(example), load_file(&fixture(printed)));
    }
}

#[test]
fn defaults_are_filled_in() {
    let config = load(MINIMAL).expect("valid");
    assert_eq!(config.http.port, 8080);
    assert!(config.credentials.is_empty());
    let table = &config.tables[0];
    assert_eq!(table.source.client_id, "laredo-snapshotter");
    assert_eq!((&table.source.tls, &table.source.token, &table.source.local_snapshot_path), (&None, &None, &None));
    assert_eq!((table.key_prefix.as_str(), table.key_fields.len()), ("t/", 0));
    assert_eq!(table.diff.interval, Duration::from_secs(30));
    assert_eq!(table.thresholds, RebaseThresholds::default());
    assert_eq!((&table.formats.snapshot, &table.formats.diff), (&formats(&["jsonl"]), &formats(&["jsonl"])));
    assert_eq!((table.events.len(), table.retention.keep_epochs, table.retention.manifest_epochs), (0, None, 8));
}

#[test]
fn every_key_is_read() {
    let config = load_file(&fixture("snapshotter-every-key.conf"));
    assert_eq!((config.http.port, config.temp_dir.as_deref()), (5080, Some(Path::new("/t"))));
    let table = &config.tables[0];
    assert_eq!(table.source.server, "https://laredo.example:4001");
    assert_eq!(table.source.client_id, "archive-1");
    assert_eq!(table.source.token.as_ref().map(|token| token.expose()), Some("hunter2"));
    let identity = Some(IdentityConfig { cert_path: "/c".into(), key_path: "/k".into() });
    assert_eq!(table.source.tls, Some(SnapshotterTlsConfig { ca_path: Some("/ca".into()), identity }));
    assert_eq!(
        (table.key_prefix.as_str(), &table.key_fields[..]),
        ("mixed/a.b/", &["x".to_owned(), "y".to_owned()][..])
    );
    assert_eq!(table.diff.interval, Duration::from_millis(1500));
    let thresholds = RebaseThresholds {
        min_interval: Some(Duration::from_secs(90)),
        max_interval: Some(Duration::from_secs(2 * 86_400)),
        max_diff_bytes: Some(10_000_000),
        max_diff_fraction: Some(0.25),
        max_churn_records: Some(7),
        max_churn_fraction: Some(1.5),
        max_diffs: Some(50),
    };
    assert_eq!(table.thresholds, thresholds);
    assert_eq!(table.formats.snapshot, formats(&["jsonl.zst", "protobuf.zst"]));
    assert_eq!(table.formats.diff, formats(&["protobuf", "jsonl"]));
    let aws = |region: Option<&str>, endpoint: Option<&str>, credentials: Option<&str>| AwsConfig {
        region: region.map(str::to_owned),
        endpoint: endpoint.map(str::to_owned),
        credentials: credentials.map(str::to_owned),
    };
    let region = Some("eu-west-1");
    let bucket = S3Config {
        bucket: "b".to_owned(),
        prefix: "p/".to_owned(),
        force_path_style: true,
        encryption: Some(S3Encryption::Kms(Some("alias/archives".to_owned()))),
        aws: aws(region, Some("http://127.0.0.1:9000"), Some("writer")),
    };
    assert_eq!(table.destinations, [local("/archive"), DestinationConfig::S3(bucket)]);
    let services: Vec<_> = table.events.iter().map(|event| event.aws.clone()).collect();
    let emulator = Some("http://127.0.0.1:9001");
    assert_eq!(
        services,
        [aws(region, None, Some("writer")), aws(None, emulator, None), aws(region, emulator, Some("node"))]
    );
    assert_eq!(table.events[2].target, EventTarget::Kinesis { stream: "changes".to_owned() });
    assert_eq!((table.retention.keep_epochs, table.retention.manifest_epochs), (Some(3), 2));
    let plain = &config.tables[1].source;
    assert_eq!((plain.server.as_str(), &plain.tls), ("http://[::1]:4002", &None));
    assert_eq!(config.tables[1].key_prefix, "");
}

#[test]
fn tls_is_what_the_scheme_or_enabled_says() {
    let with = |server: &str, tls: &str| {
        let source = format!("source {{ server = \"{server}\", tls {{ {tls} }}");
        load(&MINIMAL.replace("source { server = \"localhost:4001\"", &source))
    };
    for (server, tls, expected) in [
        ("h:1", "", "http://h:1"),
        ("h:1", "enabled = false", "http://h:1"),
        ("h:1", "enabled = true", "https://h:1"),
        ("http://h:1", "", "http://h:1"),
        ("http://h", "enabled = false, cert_path = \"\", key_path = \"\"", "http://h"),
        ("https://h:1/", "", "https://h:1"),
        ("https://h:1", "enabled = true, ca_path = /ca", "https://h:1"),
    ] {
        let config = with(server, tls).unwrap_or_else(|problems| panic!("{server} {tls}: {problems:?}"));
        let source = &config.tables[0].source;
        assert_eq!((source.server.as_str(), source.tls.is_some()), (expected, expected.starts_with("https")), "{tls}");
    }
}

#[test]
fn the_effective_configuration_loads_to_the_same_again() {
    let folder = ConfigFolder::new(&[]);
    let fixtures = ["minimal", "tables", "credentials-inside", "every-key"];
    let fixtures = fixtures.iter().map(|name| fixture(&format!("snapshotter-{name}.conf")));
    for file in fixtures.chain(examples()) {
        let config = load_file(&file);
        folder.write("effective.conf", config.to_hocon().as_bytes());
        let mut again = load_file(&folder.path("effective.conf"));
        assert_eq!(again.to_hocon(), config.to_hocon());
        // Everything is equal except the secrets, which are masked.
        for (again, table) in again.tables.iter_mut().zip(&config.tables) {
            again.source.token.clone_from(&table.source.token);
        }
        assert_eq!(again, config);
    }
}

#[test]
fn secrets_are_in_no_dump() {
    let config = load_file(&fixture("snapshotter-every-key.conf"));
    let hocon = config.to_hocon();
    assert!(hocon.contains("token = \"****\""), "{hocon}");
    for shown in [hocon, format!("{config:?}"), config.warnings().join("\n")] {
        assert!(!shown.contains("hunter"), "{shown}");
    }
}

#[test]
fn what_is_allowed_and_probably_not_meant_is_a_warning() {
    let with = |more: &str| {
        load(&MINIMAL.replace("destinations", &format!("{more}\ndestinations"))).expect("valid").warnings()
    };
    for (more, expected) in [
        (
            "source.local_snapshot_path = /s",
            "public.t: source.local_snapshot_path is not needed and not used: the state is rebuilt from the archive",
        ),
        (
            "source.token = x",
            "public.t: source.token is sent without TLS, so the network can read it; write https:// in source.server",
        ),
        (
            "key_prefix = users",
            "public.t: the manifest's name is usersmanifest.json; is a / missing after key_prefix = \"users\"?",
        ),
    ] {
        assert_eq!(with(more), [expected]);
    }
    assert_eq!(with("source { token = x, server = \"https://h\" }"), [""; 0]);
    let bucket = |prefix: &str, key_prefix: &str| {
        let s3 = format!("{{ type = s3, bucket = b, prefix = \"{prefix}\" }}");
        let text = MINIMAL.replace("{ type = local, path = /archive }", &s3);
        load(&text.replace("destinations", &format!("key_prefix = \"{key_prefix}\"\ndestinations")))
            .expect("valid")
            .warnings()
    };
    for (prefix, key_prefix) in [("", ""), ("p/", ""), ("", "t/"), ("p/", "t/"), ("p", "/t/"), ("p/q/", "t/")] {
        assert_eq!(bucket(prefix, key_prefix), [""; 0], "{prefix} {key_prefix}");
    }
    for (prefix, key_prefix, after) in
        [("p", "", "prefix = \"p\""), ("p", "t/", "prefix = \"p\""), ("p/", "t", "key_prefix = \"t\"")]
    {
        let expected = format!(
            "public.t: the manifest's name is {prefix}{key_prefix}manifest.json; is a / missing after {after}?"
        );
        assert_eq!(bucket(prefix, key_prefix), [expected]);
    }
}
