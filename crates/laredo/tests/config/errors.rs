//! Refused configurations and their messages: file, line, column, path, expectation, hint.

use laredo::config::ServerConfig;

use super::{ConfigFolder, MINIMAL, load, problems};

/// Returns a configuration whose line 2 is the source, line 4 the table and line 6 the target.
fn with(source: &str, table: &str, target: &str) -> String {
    format!(
        "sources.pg {{ type = postgresql, connection = \"host=h user=u\"\n\
         {source}\n\
         }}, tables = [{{ source = pg, schema = s, table = t\n\
         {table}\n\
         targets = [{{ type = replication-fanout\n\
         {target}\n\
         }}] }}]\n"
    )
}

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    assert_eq!(problems(text), expected, "{text}");
}

#[test]
fn unknown_keys_get_the_nearest_known_one() {
    for (target, expected) in [
        (
            "journal { max_entires = 5 }",
            "laredo.conf:6:11: tables[0].targets[0].journal.max_entires: unknown key (did you mean max_entries?)",
        ),
        (
            "grpc { maxClients = 5 }",
            "laredo.conf:6:8: tables[0].targets[0].grpc.maxClients: unknown key (did you mean max_clients?)",
        ),
        (
            "client_buffer.color = red",
            "laredo.conf:6:1: tables[0].targets[0].client_buffer.color: unknown key (the keys here are max_size, policy)",
        ),
        (
            "filters = [{ type = field-equals, field = a, value = 1 }, { type = field-prefix, field = a, value = 1, prefix = b }]",
            "laredo.conf:6:93: tables[0].targets[0].filters[1].value: unknown key (the keys here are type, field, prefix)",
        ),
    ] {
        refused(&with("", "", target), &[expected]);
    }
    refused(
        &format!("{MINIMAL}\n  observabilty {{ }}"),
        &["laredo.conf:5:3: observabilty: unknown key (did you mean observability?)"],
    );
}

#[test]
fn wrong_types_and_ranges_say_what_was_expected() {
    for (target, expected) in [
        (
            "grpc.port = 70000",
            "6:13: tables[0].targets[0].grpc.port: expected a whole number from 0 to 65535, found 70000",
        ),
        (
            "grpc.port = many",
            "6:13: tables[0].targets[0].grpc.port: expected a whole number from 0 to 65535, found \"many\"",
        ),
        (
            "max_clients = 0",
            "6:15: tables[0].targets[0].max_clients: expected a whole number from 1 to 4294967295, found 0",
        ),
        (
            "max_clients = 1.5",
            "6:15: tables[0].targets[0].max_clients: expected a whole number from 1 to 4294967295, found 1.5",
        ),
        ("journal = 5", "6:11: tables[0].targets[0].journal: expected a block { … }, found 5"),
        (
            "journal { max_age = 24 }",
            "6:21: tables[0].targets[0].journal.max_age: expected a duration with a unit, from 1s to 3650d, found 24 \
             (a number without a unit is milliseconds; write 5s, 10m or 24h)",
        ),
        (
            "journal { max_age = 24 hors }",
            "6:21: tables[0].targets[0].journal.max_age: expected a duration with a unit, from 1s to 3650d, found \"24 hors\"",
        ),
        (
            "journal { memory_max_bytes = 1k }",
            "6:30: tables[0].targets[0].journal.memory_max_bytes: expected a size such as 32MiB, at least 1MiB, found \"1k\"",
        ),
        (
            "journal { memory_max_bytes = [1] }",
            "6:30: tables[0].targets[0].journal.memory_max_bytes: expected a size such as 32MiB, at least 1MiB, found a list [ … ]",
        ),
        (
            "client_buffer { policy = drop_disconect }",
            "6:26: tables[0].targets[0].client_buffer.policy: expected drop_disconnect or slow_down, found \"drop_disconect\" \
             (did you mean drop_disconnect?)",
        ),
        ("filters { }", "6:1: tables[0].targets[0].filters: expected a list [ … ], found a block { … }"),
        (
            "filters = [ { type = field-regex, field = a, pattern = \"a(\" } ]",
            "6:56: tables[0].targets[0].filters[0].pattern: expected a regular expression, found \"a(\": unclosed group",
        ),
        (
            "filters = [ { type = field-equals, field = a, value = [1] } ]",
            "6:55: tables[0].targets[0].filters[0].value: expected a string, a number, true, false or null, found a list [ … ]",
        ),
        (
            "transforms = [ { type = drop-fields, fields = secret } ]",
            "6:47: tables[0].targets[0].transforms[0].fields: expected a list [ … ], found \"secret\"",
        ),
        (
            "transforms = [ { type = drop-field, fields = [secret] } ]",
            "6:25: tables[0].targets[0].transforms[0].type: \"drop-field\" is not a transform type of this version; \
             expected drop-fields, rename-fields, add-timestamp, hash or mask (did you mean drop-fields?)",
        ),
        (
            "transforms = [ { type = rename-fields, fields { a = x, b = x } } ]",
            "6:40: tables[0].targets[0].transforms[0].fields: a and b would both be named x",
        ),
    ] {
        refused(&with("", "", target), &[&format!("laredo.conf:{expected}")]);
    }
}

