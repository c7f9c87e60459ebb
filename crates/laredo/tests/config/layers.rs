//! The order of the layers, and the rules for reading each of them.

use laredo::config::ServerConfig;
use laredo::config::server::LogLevel;

use super::{ConfigFolder, MINIMAL};

/// Loads a folder in which each layer up to `layers` sets the same key. Returns the resulting
/// value.
fn layered(layers: usize) -> u16 {
    let port = |i: u16| format!("grpc.port = {i}");
    let folder = ConfigFolder::new(&[("laredo.conf", MINIMAL)]);
    let mut environment = vec![];
    if layers >= 1 {
        folder.write("laredo.conf", format!("{MINIMAL}\n{}", port(1)).as_bytes());
    }
    if layers >= 2 {
        folder.write("conf.d/a.conf", port(2).as_bytes());
    }
    if layers >= 3 {
        folder.write("conf.d/b.conf", port(3).as_bytes());
    }
    if layers >= 4 {
        folder.write("init.d/a.conf", port(4).as_bytes());
    }
    if layers >= 5 {
        environment.push(("LAREDO_GRPC_PORT", "5"));
    }
    folder.write("conf.d/ignored.txt", b"grpc.port = 99");
    folder.write("conf.d/.hidden.conf", b"grpc.port = 99");
    folder.write("init.d/script.sh", b"exit 1");
    let mut loader = folder
        .loader_with(&environment)
        .file(folder.path("laredo.conf"))
        .conf_dir(folder.path("conf.d"))
        .init_dir(folder.path("init.d"));
    if layers >= 6 {
        loader = loader.set("grpc.port=6");
    }
    if layers >= 7 {
        loader = loader.set("grpc.port=7");
    }
    ServerConfig::load(&loader).expect("valid").grpc.port
}

#[test]
fn later_layers_win() {
    assert_eq!(layered(0), 4001);
    for layer in 1..=7 {
        assert_eq!(usize::from(layered(layer)), layer);
    }
}

#[test]
fn the_file_may_be_named_by_a_variable_and_the_argument_wins() {
    let folder = ConfigFolder::new(&[("a.conf", MINIMAL), ("b", &format!("{MINIMAL} grpc.port = 2"))]);
    let (a, b) = (folder.path("a.conf"), folder.path("b"));
    let environment = [("LAREDO_CONFIG", b.to_str().expect("UTF-8"))];
    let loader = folder.loader_with(&environment);
    assert_eq!(ServerConfig::load(&loader).expect("valid").grpc.port, 2);
    let loader = loader.file(a);
    assert_eq!(ServerConfig::load(&loader).expect("valid").grpc.port, 4001);
}

#[test]
fn a_named_file_or_folder_must_exist() {
    let folder = ConfigFolder::new(&[("laredo.conf", MINIMAL)]);
    for (loader, who) in [
        (folder.loader().file(folder.path("no.conf")), "--config: cannot read no.conf"),
        (folder.loader().conf_dir(folder.path("no.d")), "--conf-dir: cannot read the folder no.d"),
        (folder.loader().init_dir(folder.path("no.d")), "--init-dir: cannot read the folder no.d"),
    ] {
        let report = ServerConfig::load(&loader).expect_err("it does not exist");
        let lines = folder.lines(&report);
        assert!(lines.len() == 1 && lines[0].starts_with(who), "{lines:?}");
    }
    let environment = [("LAREDO_CONFIG", "/nowhere/laredo.conf")];
    let report = ServerConfig::load(&folder.loader_with(&environment)).expect_err("missing");
    let line = report.to_string();
    assert!(line.starts_with("environment variable LAREDO_CONFIG: cannot read"), "{line}");
}

#[test]
fn files_merge_by_key_and_lists_append_across_them() {
    let folder = ConfigFolder::new(&[
        ("conf.d/1.conf", MINIMAL),
        ("conf.d/2.conf", "sources.pg.slot_name = two"),
        (
            "conf.d/3.conf",
            "tables += { source = pg, schema = public, table = more, targets = [{ type = replication-fanout }] }",
        ),
        ("conf.d/4.conf", "health.http_port = ${grpc.port}1, grpc { port = 400 }"),
    ]);
    let loader = folder.loader().conf_dir(folder.path("conf.d"));
    let config = ServerConfig::load(&loader).expect("valid");
    let tables: Vec<_> = config.tables.iter().map(|t| t.table.as_str()).collect();
    assert_eq!(tables, ["t", "more"]);
    assert_eq!(config.sources["pg"].publication.name, "two_pub");
    assert_eq!(config.health.http_port, 4001);
    // A substitution uses the value that a later layer set.
    let config = ServerConfig::load(&loader.set("grpc.port=500")).expect("valid");
    assert_eq!(config.health.http_port, 5001);
}

