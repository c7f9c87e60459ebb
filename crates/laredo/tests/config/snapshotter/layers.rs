//! The order of the layers, and the variables of each program.

use laredo::config::{ServerConfig, SnapshotterConfig};

use super::MINIMAL;
use crate::ConfigFolder;

fn port(port: u16) -> String {
    format!("snapshotter.http.port = {port}")
}

#[test]
fn later_layers_win() {
    let folder = ConfigFolder::new(&[
        ("named.conf", &format!("{MINIMAL}\n{}", port(1))),
        ("argument.conf", &format!("{MINIMAL}\n{}", port(2))),
        ("conf.d/a.conf", &port(3)),
        ("init.d/a.conf", &port(4)),
    ]);
    let named = folder.path("named.conf");
    let named = ("LAREDO_SNAPSHOTTER_CONFIG", named.to_str().expect("UTF-8"));
    let served = |loader: &_| SnapshotterConfig::load(loader).unwrap_or_else(|report| panic!("{report}")).http.port;
    let loader = folder.loader_with(&[named]);
    assert_eq!(served(&loader), 1);
    let loader = loader.file(folder.path("argument.conf"));
    assert_eq!(served(&loader), 2);
    let loader = loader.conf_dir(folder.path("conf.d"));
    assert_eq!(served(&loader), 3);
    assert_eq!(served(&loader.init_dir(folder.path("init.d"))), 4);
    let variable = ("LAREDO_SNAPSHOTTER_HTTP_PORT", "5");
    let loader = folder.loader_with(&[named, variable]).init_dir(folder.path("init.d"));
    assert_eq!(served(&loader), 5);
    let loader = loader.set("snapshotter.http.port=6");
    assert_eq!(served(&loader), 6);
    assert_eq!(served(&loader.flag("--http-port", "snapshotter.http.port", "7")), 7);
}

#[test]
fn variables_set_keys_of_one_table_and_of_many() {
    let folder = ConfigFolder::new(&[("one.conf", MINIMAL)]);
    let environment = [
        ("LAREDO_SNAPSHOTTER_SOURCE_SERVER", "https://other:1"),
        ("LAREDO_SNAPSHOTTER_SOURCE_TLS_CA_PATH", "/ca"),
        ("LAREDO_SNAPSHOTTER_SNAPSHOT_MAX_CHURN_FRACTION", "0.5"),
        ("LAREDO_SNAPSHOTTER_FORMATS_DIFF", "[jsonl, protobuf.zst]"),
        ("LAREDO_SNAPSHOTTER_DESTINATIONS_0_PATH", "/elsewhere"),
        ("LAREDO_SNAPSHOTTER_CREDENTIALS_WHO_WRITES_TYPE", "ambient"),
    ];
    let loader = folder.loader_with(&environment).file(folder.path("one.conf"));
    let config = SnapshotterConfig::load(&loader).unwrap_or_else(|report| panic!("{report}"));
    let table = &config.tables[0];
    assert_eq!(table.source.server, "https://other:1");
    assert_eq!(table.source.tls.as_ref().and_then(|tls| tls.ca_path.clone()), Some("/ca".into()));
    assert_eq!(table.thresholds.max_churn_fraction, Some(0.5));
    assert_eq!(table.formats.diff.iter().map(|format| format.id()).collect::<Vec<_>>(), ["jsonl", "protobuf.zst"]);
    assert!(config.credentials.contains_key("who_writes"));

    folder.write("many.conf", config.to_hocon().as_bytes());
    let environment =
        [("LAREDO_SNAPSHOTTER_TABLES_0_SOURCE_TABLE", "u"), ("LAREDO_SNAPSHOTTER_TABLES_0_DIFF_INTERVAL", "1m")];
    let loader = folder.loader_with(&environment).file(folder.path("many.conf"));
    let config = SnapshotterConfig::load(&loader).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!((config.tables[0].source.table.as_str(), config.tables[0].diff.interval.as_secs()), ("u", 60));
}

/// An environment for both programs and for the operator's command. Each uses only its own
/// variables.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("LAREDO_GRPC_PORT", "4101"),
    ("LAREDO_SOURCES_PG_SLOT_NAME", "slot"),
    ("LAREDO_SNAPSHOTTER_HTTP_PORT", "4102"),
    ("LAREDO_SERVER", "http://laredo:4002"),
    ("LAREDO_OAM", "http://laredo:4001"),
    ("LAREDO_TEST_FULL", "1"),
    // Variables that Kubernetes sets for services.
    ("LAREDO_SNAPSHOTTER_SERVICE_HOST", "10.0.0.1"),
    ("LAREDO_SNAPSHOTTER_SERVICE_PORT_HTTP", "8080"),
    ("LAREDO_SNAPSHOTTER_PORT", "tcp://10.0.0.1:8080"),
    ("LAREDO_SNAPSHOTTER_PORT_8080_TCP_ADDR", "10.0.0.1"),
    ("LAREDO_SERVICE_HOST", "10.0.0.2"),
];

#[test]
fn both_programs_live_in_one_environment() {
    let folder = ConfigFolder::new(&[("snapshotter.conf", MINIMAL), ("server.conf", crate::MINIMAL)]);
    let path = |name: &str| folder.path(name).to_str().expect("UTF-8").to_owned();
    let (server, snapshotter) = (path("server.conf"), path("snapshotter.conf"));
    let mut environment = vec![("LAREDO_CONFIG", server.as_str()), ("LAREDO_SNAPSHOTTER_CONFIG", &snapshotter)];
    environment.extend(ENVIRONMENT);
    let loader = folder.loader_with(&environment);
    let server = ServerConfig::load(&loader).unwrap_or_else(|report| panic!("{report}"));
    let snapshotter = SnapshotterConfig::load(&loader).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!((server.grpc.port, snapshotter.http.port), (4101, 4102));
}

#[test]
fn a_variable_that_sets_no_key_is_an_error_of_the_program_that_it_is_for() {
    let folder = ConfigFolder::new(&[("snapshotter.conf", MINIMAL)]);
    let environment = [
        ("LAREDO_GRCP_PORT", "1"),
        ("LAREDO_SNAPSHOTTER_HTPP_PORT", "1"),
        ("LAREDO_SNAPSHOTTER_SOURCE_TOKN", "hunter2"),
        ("LAREDO_SNAPSHOTTER_HTTP", "many"),
    ];
    let loader = folder.loader_with(&environment).file(folder.path("snapshotter.conf"));
    let report = SnapshotterConfig::load(&loader).expect_err("three of them are wrong");
    assert_eq!(
        folder.lines(&report),
        [
            "environment variable LAREDO_SNAPSHOTTER_HTPP_PORT: sets no known key (did you mean LAREDO_SNAPSHOTTER_HTTP_PORT?)",
            "environment variable LAREDO_SNAPSHOTTER_SOURCE_TOKN: sets no known key (did you mean LAREDO_SNAPSHOTTER_SOURCE_TOKEN?)",
            "environment variable LAREDO_SNAPSHOTTER_HTTP: snapshotter.http: expected a block { … }, found \"many\"",
        ]
    );
}