#[test]
fn a_hash_has_one_key_and_a_mask_is_of_one_kind() {
    for (transforms, expected) in [
        ("{ type = hash, fields = [a] }", "6:17: T[0].key: is required, unless key_file is given"),
        (
            r#"{ type = hash, fields = [a], key = "0123456789abcde" }"#,
            "6:50: T[0].key: the key has 15 bytes and needs at least 16; make one with `openssl rand -hex 32`",
        ),
        (
            r#"{ type = hash, fields = [a], key = ["0123456789abcdef"] }"#,
            "6:50: T[0].key: expected a string that is not empty",
        ),
        (
            r#"{ type = hash, fields = [a], key = "0123456789abcdef", key_file = x }"#,
            "6:81: T[0].key_file: is given, and so is key; write one of them",
        ),
        ("{ type = hash, fields = [a, a], key_file = x }", "6:39: T[0].fields: names a twice"),
        ("{ type = hash, key_file = x }", "6:17: T[0].fields: is required: a list [ … ]"),
        ("{ type = drop-fields, fields = [a, a] }", "6:46: T[0].fields: names a twice"),
        (
            "{ type = mask, fields = [a] }",
            "6:17: T[0].value: is required, unless keep_first, keep_last or with is given",
        ),
        (
            "{ type = mask, fields = [a], value = x, keep_last = 4 }",
            "6:67: T[0].keep_last: has no effect, because value replaces the whole value; remove one of them",
        ),
        ("{ type = mask, fields = [a], with = xx }", "6:51: T[0].with: expected a single character, found \"xx\""),
        (
            "{ type = mask, fields = [a], keep_last = -1 }",
            "6:56: T[0].keep_last: expected a whole number from 0 to 4294967295, found -1",
        ),
        (
            r#"{ type = hash, fields = [a], key = "0123456789abcdef" }, { type = mask, fields = [b, a], value = x }"#,
            "6:96: T[1].fields: names a, whose values hash replaces already",
        ),
        (
            r#"{ type = mask, fields = [a], value = x }, { type = rename-fields, fields { a = b } }, { type = hash, fields = [b], key = "0123456789abcdef" }"#,
            "6:125: T[2].fields: names b, whose values mask replaces already",
        ),
    ] {
        let expected = expected.replace("T[", "tables[0].targets[0].transforms[");
        refused(&with("", "", &format!("transforms = [{transforms}]")), &[&format!("laredo.conf:{expected}")]);
    }
}

#[test]
fn missing_keys_are_named_where_they_belong() {
    refused(
        "sources { pg { type = pg } }\ntables = [ { source = pg } ]",
        &[
            "laredo.conf:1:11: sources.pg.connection: is required: a string that is not empty",
            "laredo.conf:2:14: tables[0].schema: is required: a string that is not empty",
            "laredo.conf:2:14: tables[0].table: is required: a string that is not empty",
            "laredo.conf:2:14: tables[0].targets: is required: a list [ … ]",
        ],
    );
    refused("", &["sources: is required: a block { … }", "tables: is required: a list [ … ]"]);
    refused(
        "sources { }\ntables = []",
        &[
            "laredo.conf:1:1: sources: there is no source; describe at least one database",
            "laredo.conf:2:10: tables: there is no table; name at least one to serve",
        ],
    );
    refused(
        &with("slot_mode = stateful", "", "snapshot { store = local }"),
        &[
            "laredo.conf:2:13: sources.pg.slot_name: is required with slot_mode = stateful: the slot must be found again",
            "laredo.conf:6:20: tables[0].targets[0].snapshot.store_config: is required: where the store is",
        ],
    );
    let both =
        "journal { store = local, store_config { path = /p } }, snapshot { store = local, store_config.path = /p }";
    refused(
        &with("", "", both),
        &["laredo.conf:6:102: tables[0].targets[0].snapshot.store_config.path: is the journal's folder too \
           (journal.store_config.path); give each its own"],
    );
    refused(
        &format!("{MINIMAL}\ngrpc.tls {{ enabled = true, cert_path = \"\", key_path = k }}"),
        &["laredo.conf:5:22: grpc.tls.cert_path: is required with enabled = true"],
    );
}