#[test]
fn includes_are_relative_to_the_file_that_includes() {
    let folder = ConfigFolder::new(&[
        ("laredo.conf", "include \"parts/all.conf\"\ninclude \"parts/absent.conf\""),
        ("parts/all.conf", "include required(\"more/minimal.conf\")\ngrpc { include \"grpc\" }"),
        ("parts/more/minimal.conf", MINIMAL),
        ("parts/grpc.conf", "port = 4100"),
    ]);
    let loader = folder.loader().file(folder.path("laredo.conf"));
    assert_eq!(ServerConfig::load(&loader).expect("valid").grpc.port, 4100);

    folder.write("parts/grpc.conf", b"\n  prot = 4100");
    let report = ServerConfig::load(&loader).expect_err("a mistyped key");
    assert_eq!(folder.lines(&report), ["parts/grpc.conf:2:3: grpc.prot: unknown key (did you mean port?)"]);
}

#[test]
fn variables_set_keys_whose_names_have_underscores() {
    let folder = ConfigFolder::new(&[(
        "laredo.conf",
        r#"sources {
             pg { type = pg, connection = "host=a user=u" }
             pg_main { type = pg, connection = "host=b user=u" }
             pg-main-2 { type = pg, connection = "host=c user=u" }
           }
           tables = [{ source = pg, schema = s, table = t, targets = [{ type = replication-fanout }] }]"#,
    )]);
    let environment = [
        ("LAREDO_SOURCES_PG_CONNECTION", "host=a2 user=u password=x"),
        ("LAREDO_SOURCES_PG_MAIN_CONNECTION", "postgresql://u:p#w@h/d"),
        ("LAREDO_SOURCES_PG_MAIN_2_CONNECTION", "host=c2 user=u"),
        ("LAREDO_SOURCES_PG_MAIN_SLOT_NAME", "slot"),
        ("LAREDO_SOURCES_NEW_ONE_CONNECTION", "host=n user=u"),
        ("LAREDO_SOURCES_NEW_ONE_TYPE", "postgresql"),
        ("LAREDO_TABLES_0_TARGETS_0_JOURNAL_MAX_AGE", "1h"),
        ("LAREDO_TABLES_0_TARGETS_0_GRPC_PORT", "5002"),
        ("LAREDO_TABLES_0_KEY_FIELDS", "[id, \"at\"]"),
        ("LAREDO_OBSERVABILITY_LOGGING_LEVEL", "debug"),
        // The loader ignores these: they belong to other programs, or Kubernetes sets them for a
        // service named laredo.
        ("LAREDO_CONFIG", ""),
        ("LAREDO_SNAPSHOTTER_HTTP_PORT", "1"),
        ("LAREDO_SERVER", "http://laredo:4002"),
        ("LAREDO_TEST_FULL", "1"),
        ("LAREDO_TEST_PG_BIN", "/usr/lib/postgresql/15/bin"),
        ("LAREDO_SERVICE_HOST", "10.0.0.1"),
        ("LAREDO_SERVICE_PORT_GRPC", "4001"),
        ("LAREDO_PORT", "tcp://10.0.0.1:4001"),
        ("LAREDO_PORT_4001_TCP_ADDR", "10.0.0.1"),
        ("PATH", "/bin"),
    ];
    let loader = folder.loader_with(&environment).file(folder.path("laredo.conf"));
    let config = ServerConfig::load(&loader).unwrap_or_else(|r| panic!("{r}"));
    let connection = |name: &str| config.sources[name].connection.expose().to_owned();
    assert_eq!(connection("pg"), "host=a2 user=u password=x");
    assert_eq!(connection("pg_main"), "postgresql://u:p#w@h/d");
    assert_eq!(connection("pg-main-2"), "host=c2 user=u");
    assert_eq!(connection("new_one"), "host=n user=u");
    assert_eq!(config.sources["pg_main"].publication.name, "slot_pub");
    let table = &config.tables[0];
    assert_eq!(table.fanout.journal.max_age.as_secs(), 3600);
    assert_eq!(table.fanout.grpc.port, 5002);
    assert_eq!(table.key_fields, ["id", "at"]);
    assert_eq!(config.observability.logging.level, LogLevel::Debug);
}

