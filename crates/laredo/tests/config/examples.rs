//! Printed examples load as printed, and mean what the pages say.

use std::path::PathBuf;
use std::time::Duration;

use laredo::config::server::{
    ArchiveFormat, BufferPolicyConfig, ColumnMaskConfig, DdlWatchConfig, FilterConfig, FilterValue, HashConfig,
    JournalStoreConfig, LogLevel, LogType, MaskConfig, SlotConfig, SnapshotSerializer, StoreConfig, TransformConfig,
};
use laredo::config::{ConfigSecret, ServerConfig};

use super::{ConfigFolder, MINIMAL, fixture, load};

fn load_fixture(name: &str) -> ServerConfig {
    let folder = ConfigFolder::new(&[]);
    ServerConfig::load(&folder.loader().file(fixture(name)))
        .map_err(|report| report.to_string())
        .expect("the fixture loads")
}

#[test]
fn the_fan_out_page_loads_as_printed() {
    let config = load_fixture("fanout-page-server.conf");
    let fanout = &config.tables[0].fanout;
    assert_eq!(fanout.journal.max_entries, 1_000_000);
    assert_eq!(fanout.journal.max_age, Duration::from_secs(24 * 3600));
    assert_eq!((fanout.grpc.port, fanout.grpc.max_clients), (4002, 500));
    assert_eq!(fanout.client_buffer.max_entries, 50_000);
    assert_eq!(fanout.client_buffer.policy, BufferPolicyConfig::DropDisconnect);
    let snapshot = fanout.snapshot.as_ref().expect("the page has one");
    assert_eq!(snapshot.interval, Duration::from_secs(300));
    assert_eq!(snapshot.serializer, SnapshotSerializer::Jsonl);
    assert_eq!(snapshot.retention.keep_count, 5);
    assert_eq!(snapshot.retention.max_age, Some(Duration::from_secs(3600)));
    let path = PathBuf::from("/var/lib/laredo/fanout-snapshots");
    assert_eq!(snapshot.store, StoreConfig::Local { path });
}

#[test]
fn the_full_example_loads_as_printed() {
    let config = load_fixture("server-full.conf");
    let source = &config.sources["pg_main"];
    assert_eq!(source.connection.expose(), "postgresql://user:pass@host:5432/dbname");
    let slot_name = "laredo_01".to_owned();
    assert_eq!(source.slot, SlotConfig::Stateful { slot_name });
    assert_eq!(source.publication.name, "laredo_01_pub");
    assert!(source.publication.create);
    assert_eq!(source.reconnect.max_attempts, Some(10));
    assert_eq!(source.reconnect.initial_backoff, Duration::from_secs(1));
    assert_eq!(source.reconnect.max_backoff, Duration::from_secs(60));
    assert_eq!(source.reconnect.backoff_multiplier, 2.0);

    let table = &config.tables[0];
    assert_eq!(table.source, "pg_main");
    assert_eq!((table.schema.as_str(), table.table.as_str()), ("public", "config_document"));
    assert_eq!(table.key_fields, ["id"]);
    let fanout = &table.fanout;
    assert_eq!(fanout.journal.max_bytes, 4 << 30);
    assert_eq!(fanout.journal.memory_max_bytes, 256 << 20);
    let path = PathBuf::from("/var/lib/laredo/journal");
    assert_eq!(fanout.journal.store, JournalStoreConfig::Durable(StoreConfig::Local { path }));
    assert_eq!(fanout.heartbeat_interval, Duration::from_secs(5));
    let archive = fanout.archive.as_ref().expect("the example has one");
    assert_eq!(archive.key_prefix, "config_document/");
    assert_eq!(archive.format, ArchiveFormat::Jsonl);
    assert_eq!(
        fanout.filters,
        [FilterConfig::FieldEquals { field: "status".to_owned(), value: FilterValue::String("active".to_owned()) }]
    );
    assert_eq!(fanout.transforms, [TransformConfig::DropFields { fields: vec!["secret".to_owned()] }]);

    assert_eq!(config.grpc.port, 4001);
    assert_eq!(config.grpc.tls, None);
    assert_eq!(config.health.http_port, 8080);
    assert_eq!(config.health.readiness_path, "/health/ready");
    assert_eq!(config.health.liveness_path, "/health/live");
    let metrics = &config.observability.metrics;
    assert_eq!((metrics.port, metrics.path.as_str()), (9090, "/metrics"));
    assert_eq!(config.observability.logging.log_type, LogType::Structured);
    assert_eq!(config.observability.logging.level, LogLevel::Info);
}