#[test]
fn references_must_exist() {
    let text = with("", "", "").replace("source = pg,", "source = pgg,");
    refused(&text, &["laredo.conf:3:25: tables[0].source: there is no source named \"pgg\" (did you mean pg?)"]);
    let archive = "archive { store = s3, store_config { bucket = b, credentials = writer } }";
    refused(
        &with("", "", archive),
        &["laredo.conf:6:64: tables[0].targets[0].archive.store_config.credentials: \
           there is no credentials profile named \"writer\" (no credentials profile is configured)"],
    );
    refused(
        &(with("", "", archive) + "credentials { writer { type = assume_role, role_arn = r, base = wrter } }"),
        &[
            "laredo.conf:8:65: credentials.writer.base: there is no credentials profile named \"wrter\" (did you mean writer?)",
        ],
    );
    // A source with an error of its own still exists.
    refused(
        &with("slot_nam = x", "", ""),
        &["laredo.conf:2:1: sources.pg.slot_nam: unknown key (did you mean slot_name?)"],
    );
}

#[test]
fn keys_without_a_meaning_are_refused_with_a_sentence() {
    for key in
        ["always_baseline", "buffer", "error_handling", "ttl", "validation", "lookup_fields", "additional_indexes"]
    {
        let lines = problems(&with("", "", &format!("{key} = 1")));
        let start = format!("laredo.conf:6:1: tables[0].targets[0].{key}: has no meaning in this version");
        assert!(lines.len() == 1 && lines[0].starts_with(&start), "{lines:?}");
        assert!(!lines[0].contains("did you mean"), "{lines:?}");
    }
    let lines = problems(&format!("{MINIMAL}\nsnapshot {{ interval = 5m }}"));
    assert!(lines[0].contains("snapshot: snapshots of the whole server have no meaning"), "{lines:?}");

    let lines = problems(&with("publication { publish = [insert], tables = [{ where = x }] }", "", ""));
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("laredo.conf:2:15: sources.pg.publication.publish: is refused: "));
    assert!(lines[1].contains("replica identity makes PostgreSQL fail your own UPDATE and DELETE"));

    refused(
        &with("type = mysql", "", ""),
        &["laredo.conf:2:8: sources.pg.type: \"mysql\" is not a source type of this version; expected postgresql"],
    );
    refused(
        &with("", "", "type = http"),
        &[
            "laredo.conf:6:8: tables[0].targets[0].type: \"http\" is not a target type of this version; expected replication-fanout",
        ],
    );
}

#[test]
fn paths_that_cannot_be_served_side_by_side_are_named() {
    for (text, expected) in [
        (
            "health.readiness_path = /metrics",
            "5:25: health.readiness_path: observability.metrics.path has this path already; give each its own",
        ),
        (
            "observability.metrics.path = /health/live",
            "5:30: observability.metrics.path: health.liveness_path has this path already; give each its own",
        ),
        (
            "health.liveness_path = /health/startup",
            "5:24: health.liveness_path: the startup endpoint has this path already; give each its own",
        ),
        (
            "health.readiness_path = \"/:x\"",
            "5:25: health.readiness_path: expected a path that begins with / and has no ?, #, *, braces, spaces or part \
             that begins with a colon, found \"/:x\"",
        ),
    ] {
        refused(&format!("{MINIMAL}\n{text}"), &[&format!("laredo.conf:{expected}")]);
    }
}

#[test]
fn an_origin_that_no_browser_would_name_is_refused() {
    for origin in
        ["console.example", "https://console.example/", "https://Console.example", "https://*.example", "null"]
    {
        refused(
            &format!("{MINIMAL}\ngrpc.allowed_origins = [\"{origin}\"]"),
            &[&format!(
                "laredo.conf:5:25: grpc.allowed_origins[0]: expected an origin as browsers name it, such as \
                 https://console.example (no path, no capital letters), or *, found \"{origin}\""
            )],
        );
    }
}