#[test]
fn settings_reach_quoted_names_and_list_items() {
    let folder = ConfigFolder::new(&[("laredo.conf", MINIMAL)]);
    let loader = folder
        .loader()
        .file(folder.path("laredo.conf"))
        .set("sources.\"pg\".connection = postgresql://u:p=w@h/d?sslmode=require")
        .set("tables.0.targets.0.client_buffer.max_size=5")
        .set("tables.0.targets.0.filters=[{ type = field-equals, field = a, value = 1 }]")
        .set("health.http_port=81")
        .flag("--log-level", "observability.logging.level", "trace");
    let config = ServerConfig::load(&loader).unwrap_or_else(|r| panic!("{r}"));
    assert_eq!(config.sources["pg"].connection.expose(), "postgresql://u:p=w@h/d?sslmode=require");
    assert_eq!(config.tables[0].fanout.client_buffer.max_entries, 5);
    assert_eq!(config.tables[0].fanout.filters.len(), 1);
    assert_eq!(config.health.http_port, 81);
    assert_eq!(config.observability.logging.level, LogLevel::Trace);
}

#[test]
fn errors_of_variables_and_settings_name_them() {
    let folder = ConfigFolder::new(&[("laredo.conf", MINIMAL)]);
    let environment = [("LAREDO_GRPC_PORT", "many"), ("LAREDO_GRCP_PORT", "4001"), ("LAREDO_TABLES_7_SCHEMA", "s")];
    let loader = folder
        .loader_with(&environment)
        .file(folder.path("laredo.conf"))
        .set("nonsense")
        .set("tables=[{")
        .flag("--health-port", "health.http_port", "70000");
    let report = ServerConfig::load(&loader).expect_err("all of them are wrong");
    assert_eq!(
        folder.lines(&report),
        [
            "environment variable LAREDO_GRCP_PORT: sets no known key (did you mean LAREDO_GRPC_PORT?)",
            "--set: expected key=value, as in --set grpc.port=4001",
            "--set tables: tables: the value is not valid HOCON",
            "environment variable LAREDO_TABLES_7_SCHEMA: tables.7.schema: there is no item 7 in a list of 1; the first item is 0",
            "environment variable LAREDO_GRPC_PORT: grpc.port: expected a whole number from 0 to 65535, found \"many\"",
            "--health-port: health.http_port: expected a whole number from 0 to 65535, found 70000",
        ]
    );
    let shown = report.render(false);
    assert!(shown.contains("environment variable LAREDO_GRPC_PORT: grpc.port"), "{shown}");
    assert!(shown.contains("6 errors"), "{shown}");
}

#[test]
fn a_problem_of_a_list_item_names_the_argument_that_set_it() {
    let folder =
        ConfigFolder::new(&[("laredo.conf", &format!("{MINIMAL}\ngrpc.allowed_origins = [\"https://a.example\"]"))]);
    let loader = folder.loader().file(folder.path("laredo.conf")).set("grpc.allowed_origins=[nowhere]");
    let lines = folder.lines(&ServerConfig::load(&loader).expect_err("no origin"));
    let place = "--set grpc.allowed_origins: grpc.allowed_origins[0]: expected an origin";
    assert!(lines.len() == 1 && lines[0].starts_with(place), "{lines:?}");
}

#[test]
fn substitutions_take_variables_of_the_environment_that_was_handed_in() {
    let folder = ConfigFolder::new(&[(
        "laredo.conf",
        &format!("{MINIMAL}\nsources.pg.connection = ${{PG.URL}}, grpc.port = ${{?PORT}}"),
    )]);
    let loader = folder.loader_with(&[("PORT", "4100")]).file(folder.path("laredo.conf"));
    let report = ServerConfig::load(&loader).expect_err("PG.URL is missing");
    assert_eq!(
        folder.lines(&report),
        ["laredo.conf:5:25: sources.pg.connection: ${PG.URL} has no value: no such key and no such variable"]
    );
    let loader = loader.set("sources.pg.connection=user=x");
    let config = ServerConfig::load(&loader).unwrap_or_else(|r| panic!("{r}"));
    assert_eq!(config.grpc.port, 4100);
}