#[test]
fn defaults_are_filled_in() {
    let config = load(MINIMAL).expect("valid");
    let source = &config.sources["pg"];
    assert_eq!(source.slot, SlotConfig::Ephemeral { slot_name: None });
    assert_eq!(source.publication.name, "laredo_pg_pub");
    assert!(!source.publication.create);
    assert_eq!(source.ddl.watch, DdlWatchConfig::Poll);
    assert_eq!(source.reconnect.max_attempts, None);
    assert_eq!((source.copies_max, source.copy_timeout), (4, Duration::from_secs(24 * 3600)));
    let fanout = &config.tables[0].fanout;
    assert_eq!(fanout.journal.max_entries, 100_000);
    assert_eq!(fanout.journal.max_age, Duration::from_secs(24 * 3600));
    assert_eq!(fanout.journal.memory_max_bytes, 256 << 20);
    assert_eq!(fanout.journal.store, JournalStoreConfig::Memory);
    assert_eq!((fanout.grpc.port, fanout.grpc.max_clients), (4002, 5000));
    assert_eq!(fanout.heartbeat_interval, Duration::from_secs(5));
    assert_eq!((&fanout.snapshot, &fanout.archive), (&None, &None));
    assert!(config.tables[0].key_fields.is_empty());
    let verify = &config.tables[0].verify;
    assert_eq!((verify.enabled, verify.interval, verify.heal), (true, Duration::from_secs(24 * 3600), true));
    assert_eq!(verify.bytes_per_second, 20 << 20);
    assert_eq!(config.grpc.port, 4001);
    assert_eq!(config.health.http_port, 8080);
    assert_eq!(config.observability.metrics.port, 9090);
}

#[test]
fn verification_is_set_for_each_table() {
    let text = r#"sources { pg { type = pg, connection = "host=h user=u" } }
        tables = [{ source = pg, schema = s, table = t, targets = [{ type = replication-fanout }]
          verify { enabled = false, interval = 7d, rate = 5MB/s, heal = false } }]"#;
    let verify = &load(text).expect("valid").tables[0].verify;
    assert_eq!((verify.enabled, verify.interval, verify.heal), (false, Duration::from_secs(7 * 86_400), false));
    assert_eq!(verify.bytes_per_second, 5_000_000);
}

#[test]
fn both_spellings_of_ports_and_limits_load() {
    let text = |target: &str, rest: &str| {
        format!(
            r#"sources {{ pg {{ type = pg, connection = "host=h user=u" }} }}
               tables = [{{ source = pg, schema = s, table = t,
                 targets = [{{ type = replication-fanout, {target} }}] }}]
               {rest}"#
        )
    };
    for (target, rest, port, max_clients) in [
        ("grpc { port = 5002, max_clients = 7 }", "", 5002, 7),
        ("max_clients = 7", "fanout { grpc { port = 5002 } }", 5002, 7),
        ("max_clients = 7, grpc { max_clients = 7 }", "", 4002, 7),
        ("grpc { port = 5003 }", "fanout { grpc { port = 5002 } }", 5003, 5000),
        ("max_clients = null", "", 4002, 5000),
    ] {
        let config = load(&text(target, rest)).expect(target);
        let grpc = &config.tables[0].fanout.grpc;
        assert_eq!((grpc.port, grpc.max_clients), (port, max_clients), "{target}");
    }
}

#[test]
fn the_whole_language_is_read() {
    let config = load(
        r#"
        // comments of both kinds
        # and this
        sources.pg { type = postgresql, connection = "postgresql://u@"${?NOTHING}"h/d" }
        sources.pg.slot_name = "first"
        sources { pg { slot_name : second } }           // duplicate keys merge, the last wins
        tables += { source = pg, schema = public, table = a
                    targets += { type = replication-fanout, journal { max_age = 7d, memory_max_bytes = 32MiB } } }
        tables += { source = pg, schema = public, table = b
                    key_fields = [
                      one                               # newlines separate
                      two
                    ]
                    targets = [{ type = replication-fanout, journal.memory_max_bytes = 2048k } {
                      heartbeat_interval = 200ms }] }
        health { http_port = 1, http_port = ${grpc.port}9 }
        grpc.port = 700
        "#,
    )
    .expect("valid");
    assert_eq!(config.sources["pg"].slot, SlotConfig::Ephemeral { slot_name: Some("second".to_owned()) });
    assert_eq!(config.sources["pg"].connection.expose(), "postgresql://u@h/d");
    let journal = &config.tables[0].fanout.journal;
    assert_eq!(journal.max_age, Duration::from_secs(7 * 86_400));
    assert_eq!(journal.memory_max_bytes, 32 << 20);
    assert_eq!(config.tables[1].key_fields, ["one", "two"]);
    let fanout = &config.tables[1].fanout;
    assert_eq!(fanout.journal.memory_max_bytes, 2 << 20);
    assert_eq!(fanout.heartbeat_interval, Duration::from_millis(200));
    assert_eq!(config.health.http_port, 7009);
}