#[test]
fn what_only_makes_sense_together_is_checked_together() {
    for (source, table, target, expected) in [
        (
            "reconnect { initial_backoff = 2m }",
            "",
            "",
            "2:31: sources.pg.reconnect.initial_backoff: initial_backoff, 2m, is longer than max_backoff, 1m",
        ),
        ("copies_max = 0", "", "", "2:14: sources.pg.copies_max: expected a whole number from 1 to 1000, found 0"),
        (
            "copy_timeout = 10ms",
            "",
            "",
            "2:16: sources.pg.copy_timeout: expected a duration with a unit, from 1s to 3650d, found \"10ms\"",
        ),
        (
            "slot_name = Upper",
            "",
            "",
            "2:13: sources.pg.slot_name: expected a slot name: lower-case letters, digits and underscores, at most 63, found \"Upper\"",
        ),
        ("", "key_fields = [a, a]", "", "4:14: tables[0].key_fields: names a twice"),
        (
            "",
            "key_fields = [a]",
            "transforms = [{ type = drop-fields, fields = [a] }]",
            "4:14: tables[0].key_fields: a is dropped by a transform; clients need the key",
        ),
        (
            "",
            "key_fields = [a]",
            "transforms = [{ type = mask, fields = [b, a], value = x }]",
            "4:14: tables[0].key_fields: a is masked by a transform; use hash, which keeps keys distinct",
        ),
        (
            "",
            "",
            "max_clients = 5, grpc.max_clients = 6",
            "6:15: tables[0].targets[0].max_clients: is 5, but grpc.max_clients is 6; write one of them",
        ),
        (
            "",
            "",
            "journal { store_config { path = x } }",
            "6:11: tables[0].targets[0].journal.store_config: is used only with store = local",
        ),
        (
            "",
            "",
            "}, { type = replication-fanout",
            "5:11: tables[0].targets: a table has exactly one replication-fanout target, not 2",
        ),
    ] {
        refused(&with(source, table, target), &[&format!("laredo.conf:{expected}")]);
    }
}

#[test]
fn tables_ports_and_paths_are_each_taken_once() {
    refused(
        &format!(
            "{MINIMAL}\ntables += {{ source = pg, schema = public, table = t, targets = [{{ type = replication-fanout }}] }}"
        ),
        &[
            "laredo.conf:5:51: tables[1].table: public.t is served by tables[0] already; clients could not tell them apart",
        ],
    );
    refused(
        &format!("{MINIMAL}\nhealth {{ http_port = 9090, readiness_path = /x, liveness_path = /x }}"),
        &[
            "laredo.conf:5:22: observability.metrics.port: port 9090 is taken by health.http_port; give each its own",
            "laredo.conf:5:45: health.readiness_path: readiness and liveness have the same path; \
             a server that is not ready would be restarted",
        ],
    );
    refused(
        &format!("{MINIMAL}\nobservability.metrics.port = 4002"),
        &[
            "laredo.conf:5:30: observability.metrics.port: port 4002 is taken by tables[0].targets[0].grpc.port; give each its own",
        ],
    );
}

#[test]
fn an_address_is_an_ip_a_socket_or_all_and_ports_do_not_overlap() {
    for wrong in ["localhost", "\"127.0.0.1:80\"", "\"unix:x\""] {
        let expected = "grpc.address: expected an IP address, unix:/PATH, or * for all addresses, found";
        let shown = format!("laredo.conf:5:16: {expected} \"{}\"", wrong.trim_matches('"'));
        refused(&format!("{MINIMAL}\ngrpc.address = {wrong}"), &[&shown]);
    }
    refused(
        &format!("{MINIMAL}\ngrpc {{ port = 4002, address = \"127.0.0.1\" }}"),
        &[
            "laredo.conf:5:15: tables[0].targets[0].grpc.port: port 4002 is taken by grpc.port; give both the same address, \
           or each a port of its own",
        ],
    );
    refused(
        &format!("{MINIMAL}\ngrpc.address = \"unix:/x\"\nhealth.address = \"unix:/x\""),
        &["laredo.conf:6:18: health.http_port: /x is taken by grpc.port; give each its own"],
    );
    for right in [
        "grpc { port = 4002, address = \"127.0.0.1\" }, fanout.grpc.address = \"127.0.0.1\"",
        "grpc { port = 4002, address = \"127.0.0.1\" }, fanout.grpc.address = \"::1\"",
        "grpc.address = \"unix:/x\", fanout.grpc.address = \"unix:/x\"",
    ] {
        assert!(load(&format!("{MINIMAL}\n{right}")).is_ok(), "{right}");
    }
    refused(
        &format!("{MINIMAL}\nallowed_hosts = [\"http://a.example\"]"),
        &[
            "laredo.conf:5:18: allowed_hosts[0]: expected the name of a host without a port, such as laredo.example.com or \
           *.example.com, or *, found \"http://a.example\"",
        ],
    );
}

#[test]
fn a_rate_has_a_unit_and_a_least_value() {
    for rate in ["20MiB", "1k/s"] {
        let expected = format!(
            "laredo.conf:4:17: tables[0].verify.rate: expected a rate such as 20MiB/s, at least 64KiB/s, found \"{rate}\""
        );
        refused(&with("", &format!("verify {{ rate = {rate} }}"), ""), &[&expected]);
    }
}

#[test]
fn syntax_errors_have_a_place() {
    for (text, expected) in [
        ("a = 1\n}\ngrpc.port = 1", "2:1: this } closes no block; everything after it would be ignored"),
        ("grpc { port = 1 } }\nhealth {}", "1:19: this } closes no block; everything after it would be ignored"),
        ("grpc {\n  tls {\n}\n", "1:6: this { is never closed"),
        ("grpc { port = \"1 }", "1:15: unterminated string"),
        ("grpc.port 5\n", "2:1: expected value"),
        ("= 5", "1:1: expected key, got ="),
        ("a = [1, 2", "1:10: expected ]"),
        ("[1]", "1:1: the file is a list; a configuration is a block of keys"),
        ("a = ${b", "1:5: unterminated substitution"),
    ] {
        let lines = problems(text);
        assert_eq!(lines, [format!("laredo.conf:{expected}")], "{text}");
    }
    let lines = problems(&format!("{MINIMAL}\ngrpc.port = ${{health.http_port}}, health.http_port = ${{grpc.port}}"));
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("laredo.conf:5:") && lines[0].contains("circular substitution"), "{lines:?}");
    let deep = format!("{}a = 1", "a.".repeat(50_000));
    assert_eq!(problems(&deep), ["laredo.conf:1:1: keys nest deeper than 128 levels"]);
}

#[test]
fn problems_of_includes_name_their_line() {
    let folder = ConfigFolder::new(&[("laredo.conf", MINIMAL)]);
    let include = |statement: &str| {
        folder.write("laredo.conf", format!("{MINIMAL}\n{statement}").as_bytes());
        let loader = folder.loader().file(folder.path("laredo.conf"));
        folder.lines(&ServerConfig::load(&loader).expect_err(statement))
    };
    assert_eq!(
        include("include required(\"absent.conf\")"),
        ["laredo.conf:5:9: the included file \"absent.conf\" does not exist"]
    );
    assert_eq!(
        include("include file(\"absent.conf\")"),
        ["laredo.conf:5:9: \"absent.conf\" does not exist in the working directory, where file(…) looks \
          (write include \"absent.conf\" for a path relative to this file)"]
    );
    folder.write("broken.conf", b"a = 1\n}");
    assert_eq!(
        include("include \"broken.conf\""),
        ["broken.conf:2:1: this } closes no block; everything after it would be ignored"]
    );
    folder.write("latin1.conf", b"a = \"\xe9\"");
    assert_eq!(
        include("include \"latin1.conf\""),
        ["laredo.conf:5:9: cannot read the included file latin1.conf: stream did not contain valid UTF-8"]
    );
    folder.write("round.conf", b"include \"./round.conf\"");
    let lines = include("include \"round.conf\"");
    assert!(
        lines.len() == 1 && lines[0].ends_with("round.conf:1:9: files include one another in a circle, or too deep"),
        "{lines:?}"
    );
}