#[test]
fn filters_and_transforms_are_typed() {
    let config = load(
        r#"
        sources { pg { type = pg, connection = "host=h user=u" } }
        tables = [{ source = pg, schema = s, table = t, targets = [{ type = replication-fanout
          filters = [
            { type = field-equals, field = a, value = active }
            { type = field-equals, field = b, value = 12345678901234567890.5 }
            { type = field-equals, field = c, value = true }
            { type = field-equals, field = d, value = null }
            { type = field-equals, field = e, value = "5" }
            { type = field-prefix, field = f, prefix = "eu-" }
            { type = field-regex, field = g, pattern = "^a+$" }
          ]
          transforms = [
            { type = rename-fields, fields { old = new } }
            { type = add-timestamp, field = at }
            { type = add-timestamp }
          ] }] }]"#,
    )
    .expect("valid");
    let fanout = &config.tables[0].fanout;
    let values: Vec<_> = fanout
        .filters
        .iter()
        .filter_map(|filter| match filter {
            FilterConfig::FieldEquals { value, .. } => Some(value.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        values,
        [
            FilterValue::String("active".to_owned()),
            FilterValue::Number("12345678901234567890.5".to_owned()),
            FilterValue::Bool(true),
            FilterValue::Null,
            FilterValue::String("5".to_owned()),
        ]
    );
    match &fanout.filters[6] {
        FilterConfig::FieldRegex { pattern, .. } => assert!(pattern.0.is_match("aaa")),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        fanout.transforms[0],
        TransformConfig::RenameFields { fields: vec![("old".to_owned(), "new".to_owned())] }
    );
    assert_eq!(fanout.transforms[1], TransformConfig::AddTimestamp { field: "at".to_owned() });
}

#[test]
fn hashes_and_masks_are_read() {
    let config = load(
        r#"sources { pg { type = pg, connection = "host=h user=u" } }
        tables = [{ source = pg, schema = s, table = t, targets = [{ type = replication-fanout, transforms = [
            { type = hash, fields = [email, id], key = "0123456789abcdef" }
            { type = mask, fields = [name], value = "***" }
            { type = mask, fields = [phone], keep_last = 4 }
        ] }] }]"#,
    )
    .expect("valid");
    let names = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>();
    let mask = |field: &str| MaskConfig { fields: names(&[field]), ..MaskConfig::default() };
    let key = Some(ConfigSecret::new("0123456789abcdef"));
    let expected = [
        TransformConfig::Hash(HashConfig { fields: names(&["email", "id"]), key, key_file: None }),
        TransformConfig::Mask(MaskConfig { value: Some("***".to_owned()), ..mask("name") }),
        TransformConfig::Mask(MaskConfig { keep_last: Some(4), ..mask("phone") }),
    ];
    assert_eq!(config.tables[0].fanout.transforms, expected);
}

#[test]
fn the_masks_of_a_grant_are_read() {
    let config = load(
        r#"sources { pg { type = pg, connection = "host=h user=u" } }
        tables = [{ source = pg, schema = s, table = t, targets = [{ type = replication-fanout }] }]
        access {
            identities { a { tokens = [{ sha256 = 0d7a4f0b0d7a4f0b0d7a4f0b0d7a4f0b0d7a4f0b0d7a4f0b0d7a4f0b0d7a4f0b }] } }
            readers = [{ identities = [a], tables = ["*"], hide = [notes], mask = [
                { type = hash, fields = [email], key_file = "/run/secrets/key" }
                { type = mask, fields = [name, phone], keep_first = 1, with = "x" }
            ] }]
        }"#,
    )
    .expect("valid");
    let names = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>();
    let key_file = Some(PathBuf::from("/run/secrets/key"));
    let (keep_first, with) = (Some(1), Some("x".to_owned()));
    let expected = [
        ColumnMaskConfig::Hash(HashConfig { fields: names(&["email"]), key: None, key_file }),
        ColumnMaskConfig::Mask(MaskConfig {
            fields: names(&["name", "phone"]),
            keep_first,
            with,
            ..MaskConfig::default()
        }),
    ];
    let grant = &config.access.as_ref().expect("there is access").readers[0];
    assert_eq!((grant.mask.as_slice(), &grant.hide), (expected.as_slice(), &names(&["notes"])));
}

#[test]
fn the_effective_configuration_loads_to_the_same_again() {
    let folder = ConfigFolder::new(&[]);
    for name in ["server-full.conf", "fanout-page-server.conf", "every-key.conf"] {
        let config = load_fixture(name);
        folder.write("effective.conf", config.to_hocon().as_bytes());
        let again = ServerConfig::load(&folder.loader().file(folder.path("effective.conf")))
            .unwrap_or_else(|report| panic!("{}\n{}", config.to_hocon(), report.render(false)));
        assert_eq!(again.to_hocon(), config.to_hocon());
        assert_eq!(again.tables, config.tables);
    }
}