/// Each step of such a chain doubles the text to read, so sixteen steps would take too long.
#[test]
fn files_with_two_includes_each_are_given_up_soon_and_reported_once() {
    let twice = |file: &str| format!("include \"{file}.conf\"\ninclude \"{file}.conf\"\n");
    let folder = ConfigFolder::new(&[("laredo.conf", &format!("{MINIMAL}{}", twice("round")))]);
    folder.write("round.conf", twice("round").as_bytes());
    let told = || {
        let loader = folder.loader().file(folder.path("laredo.conf"));
        folder.lines(&ServerConfig::load(&loader).expect_err("too many includes"))
    };
    assert_eq!(told(), ["round.conf:1:9: files include one another in a circle, or too deep"]);
    folder.write("laredo.conf", format!("{MINIMAL}{}", twice("f1")).as_bytes());
    for file in 1..14 {
        folder.write(&format!("f{file}.conf"), twice(&format!("f{}", file + 1)).as_bytes());
    }
    folder.write("f14.conf", b"grpc { port = 4100 }");
    let told = told();
    let said = "more than 100 files are included; does one include many that include it?";
    assert!(told.len() == 1 && told[0].ends_with(said), "{told:?}");
}

#[test]
fn all_problems_are_reported_at_once_file_by_file() {
    let folder = ConfigFolder::new(&[
        ("conf.d/1.conf", "sources.pg { type = pg, conection = x }\ngrpc.port = -1"),
        ("conf.d/2.conf", "health.http_prt = 1\ntables = [{ source = p, schema = s, table = t, targets = [{}] }]"),
    ]);
    let loader = folder
        .loader_with(&[("LAREDO_OBSERVABILITY_LOGGING_LEVEL", "loud")])
        .conf_dir(folder.path("conf.d"))
        .set("observability.logging.type=xml");
    let report = ServerConfig::load(&loader).expect_err("much is wrong");
    assert_eq!(
        folder.lines(&report),
        [
            "conf.d/1.conf:1:1: sources.pg.connection: is required: a string that is not empty",
            "conf.d/1.conf:1:25: sources.pg.conection: unknown key (did you mean connection?)",
            "conf.d/1.conf:2:13: grpc.port: expected a whole number from 0 to 65535, found -1",
            "conf.d/2.conf:1:1: health.http_prt: unknown key (did you mean http_port?)",
            "conf.d/2.conf:2:22: tables[0].source: there is no source named \"p\" (did you mean pg?)",
            "conf.d/2.conf:2:59: tables[0].targets[0].type: is required: replication-fanout",
            "environment variable LAREDO_OBSERVABILITY_LOGGING_LEVEL: observability.logging.level: \
             expected trace, debug, info, warn or error, found \"loud\"",
            "--set observability.logging.type: observability.logging.type: expected structured or text, found \"xml\"",
        ]
    );
    assert_eq!(report.problem_count(), 8);

    // Files that cannot be parsed are reported together, without guesses about the keys of the
    // other files.
    folder.write("conf.d/1.conf", b"a {");
    folder.write("conf.d/2.conf", b"b }");
    let report = ServerConfig::load(&loader).expect_err("neither can be read");
    assert_eq!(
        folder.lines(&report),
        [
            "conf.d/1.conf:1:3: this { is never closed",
            "conf.d/2.conf:1:3: this } closes no block; everything after it would be ignored",
        ]
    );
}

#[test]
fn the_rendered_report_shows_the_line() {
    let folder = ConfigFolder::new(&[("laredo.conf", &with("", "", "journal { max_entires = 5 }"))]);
    let report = ServerConfig::load(&folder.loader().file(folder.path("laredo.conf"))).expect_err("a mistyped key");
    let shown = report.render(false).replace(&format!("{}/", folder.path("").display()).replace("//", "/"), "");
    assert_eq!(
        shown,
        "  × tables[0].targets[0].journal.max_entires: unknown key\n   \
           ╭─[laredo.conf:6:11]\n \
         5 │ targets = [{ type = replication-fanout\n \
         6 │ journal { max_entires = 5 }\n   \
           ·           ─────┬─────\n   \
           ·                ╰── here\n \
         7 │ }] }]\n   \
           ╰────\n  \
         help: did you mean max_entries?\n\n\
         The configuration has 1 error; nothing was started.\n"
    );
    assert!(report.render(true).contains("\u{1b}["));
}

#[test]
fn a_connection_string_is_read_and_its_error_has_a_place_and_no_password() {
    for (connection, expected) in [
        ("postgresql://u:hunter2@h/d?sslmode=yes", "`sslmode`: `yes` is not one of"),
        ("postgresql://u:hunter2@h/d?nonsense=1", "unknown connection parameter `nonsense`"),
        ("postgresql://u:hunter2/d", "a port is a number from 1 to 65535"),
        ("host=h password=hunter2", "`user`: is missing"),
        ("hunter2", "malformed"),
        ("postgresql://u:${PG_PASSWORD}@h/d", "inside quotes, where it is not replaced"),
        ("postgresql://u:${?PG_PASSWORD}@h/d", "inside quotes, where it is not replaced"),
    ] {
        let text = format!(
            "sources {{ pg {{ type = pg, connection = \"{connection}\" }} }}\n\
             tables = [{{ source = pg, schema = s, table = t, targets = [{{ type = replication-fanout }}] }}]"
        );
        let folder = ConfigFolder::new(&[("laredo.conf", &text)]);
        let report = ServerConfig::load(&folder.loader().file(folder.path("laredo.conf"))).expect_err(connection);
        let lines = folder.lines(&report).join("\n");
        assert!(lines.starts_with("laredo.conf:1:40: sources.pg.connection: ") && lines.contains(expected), "{lines}");
        assert!(!report.render(false).contains("hunter2"), "{}", report.render(false));
    }
}

#[test]
fn a_text_and_a_block_in_one_value_have_a_place() {
    let text =
        "sources { pg { type = pg, connection = \"postgresql://u@h/d\"\n  x = y reconnect { max_attempts = 1 } } }";
    let folder = ConfigFolder::new(&[("laredo.conf", text)]);
    let report = ServerConfig::load(&folder.loader().file(folder.path("laredo.conf"))).expect_err("no such value");
    let lines = folder.lines(&report).join("\n");
    assert!(lines.starts_with("laredo.conf:2:") && lines.contains("a text and a block"), "{lines}");
}

#[test]
fn a_password_comes_from_one_place() {
    let of = |connection: &str, keys: &str| {
        let source = format!("sources {{ pg {{ type = pg, connection = \"{connection}\", {keys} }} }}");
        MINIMAL.replace("sources { pg { type = postgresql, connection = \"postgresql://u@h/d\" } }", &source)
    };
    let (file, command) = ("password_file = /run/password", "password_command = [vault, read]");
    for keys in ["", file, command, "password_command = [x], password_lifetime = 0s, password_timeout = 1m"] {
        load(&of("postgresql://u@h/d", keys)).unwrap_or_else(|problems| panic!("{keys}: {problems:?}"));
    }
    let twice = "is given as well as a password or passfile in the connection string; keep one of them";
    for (connection, keys, key, problem) in [
        ("postgresql://u:hunter2@h/d", file, "password_file", twice),
        ("postgresql://u:hunter2@h/d", command, "password_command", twice),
        ("user=u host=h password=hunter2", command, "password_command", twice),
        ("postgresql://h/d?user=u&p%61ssword=hunter2", file, "password_file", twice),
        ("user=u passfile=/p", file, "password_file", twice),
        ("user=u", &format!("{file}, {command}"), "password_command", "is given as well as password_file; keep one"),
        ("user=u", "password_lifetime = 1m", "password_lifetime", "has a meaning only with password_command"),
        ("user=u", &format!("{file}, password_timeout = 1m"), "password_timeout", "has a meaning only with"),
        ("user=u", "password_command = []", "password_command", "expected a program and its arguments, as"),
        ("user=u", "password_command = \"echo hunter2\"", "password_command", "expected a list [ … ]"),
        ("user=u", "password_command = [\" \"]", "password_command[0]", "expected a string that is not empty"),
        ("user=u", "password_file = \"\"", "password_file", "expected a string that is not empty"),
        ("user=u", &format!("{command}, password_timeout = 0s"), "password_timeout", "from 100ms to 10m"),
        ("user=u", &format!("{command}, password_lifetime = -1s"), "password_lifetime", "from 0s to 366d"),
        ("user=u require_auth=scram", "", "connection", "`require_auth`: `scram` is not one of"),
    ] {
        let found = problems(&of(connection, keys)).join("\n");
        assert!(found.contains(&format!("sources.pg.{key}: ")) && found.contains(problem), "{keys}: {found}");
        assert!(!found.contains("hunter2"), "{found}");
    }
}
